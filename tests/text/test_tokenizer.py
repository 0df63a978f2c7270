"""Tokenising: what goes in comes out, the files belong together, ids are XLM-R's, mistakes are one clear line."""

import io
import random
import subprocess
import sys

import pytest
from fairseq.data import Dictionary
from fairseq.tokenizer import tokenize_line

from conftest import REPOSITORY
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE
from rt_plugin.text import encode_file as encode_text
from rt_plugin.text import train as train_tokenizer
from rt_plugin.text.encode_file import encode_file
from rt_plugin.text.normalization import NORMALIZATIONS, TextNormalizer
from rt_plugin.text.raw import read_lines
from rt_plugin.text.tokenizer import Tokenizer
from rt_plugin.text.train import MODEL_TYPES, train_sentencepiece

CORPUS = """The river rises in the hills, and it flows into the sea.
He said that "the bridge" was built in 1905; it is well-known.
Its owner's name isn't known, but the company (a brewery) sold it for 1,250 dollars.

The second document: a town of 3,000 people & two churches.
Most people work in farming, fishing and trade."""
HARD_TEXT = "He said, “it’s a well-known\u00a0fact” & that's [all]…"
# every character that Python, and with it fairseq, takes for white space
WHITE_SPACE = "".join(chr(code) for code in range(0x110000) if chr(code).isspace())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(CORPUS, encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=NORMALIZATIONS)
def folder(request, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    train_sentencepiece([corpus], folder, vocab_size=70, normalization=request.param)
    return folder


@pytest.fixture
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.mark.parametrize("line", [line for line in CORPUS.split("\n") if line])
def test_decoding_gives_the_sentence_back(tokenizer, line):
    assert tokenizer.decode(tokenizer.encode(line)) == line


def test_half_a_surrogate_pair_is_read_as_a_question_mark(tokenizer):
    assert tokenizer.encode("The river\ud83d") == tokenizer.encode("The river?")
    assert tokenizer.encode_ids(["\udc00 sea"]) == tokenizer.encode_ids(["? sea"])


def test_pieces_decode_to_the_normalised_text(tokenizer):
    # sentencepiece's own NFKC turns the ellipsis into three dots, which Moses does, too
    expected = tokenizer.normalizer.restore(tokenizer.normalize(HARD_TEXT)).replace("…", "...")
    assert tokenizer.decode(tokenizer.encode(HARD_TEXT)) == expected


@pytest.mark.parametrize("choice", ["none", "moses"])
def test_normalising_twice_changes_nothing(choice):
    normalizer = TextNormalizer(choice)
    once = normalizer.normalize(HARD_TEXT)
    assert normalizer.normalize(once) == once


def test_moses_writes_no_html_escapes_and_no_split_dashes(tokenizer, folder):
    pieces = tokenizer.encode('"A" & b\'s <well-known> [fact] | x')
    joined = "".join(pieces) + (folder / DICTIONARY_FILE).read_text(encoding="utf-8")
    for escape in ("&quot;", "&amp;", "&apos;", "&lt;", "&gt;", "&#", "@-@"):
        assert escape not in joined


def test_moses_normalises_quotes(corpus, tmp_path):
    tokenizer = train_sentencepiece([corpus], tmp_path, vocab_size=70, normalization="moses")
    assert tokenizer.normalize("“it’s”") == '"it\'s"'


@pytest.mark.parametrize("space", WHITE_SPACE, ids=lambda space: f"U+{ord(space):04X}")
def test_no_piece_holds_what_fairseq_splits_at(tokenizer, space):
    pieces = tokenizer.encode(f"the{space}river{space}{space}flows")
    assert tokenize_line(" ".join(pieces)) == pieces
    assert tokenizer.decode(pieces) == "the river flows"


BEHIND_A_WORD = (
    "", " ", ".", ", and the sea.", "'s name", "s and hills", "-known", "(a)", " (a) \u201cit\u201d", "\u2014the sea",
    " flows.", "\u2026", " : 1905", "\u201d; it is", " ''it", "\u00a0flows",
)  # fmt: skip


@pytest.mark.parametrize("text", BEHIND_A_WORD, ids=ascii)
def test_text_behind_a_word_is_read_as_in_the_whole_text(tokenizer, text):
    """Whether a space stands between them is for the text, and for normalisation, to say."""
    pieces = tokenizer.encode("river" + text)
    word = tokenizer.encode("river")
    assert pieces[: len(word)] == word
    assert tokenizer.encode(text, behind_word=True) == pieces[len(word) :]


def test_dictionary_ids_are_those_of_xlmr(folder):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / TOKENIZER_FILE))
    dictionary = Dictionary.load(str(folder / DICTIONARY_FILE))
    assert [dictionary.index(s) for s in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert len(dictionary) == len(processor) + 1  # <pad>
    for i in range(3, len(processor)):
        assert dictionary.index(processor.id_to_piece(i)) == i + 1


@pytest.mark.parametrize(
    "options",
    [{"bos_id": -1, "eos_id": -1}, {"pad_id": 3}, {"unk_id": 5, "control_symbols": ["<cls>"], "byte_fallback": True}],
    ids=["none", "padding", "elsewhere"],
)
def test_dictionary_of_a_tokenizer_with_other_special_pieces(options, corpus):
    """Whatever their number and place: all pieces that text can have, and no others."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        vocab_size=330,
        hard_vocab_limit=False,
        **options,
    )
    tokenizer = Tokenizer(model.getvalue(), TextNormalizer())
    listed = [line.rpartition(" ")[0] for line in tokenizer.dictionary().splitlines()]
    special = {"<unk>", "<s>", "</s>", "<pad>", "<cls>"}
    assert listed == [piece for piece in tokenizer.pieces() if piece not in special]
    assert {*tokenizer.encode(CORPUS)} <= {*listed} and "\u2581" in listed


def test_training_twice_gives_the_same_files(corpus, tmp_path):
    for name in ("first", "second"):
        train_sentencepiece([corpus], tmp_path / name, vocab_size=70)
    names = {TOKENIZER_FILE, NORMALIZATION_FILE, DICTIONARY_FILE}
    assert {p.name for p in (tmp_path / "first").iterdir()} == names
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_saved_encoder_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.encode(HARD_TEXT) == tokenizer.encode(HARD_TEXT)
    assert copy.normalizer.choice == tokenizer.normalizer.choice


def test_tokenizer_without_normalisation_file_is_used_as_it_is(folder, tmp_path):
    (tmp_path / TOKENIZER_FILE).write_bytes((folder / TOKENIZER_FILE).read_bytes())
    assert Tokenizer.load(tmp_path).normalizer.choice == "none"


def test_failed_training_leaves_the_old_files(corpus, folder, tmp_path):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError):
        train_sentencepiece([corpus, tmp_path / "missing.txt"], folder, vocab_size=70)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_dictionary_of_another_tokenizer_is_refused(tokenizer, folder):
    symbols = Dictionary.load(str(folder / DICTIONARY_FILE)).symbols
    tokenizer.check_dictionary([*symbols, "<mask>", "madeupword0001"], "dict.txt")
    tokenizer.check_dictionary(symbols[:-5], "dict.txt")
    with pytest.raises(UserError, match=r"dict\.txt: 1 of \d+ symbols .*'elsewhere'"):
        tokenizer.check_dictionary([*symbols, "elsewhere"], "dict.txt")


def test_encoded_file_keeps_lines_and_documents(tokenizer, corpus, tmp_path):
    source = tmp_path / "source.txt"
    source.write_text(CORPUS.replace("hills,", "hills,\u2028") + " \u2603\n", encoding="utf-8")
    counts = encode_file(tokenizer, source, tmp_path / "out" / "pieces.txt")
    lines = (tmp_path / "out" / "pieces.txt").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    expected = [tokenizer.encode(line) for line in source.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line.split(" ") if line else [] for line in lines] == expected
    assert (counts.lines, counts.documents, counts.pieces) == (6, 2, sum(map(len, expected)))
    assert counts.unknown == 1  # the snowman
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["pieces.txt"]


def test_a_text_is_not_replaced_by_its_pieces(tokenizer, tmp_path):
    source = tmp_path / "source.txt"
    source.write_text(CORPUS, encoding="utf-8")
    (tmp_path / "link.txt").symlink_to(source)
    for target in (source, tmp_path / "link.txt"):
        with pytest.raises(UserError, match=f"^{target}: is the input itself; give another file to write$"):
            encode_file(tokenizer, source, target)
    with pytest.raises(UserError, match=f"^{tmp_path}: is a folder; give the name of the file to write$"):
        encode_file(tokenizer, source, tmp_path)
    assert source.read_text(encoding="utf-8") == CORPUS and len(list(tmp_path.iterdir())) == 2


def test_lines_end_at_newlines_only(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffa\u2028b\u0085c\r\n\nd".encode())
    assert list(read_lines(path)) == ["a\u2028b\u0085c", "", "d"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"bad\.txt: cannot read"),
        (b"", r"bad\.txt: the text file is empty"),
        (b"\n \n", r"bad\.txt: the text file is empty"),
        (b"good\nb\xe4d\n", r"bad\.txt, line 2: not UTF-8 \(byte 0xe4 at position 2\)"),
    ],
    ids=["missing", "empty", "blank", "latin-1"],
)
def test_bad_text_is_one_clear_error(tokenizer, tmp_path, content, message):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    for use in (
        lambda: encode_file(tokenizer, path, tmp_path / "out.txt"),
        lambda: train_sentencepiece([path], tmp_path / "tokenizer", vocab_size=70),
    ):
        with pytest.raises(UserError, match=message) as error:
            use()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out.txt").exists() and not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize(("vocab_size", "message"), [(10, "below the"), (5000, r"--vocab-size \d+ or less")])
def test_vocabulary_that_does_not_fit_the_text(corpus, tmp_path, vocab_size, message):
    with pytest.raises(UserError, match=message):
        train_sentencepiece([corpus], tmp_path, vocab_size=vocab_size)


def test_unknown_choices_are_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="'mooses', expected one of none, moses"):
        TextNormalizer("mooses")
    with pytest.raises(UserError, match="expected one of unigram, bpe"):
        train_sentencepiece([corpus], tmp_path, vocab_size=70, model_type="word")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"version": 2, "normalization": "moses", "language": "en"}'], ids=str
)
def test_broken_normalisation_file_is_refused(folder, tmp_path, content):
    (tmp_path / NORMALIZATION_FILE).write_text(content)
    with pytest.raises(UserError, match=NORMALIZATION_FILE):
        Tokenizer.load(tmp_path)


def test_missing_and_broken_tokenizer_are_refused(tmp_path):
    with pytest.raises(UserError, match="no sentencepiece model there"):
        Tokenizer.load(tmp_path)
    (tmp_path / TOKENIZER_FILE).write_text("not a model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer.load(tmp_path)


def test_import_needs_the_standard_library_only():
    code = (
        "import sys, types; package = types.ModuleType('rt_plugin'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['rt_plugin'] = package; import rt_plugin.text.encode_file, rt_plugin.text.train\n"
        "assert not {'torch', 'fairseq', 'numpy', 'sentencepiece', 'sacremoses'} & set(sys.modules)"
    )
    folder = read_lines.__globals__["__file__"].rpartition("/")[0].rpartition("/")[0]
    subprocess.run([sys.executable, "-c", code, folder], check=True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_records_are_left_to_prepare_corpus(name, tmp_path, capsys):
    path = tmp_path / name
    path.write_text('{"text": "One."}\n')
    train_sentencepiece([REPOSITORY / "README.md"], tmp_path, vocab_size=300)
    for main, *words in (
        (encode_text.main, path, tmp_path / "out", "--tokenizer", tmp_path),
        (train_tokenizer.main, path, "--folder", tmp_path / "new", "--vocab-size", "300"),
    ):
        assert main([str(word) for word in words]) == 1
        assert f"{name}: holds records, expected lines of text; rt-plugin prepare-corpus" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "new").exists()


LONG_LINES = [
    "zebra quokka xylophone " * 300,  # 6,900 bytes, cut between words
    "".join(map(chr, range(0x4E00, 0x4E0A))) * 400,  # 12,000 bytes without a space, cut between characters
]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("long", LONG_LINES, ids=["spaces", "none"])
def test_long_lines_are_trained_on(long, model_type, tmp_path):
    """sentencepiece passes over what is longer than 4,192 bytes."""
    text = tmp_path / "text.txt"
    for short in (["the man had a hat"] * 50, []):
        text.write_text("\n".join([*short, *[long] * 50]), encoding="utf-8")
        size = 3 + len({*"".join([*short, long]), "\u2581"} - {" "})  # <unk>, <s>, </s>, and each character
        tokenizer = train_sentencepiece([text], tmp_path / "tokenizer", size, model_type=model_type, threads=1)
        assert set(long) - {" "} <= set("".join(tokenizer.pieces()[3:]))


def sentences(count: int) -> list[str]:
    """Each of five words that begin with one of 26 syllables."""
    draw = random.Random(1)
    syllables = [c + v for c in "bdfgklmnprstz" for v in "ae"]
    return [" ".join("".join(draw.choices(syllables, k=3)) for _ in range(5)) for _ in range(count)]


def test_a_sample_follows_from_its_seed(tmp_path):
    """And from the lines, in whichever files; another seed draws others."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n \n".join(sentences(3000)), encoding="utf-8")

    def train(seed, inputs=(text,), **options):
        folder = tmp_path / "tokenizer"
        train_sentencepiece(inputs, folder, vocab_size=60, max_sentences=200, seed=seed, **options)
        return (folder / DICTIONARY_FILE).read_text(encoding="utf-8")

    first = train(1)
    assert train(1) == first
    halves = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for half, lines in zip(halves, (sentences(3000)[:1400], sentences(3000)[1400:]), strict=True):
        half.write_text("\n".join(lines), encoding="utf-8")
    assert train(1, halves) == first
    assert len({train(seed) for seed in range(1, 4)}) == 3


def test_a_sample_is_of_the_whole_text(tmp_path):
    """Every part of the text has its share: drawn with equal chances, from the first line to the last."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{chr(0x4E00 + number)}" for number in range(4000)), encoding="utf-8")
    shares = [0] * 4
    for seed in range(3):
        train_sentencepiece([text], tmp_path, vocab_size=404, max_sentences=400, seed=seed)
        symbols = (line.split()[0] for line in (tmp_path / DICTIONARY_FILE).read_text().splitlines())
        for number in (ord(symbol) - 0x4E00 for symbol in symbols if len(symbol) == 1 and symbol >= "\u4e00"):
            shares[number // 1000] += 1
    assert 1190 <= sum(shares) <= 1200
    assert min(shares) > 240 and max(shares) < 360, shares  # 300 each; 6 sigma would be 90
