"""Preparing a corpus: fairseq-preprocess's data, whatever the files, workers and interruptions; bad input."""

import collections
import contextlib
import gzip
import hashlib
import importlib
import io
import itertools
import json
import lzma
import os
import signal
import subprocess
import sys
import time

import pytest
from fairseq.data import Dictionary, MMapIndexedDataset
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode, get_encoder

from conftest import REPOSITORY, SAMPLE, TRAINING, run_command
from rt_plugin.console.locks import only_user_of
from rt_plugin.corpus import inputs
from rt_plugin.corpus import parts as corpus
from rt_plugin.corpus import prepare as prepare_corpus
from rt_plugin.errors import UserError
from rt_plugin.glue import prepare as glue_data
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.pretrain import launch
from rt_plugin.text import records

BROKEN = "caf\xe9".encode("latin-1")


def prepare(*arguments):
    assert prepare_corpus.main([str(a) for a in arguments]) == 0


def error_of(capsys, *arguments) -> str:
    assert prepare_corpus.main([str(a) for a in arguments]) == 1
    *_, last = capsys.readouterr().err.rstrip().splitlines()
    assert last.startswith("rt-plugin prepare-corpus: error: ")
    return last


def files_of(folder, split="train"):
    return {kind: (folder / f"{split}.{kind}").read_bytes() for kind in ("bin", "idx")}


def items(prefix):
    dataset = MMapIndexedDataset(str(prefix))
    return [tuple(dataset[i].tolist()) for i in range(len(dataset))]


def documents(*prefixes):
    """How often each document, a tuple of sentences, is in the data sets."""
    groups = (itertools.groupby(items(prefix), key=lambda item: len(item) > 1) for prefix in prefixes)
    return collections.Counter(tuple(g) for group in groups for is_text, g in group if is_text)


@pytest.fixture(scope="module")
def train_text(tokenizer_folder):
    return tokenizer_folder / "train.txt"  # 200 KB: four pieces


@pytest.fixture(scope="module")
def whole(train_text, tokenizer_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    valid = tokenizer_folder / "valid.txt"
    prepare(train_text, "--valid", valid, "--tokenizer", tokenizer_folder, "--out", out, "--workers", 2)
    return out


def test_data_are_those_of_fairseq_preprocess(whole, data_bin):
    for split in ("train", "valid"):
        assert files_of(whole, split) == files_of(data_bin, split)
    for name in ("dict.txt", "sentencepiece.bpe.model", "text_normalization.json"):
        assert (whole / name).read_bytes() == (data_bin / name).read_bytes()


def test_data_without_a_validation_split_are_told(train_text, tokenizer_folder, tmp_path, capsys):
    for options, told in (((), True), (("--valid-documents", 1), False)):
        out = tmp_path / f"out{len(options)}"
        prepare(train_text, *options, "--tokenizer", tokenizer_folder, "--out", out, "--workers", 1)
        assert capsys.readouterr().err.rstrip().endswith("or --valid-documents, and --fresh") == told
    assert launch.main([str(tmp_path / "out0"), "--recipe", "tiny", "--save-dir", str(tmp_path / "run")]) == 1
    assert "no valid.bin there" in (error := capsys.readouterr().err)
    assert "rt-plugin prepare-corpus with --valid or --valid-documents" in error


def test_manifest_counts_what_is_there(whole, train_text, data_bin):
    manifest = json.loads((whole / "manifest.json").read_text())
    lines = train_text.read_text(encoding="utf-8").splitlines()
    counts, sentences = manifest["counts"]["train"], items(data_bin / "train")
    assert counts["sentences"] == sum(1 for line in lines if line)
    assert counts["blank_lines"] == sum(1 for line in lines if not line)
    assert counts["documents"] == documents(data_bin / "train").total()
    assert counts["tokens"] == sum(map(len, sentences))
    assert counts["unknown"] == sum(sentence.count(Dictionary().unk()) for sentence in sentences) > 0
    assert manifest["inputs"]["train"][0]["bytes"] == train_text.stat().st_size
    assert not (whole / "parts").exists()


def zst(data):
    for name in ("compression.zstd", "backports.zstd"):  # the standard library's since Python 3.14
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name).compress(data)
    pytest.skip("backports.zstd is not installed")


def zst_frames(data):
    return b"".join(zst(data[start : start + 30_000]) for start in range(0, len(data), 30_000))


@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("xz", lzma.compress), ("zst", zst), ("zst", zst_frames)]
)
def test_several_compressed_files_are_like_one(suffix, compress, whole, train_text, tokenizer_folder, tmp_path):
    first, second = train_text.read_bytes().rsplit(b"\n\n", 1)  # the separator itself is in neither file
    for name, data in (("a", first), ("b", second)):
        (tmp_path / f"{name}.{suffix}").write_bytes(compress(data))
    files = (tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    prepare(*files, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out", "--workers", 1)
    assert files_of(tmp_path / "out") == files_of(whole)


@pytest.mark.parametrize("compress", [zst, zst_frames])
def test_zst_that_is_cut_off_is_refused(compress, train_text, tokenizer_folder, tmp_path, capsys):
    data = compress(train_text.read_bytes())
    for length in (len(data) // 2, len(data) - 1):
        (tmp_path / "cut.zst").write_bytes(data[:length])
        options = (tmp_path / "cut.zst", "--out", tmp_path / str(length))
        for tokenizer in (("--tokenizer", tokenizer_folder), ("--vocab-size", 300)):
            error = error_of(capsys, *options, *tokenizer, "--fresh")
            assert "cut.zst: the archive is broken or cut off" in error
        assert not list((tmp_path / str(length)).glob("*.bin"))


def test_tokenizer_is_trained_on_zst(train_text, tmp_path):
    (tmp_path / "text.zst").write_bytes(zst(train_text.read_bytes()))
    for text in (train_text, tmp_path / "text.zst"):
        prepare(text, "--vocab-size", 300, "--normalization", "none", "--out", tmp_path / text.suffix[1:])
    names = ("sentencepiece.bpe.model", "dict.txt", "train.bin", "train.idx")
    assert all((tmp_path / "zst" / name).read_bytes() == (tmp_path / "txt" / name).read_bytes() for name in names)


def test_shards_share_the_documents(whole, train_text, tokenizer_folder, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(train_text, "--tokenizer", tokenizer_folder, "--out", out, "--shards", 2, "--workers", 2)
    folders = [out / "shard0", out / "shard1"]
    printed = capsys.readouterr().out
    assert f"data for fairseq-train: {folders[0]}:{folders[1]}" in printed
    parts = [documents(folder / "train") for folder in folders]
    assert parts[0] + parts[1] == documents(whole / "train")
    assert min(part.total() for part in parts) > 0.3 * (parts[0] + parts[1]).total()
    tokens = [sum(map(len, items(folder / "train"))) for folder in folders]
    assert json.loads((out / "manifest.json").read_text())["tokens_by_shard"] == tokens
    assert f"tokens in a shard: {min(tokens):,} to {max(tokens):,}" in printed
    assert (folders[1] / "dict.txt").read_bytes() == (whole / "dict.txt").read_bytes()


def test_small_files_share_the_shards(tokenizer_folder, tmp_path):
    files = [tmp_path / f"{i}.txt" for i in range(4)]
    for i, file in enumerate(files):
        file.write_text(f"Document {i}.\n\n")
    prepare(*files, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out", "--shards", 2, "--workers", 1)
    assert [documents(tmp_path / "out" / shard / "train").total() for shard in ("shard0", "shard1")] == [2, 2]


@pytest.mark.parametrize(
    ("text", "options"),
    [("A line of text.\n" * 20_000, ()), ("First.\n\n" + "Second.\n" * 20_000, ("--valid-documents", 1))],
)
def test_a_shard_without_documents_is_refused(text, options, tokenizer_folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(text)
    options = (tmp_path / "text.txt", "--tokenizer", tokenizer_folder, "--out", tmp_path / "out", *options)
    error = error_of(capsys, *options, "--shards", 2)
    assert "--shards 2: the training text fills only 1 of them" in error
    assert "use --shards 1" in error
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock"]
    prepare(*options, "--shards", 1)


@pytest.mark.parametrize("content", [b"", b" \n\n\t\n"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_without_text_is_refused(content, split, train_text, tokenizer_folder, tmp_path, capsys):
    blank = tmp_path / "blank.gz"
    blank.write_bytes(gzip.compress(content))
    files = (blank,) if split == "train" else (train_text, "--valid", blank)
    error = error_of(capsys, *files, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out")
    assert f"{blank}: no text for {split}, only white space" in error


def test_documents_of_two_files_stay_apart_where_a_cut_meets_the_end(tokenizer_folder, tmp_path):
    line = ("word " * 2**13)[: 2**15 - 1] + "\n"
    (tmp_path / "a.txt").write_text(line * 4)  # twice the size of a piece
    (tmp_path / "b.txt").write_text("Second document here\n")
    (tmp_path / "joined.txt").write_text(line * 4 + "\nSecond document here\n")
    options = ("--tokenizer", tokenizer_folder, "--workers", 1)
    prepare(tmp_path / "a.txt", tmp_path / "b.txt", *options, "--out", tmp_path / "two")
    prepare(tmp_path / "joined.txt", *options, "--out", tmp_path / "one")
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert sorted(map(len, documents(tmp_path / "two" / "train"))) == [1, 4]


def test_a_document_larger_than_pieces_stays_whole(train_text, tokenizer_folder, tmp_path):
    lines = [line for line in train_text.read_text(encoding="utf-8").split("\n") if line]
    large = tmp_path / "large.txt"
    large.write_text("\n".join(lines) + "\n\nThe second document.\n", encoding="utf-8")
    prepare(large, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out", "--shards", 2, "--workers", 2)
    sizes = sorted(
        len(document) for shard in ("shard0", "shard1") for document in documents(tmp_path / "out" / shard / "train")
    )
    assert sizes == [1, len(lines)]


def test_a_line_can_be_a_document(train_text, tokenizer_folder, tmp_path):
    lines = [line for line in train_text.read_text(encoding="utf-8").split("\n") if line][:50]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "blocks.txt").write_text("\n\n".join(lines) + "\n\n", encoding="utf-8")
    for kind in ("lines", "blocks"):
        options = ("--documents", kind, "--tokenizer", tokenizer_folder, "--out", tmp_path / kind)
        prepare(tmp_path / f"{kind}.txt", *options)
    assert files_of(tmp_path / "lines") == files_of(tmp_path / "blocks")


def test_whole_documents_are_held_out(whole, train_text, tokenizer_folder, tmp_path):
    chosen = []
    for seed in (1, 2):
        out = tmp_path / str(seed)
        options = ("--valid-documents", 7, "--seed", seed, "--shards", 2, "--workers", 2)
        prepare(train_text, "--tokenizer", tokenizer_folder, "--out", out, *options)
        train, valid = documents(out / "shard0/train", out / "shard1/train"), documents(out / "shard0/valid")
        assert valid.total() == 7
        assert train + valid == documents(whole / "train")
        chosen.append(valid)
    assert chosen[0] != chosen[1]


def assert_group_ends(group):
    """No worker process stays behind."""
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)


# Every worker finishes one part, then leaves half a file of the next one and stops, until it is killed.
STOPPING = """
import signal, sys
import numpy as np
from rt_plugin.corpus import parts, prepare
save = np.savez
def save_once(file, **arrays):
    if save_once.calls:
        file.write(b"PK half a file")
        file.flush()
        signal.pause()
    save_once.calls = 1
    save(file, **arrays)
save_once.calls = 0
parts.np.savez = save_once
sys.exit(prepare.main(sys.argv[1:]))
"""


def start(*arguments, stopping=False):
    command = [*(("-c", STOPPING) if stopping else ("-m", "rt_plugin", "prepare-corpus")), *map(str, arguments)]
    return subprocess.Popen([sys.executable, *command], start_new_session=True, stderr=subprocess.PIPE, text=True)


def killed_with_parts(out, *processes):
    """Kill processes of `STOPPING` when each has one part, and half of another; the names of what is finished."""
    while any(len(list(out.glob(pattern))) < len(processes) for pattern in ("parts/*.npz", "parts/.*.tmp")):
        assert all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes]
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        assert process.wait() == -signal.SIGKILL
        assert_group_ends(process.pid)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("parts/*.npz")}
    assert len(finished) == len(processes)
    assert not (out / "manifest.json").exists()
    return finished


def test_killed_run_continues_with_what_is_missing(whole, train_text, tokenizer_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = (train_text, "--valid", tokenizer_folder / "valid.txt", "--tokenizer", tokenizer_folder, "--out", out)
    finished = killed_with_parts(out, start(*options, "--workers", 1, stopping=True))
    encode = corpus.Worker.__call__

    def encode_and_note(worker, part, chunks):  # in a worker process, which inherits this by fork
        encode(worker, part, chunks)
        with (tmp_path / "encoded").open("a") as file:
            file.write(f"{part.name}.npz\n")

    monkeypatch.setattr(corpus.Worker, "__call__", encode_and_note)
    prepare(*options)
    assert set(finished).isdisjoint((tmp_path / "encoded").read_text().split())
    for split in ("train", "valid"):
        assert files_of(out, split) == files_of(whole, split)


def test_finished_data_are_left_alone_and_changes_are_named(train_text, tokenizer_folder, tmp_path, capsys):
    source, out = tmp_path / "text.txt", tmp_path / "out"
    source.write_bytes(train_text.read_bytes()[:5000])
    options = ("--tokenizer", tokenizer_folder, "--out", out)
    prepare(source, *options)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("[!.]*")}
    prepare(source.rename(tmp_path / "moved.txt"), *options, "--workers", 3)
    assert "nothing to do" in capsys.readouterr().err
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("[!.]*")} == before
    source.write_bytes(train_text.read_bytes()[:5001])
    error = error_of(capsys, source, *options, "--documents", "lines")
    assert "text.txt has changed" in error
    assert "--documents was blocks, is lines" in error
    assert "train files: 1 then, 2 now" in error_of(capsys, source, source, *options)
    prepare(source, *options, "--fresh")
    assert json.loads((out / "manifest.json").read_text())["inputs"]["train"][0]["bytes"] == 5001


def test_lost_data_are_made_again(train_text, tokenizer_folder, tmp_path, capsys):
    out = tmp_path / "out"
    files = (train_text, "--valid", tokenizer_folder / "valid.txt")
    options = (*files, "--vocab-size", 300, "--normalization", "none", "--out", out, "--shards", 2)
    prepare(*options)
    before = {path: path.read_bytes() for path in out.glob("shard*/*")}
    tokenizer = (out / "sentencepiece.bpe.model").stat().st_mtime_ns
    (out / "shard0" / "train.bin").unlink()
    (out / "shard1" / "train.idx").write_bytes(b"MMIDIDX")
    prepare(*options)
    said = capsys.readouterr().err
    assert "shard0/train.bin, shard1/train.idx" in said
    assert "nothing to do" not in said
    assert {path: path.read_bytes() for path in out.glob("shard*/*")} == before
    assert (out / "sentencepiece.bpe.model").stat().st_mtime_ns == tokenizer
    (out / "dict.txt").unlink()
    prepare(*options)
    assert f"{out}: dict.txt: missing" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.glob("shard*/*")} == before
    prepare(*options)
    assert "nothing to do" in capsys.readouterr().err


def test_interrupted_fresh_start_does_not_pass_for_finished(train_text, tokenizer_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = list(map(str, (train_text, "--tokenizer", tokenizer_folder, "--out", out, "--shards", 2)))
    prepare(*options)

    def interrupt(path, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_corpus.shutil, "rmtree", interrupt)
        assert prepare_corpus.main([*options, "--fresh"]) == 130
    assert not (out / "manifest.json").exists()
    prepare(*options, "--fresh")
    assert (out / "manifest.json").exists()


def test_tokenizer_is_trained_on_the_text(tmp_path, train_text):
    prepare(train_text, "--vocab-size", 300, "--out", tmp_path / "out", "--normalization", "none")
    assert len((tmp_path / "out" / "dict.txt").read_text(encoding="utf-8").splitlines()) == 297
    assert '"none"' in (tmp_path / "out" / "text_normalization.json").read_text()
    assert 0 < json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["train"]["unknown_rate"] < 0.05


@pytest.fixture
def gpt2_bpe(tmp_path):
    """GPT-2 BPE files of 259 tokens."""
    letters = list(bytes_to_unicode().values())
    merges = ["t h", "Ġ th", "Ġth e"]
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges)]
    (tmp_path / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return tmp_path / "encoder.json", tmp_path / "vocab.bpe"


def test_gpt2_files_give_the_data_of_fairseq(gpt2_bpe, train_text, tmp_path):
    lines = train_text.read_text(encoding="utf-8").split("\n")[:40]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare(tmp_path / "text.txt", "--gpt2-bpe", *gpt2_bpe, "--out", tmp_path / "out")
    dictionary, gpt2 = Dictionary.load(str(tmp_path / "out" / "dict.txt")), get_encoder(*map(str, gpt2_bpe))
    expected = [
        dictionary.encode_line(" ".join(map(str, gpt2.encode(" ".join(line.split())))), add_if_not_exist=False)
        for line in lines
    ]
    assert items(tmp_path / "out" / "train") == [tuple(line.tolist()) for line in expected]
    assert dictionary.index("258") in set(itertools.chain.from_iterable(items(tmp_path / "out/train")))


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"a": "b"}'])
def test_other_json_in_place_of_gpt2_files_is_one_line(content, gpt2_bpe, train_text, tmp_path, capsys):
    gpt2_bpe[0].write_text(content)
    error = error_of(capsys, train_text, "--gpt2-bpe", *gpt2_bpe, "--out", tmp_path / "out")
    assert "encoder.json and " in error and "not GPT-2 BPE files (" in error


def test_model_of_gpt2_data_is_loaded_with_its_files_and_not_for_glue(gpt2_bpe, train_text, tmp_path, capsys):
    lines = train_text.read_text(encoding="utf-8").split("\n")[:400]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data, model = tmp_path / "data", tmp_path / "model"
    prepare(tmp_path / "text.txt", "--valid", tmp_path / "text.txt", "--gpt2-bpe", *gpt2_bpe, "--out", data)
    run_command("fairseq-train", data, *TRAINING, "--save-dir", model)
    names = {"gpt2_encoder_json": str(gpt2_bpe[0]), "gpt2_vocab_bpe": str(gpt2_bpe[1])}
    loaded = RecurrentRobertaModel.from_pretrained(str(model), bpe="gpt2", **names)
    assert tuple(loaded.encode(lines[0]).tolist()[1:]) == items(data / "train")[0]
    assert loaded.decode(loaded.encode(lines[0])) == lines[0]
    capsys.readouterr()
    assert glue_data.main([str(SAMPLE), str(tmp_path / "glue"), "--model", str(model), "--tasks", "QNLI"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{model / 'sentencepiece.bpe.model'}: no sentencepiece model there" in error


def test_what_looks_like_a_slip_is_said(tmp_path, capsys):
    """The same text twice, by its content, and a language that Moses has no rules for."""
    first, again, valid = (tmp_path / f"{name}.txt" for name in ("first", "again", "valid"))
    first.write_text((SAMPLE / "train.txt").read_text()[:60_000])
    for path in (again, valid):
        path.write_bytes(first.read_bytes())
    prepare(first, again, "--valid", valid, "--vocab-size", 300, "--language", "tlh", "--out", tmp_path / "out")
    said = capsys.readouterr().err
    assert f"{again}: the same text as {first}; it counts twice in the train data" in said
    assert f"{valid}: the same text as {again}; the valid loss will be of text that was trained on" in said
    assert "--language tlh: Moses has no rules for it, and takes those of English" in said
    prepare(first, "--vocab-size", 300, "--language", "de", "--out", tmp_path / "other")
    said = capsys.readouterr().err
    assert "the same text" not in said and "Moses" not in said


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("no.txt", None, (), "no.txt: no such file"),
        (".", None, (), ": is a folder, expected files; name those in it, such as "),
        ("a.txt.bz2", b"BZh9", (), "a.txt.bz2: .bz2 is not read; expected text, or text packed as .gz, .xz, .zst"),
        ("empty.txt", b"", (), "empty.txt: the file is empty"),
        ("late.txt", b"A line of text.\n\n" * 20000 + BROKEN, (), "late.txt, line 40001: not UTF-8 (byte 0xe9"),
        (
            "cut.gz",
            gzip.compress(b"A line of text.\n" * 99, mtime=0)[:-9],
            (),
            "cut.gz: the archive is broken or cut off",
        ),
        ("plain.xz", b"A line of text.\n", (), "plain.xz: the archive is broken or cut off"),
        ("few.txt", b"One.\n\nTwo.\n", ("--valid-documents", 2), "fewer, or --documents lines where each line is"),
        (
            "1.txt",
            b"A.\nB.\n",
            ("--valid-documents", 2, "--documents", "lines"),
            "documents to train on (2); hold out fewer",
        ),
        ("a.txt", b"One.\n", ("--normalization", "none"), "--normalization none: "),
        ("a.txt", b"One.\n", ("--dictionary", REPOSITORY / "README.md"), "not a fairseq dictionary"),
    ],
)
def test_bad_input_ends_in_one_line(name, content, options, message, tokenizer_folder, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    error = error_of(capsys, path, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out", *options)
    assert message in error


def test_a_folder_of_something_else_is_refused(train_text, tokenizer_folder, tmp_path, capsys):
    (tmp_path / "notes.md").write_text("mine")
    error = error_of(capsys, train_text, "--tokenizer", tokenizer_folder, "--out", tmp_path)
    assert "holds notes.md but no prepared data; choose another --out" in error


def test_a_folder_with_a_colon_is_refused(train_text, tokenizer_folder, tmp_path, capsys):
    error = error_of(capsys, train_text, "--tokenizer", tokenizer_folder, "--out", tmp_path / "12:30" / "out")
    assert "12:30/out: holds a ':', which joins folders of data; give another folder" in error
    assert not (tmp_path / "12:30").exists()


@pytest.mark.parametrize("content", ["{}", "[]", '{"name": "a site", "icons": []}'])
@pytest.mark.parametrize("file", ["manifest.json", "parts/plan.json"])
def test_a_manifest_of_something_else_is_refused(file, content, train_text, tokenizer_folder, tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    (tmp_path / file).write_text(content)
    error = error_of(capsys, train_text, "--tokenizer", tokenizer_folder, "--out", tmp_path)
    assert f"{tmp_path / file}: not of prepared data" in error and "choose another --out, or --fresh" in error
    assert (tmp_path / file).read_text() == content


def test_a_file_of_two_splits_counts_in_both(tokenizer_folder, tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    out = tmp_path / "out"
    prepare(tmp_path / "a.txt", "--valid", tmp_path / "a.txt", "--tokenizer", tokenizer_folder, "--out", out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert [manifest["counts"][split]["sentences"] for split in ("train", "valid")] == [2, 2]
    assert manifest["counts_by_file"][str(tmp_path / "a.txt")]["sentences"] == 4


def test_a_file_without_text_is_named(tokenizer_folder, tmp_path, capsys):
    (tmp_path / "blank.txt").write_text(" \n\n\t\n")
    (tmp_path / "text.txt").write_text("A line of text.\n")
    files = (tmp_path / "blank.txt", tmp_path / "text.txt")
    prepare(*files, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out")
    assert "blank.txt: holds no text, only white space" in capsys.readouterr().out


NEW_TOKENIZER = ("--vocab-size", 300, "--normalization", "none")


@pytest.fixture(scope="module")
def whole_spread(train_text, tmp_path_factory):
    """What one machine makes of two files, with a tokenizer trained on them, shards and held-out documents."""
    folder = tmp_path_factory.mktemp("spread")
    first, second = train_text.read_bytes().rsplit(b"\n\n", 1)
    texts = [folder / "a.txt", folder / "b.txt.gz"]
    texts[0].write_bytes(first)
    texts[1].write_bytes(gzip.compress(second * 3 + b"\n\n" + first))
    options = (*texts, "--valid-documents", 9, "--shards", 2)
    prepare(*options, *NEW_TOKENIZER, "--out", folder / "out", "--workers", 2)
    return (*options, "--tokenizer", folder / "out"), folder / "out"


def data_files(out):
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.suffix in (".bin", ".idx", ".txt")}


def test_two_machines_make_what_one_does_though_both_are_killed(whole_spread, tmp_path):
    """Two processes stand in for them. The tokenizer is trained once, what is finished is not done again."""
    (*options, _, _), expected = whole_spread
    options, out = (*options, *NEW_TOKENIZER), tmp_path / "out"

    def shares(**how):
        return [start(*options, "--out", out, "--part", f"{i}/2", "--workers", 1, **how) for i in (1, 2)]

    processes = shares(stopping=True)
    finished = killed_with_parts(out, *processes)
    said = [process.stderr.read() for process in processes]
    assert sorted("training a tokenizer" in text for text in said) == [False, True], said
    ended = [(process.communicate()[1], process.returncode) for process in shares()]
    assert [status for _, status in ended] == [0, 0], ended
    assert any("all are done; then: the same command with --merge" in text for text, _ in ended), ended
    assert not any("training a tokenizer" in text for text, _ in ended), ended
    assert not (out / "manifest.json").exists()
    assert {name: (out / "parts" / name).stat().st_mtime_ns for name in finished} == finished
    prepare(*options, "--out", out, "--merge")
    assert data_files(out) == data_files(expected)
    a, b = (json.loads((folder / "manifest.json").read_text()) for folder in (out, expected))
    for name in ("options", "inputs", "counts", "counts_by_file", "tokens_by_shard"):
        assert a[name] == b[name]


def test_a_machine_says_what_it_waits_for(whole_spread, tmp_path, monkeypatch, capsys):
    options, _ = whole_spread
    (tmp_path / "out").mkdir()
    with contextlib.ExitStack() as first:
        first.enter_context(only_user_of(tmp_path / "out", ""))

        def report(line):
            print(line)
            first.close()  # else this would wait for ever

        monkeypatch.setattr(prepare_corpus.commands, "report", report)
        prepare(*options, "--out", tmp_path / "out", "--part", "1/2", "--workers", 1)
    said = capsys.readouterr().out
    assert "waiting for another machine, which looks through the text or trains the tokenizer" in said


def test_one_machine_does_not_delete_what_others_have_done(whole_spread, tmp_path, capsys):
    options, _ = whole_spread
    prepare(*options, "--out", tmp_path, "--part", "1/2", "--workers", 1)
    done = sorted(tmp_path.rglob("*"))
    for which in (("--part", "1/2"), ("--merge",)):
        with pytest.raises(SystemExit):
            prepare_corpus.main([*map(str, options), "--out", str(tmp_path), "--fresh", *which])
        assert "--fresh deletes what the other machines have done" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == done


def test_parts_share_the_work(whole_spread, tmp_path, capsys):
    options, expected = whole_spread
    out, done = tmp_path / "out", set()
    for i in (3, 1, 2):
        assert "of the parts are not done yet" in error_of(capsys, *options, "--out", out, "--merge")
        prepare(*options, "--out", out, "--part", f"{i}/3", "--workers", 1)
        now = {path.name for path in out.glob("parts/*.npz")}
        assert len(now) > len(done)
        done = now
        others = [f"{n}/3" for n in (1, 2) if n != i and (n == 2 or i == 3)]
        said = capsys.readouterr().err
        assert f"part {i} of 3 is done; " + (f"not yet done: {', '.join(others)}" if others else "all are done") in said
    assert "--shards was 2, is 3" in error_of(capsys, *options, "--out", out, "--merge", "--shards", 3)
    prepare(*options, "--out", out, "--merge")
    assert data_files(out) == data_files(expected)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "-1/2"])
def test_a_part_that_cannot_be(part, train_text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepare_corpus.main([str(train_text), "--out", str(tmp_path / "out"), "--vocab-size", "300", f"--part={part}"])
    assert "expected I/N" in capsys.readouterr().err


def test_two_runs_for_one_part_or_beside_a_part_are_refused(whole_spread, tmp_path, capsys):
    options, _ = whole_spread
    out = tmp_path / "out"
    prepare(*options, "--out", out, "--part", "1/2")
    with only_user_of(out, "", out / ".part-1-of-2.lock"):
        assert "works there" in error_of(capsys, *options, "--out", out, "--part", "1/2")
        assert "works there" in error_of(capsys, *options, "--out", out, "--merge")
        assert "works there" in error_of(capsys, *options, "--out", out)
        prepare(*options, "--out", out, "--part", "2/2")
    prepare(*options, "--out", out)


def test_small_files_are_one_part(tokenizer_folder, tmp_path):
    files = [tmp_path / f"{i}.txt" for i in range(40)]
    for i, file in enumerate(files):
        file.write_text(f"Document {i}.\n\n" if i % 3 else f"Document {i}.\nTwo lines.")
    (tmp_path / "joined.txt").write_text("\n\n".join(file.read_text().rstrip() for file in files) + "\n\n")
    options = ("--tokenizer", tokenizer_folder, "--workers", 1)
    prepare(*files, *options, "--out", tmp_path / "out", "--part", "1/1")
    assert [path.name for path in tmp_path.glob("out/parts/*.npz")] == ["train-000000.npz"]
    prepare(*files, *options, "--out", tmp_path / "out", "--merge")
    prepare(tmp_path / "joined.txt", *options, "--out", tmp_path / "one")
    assert documents(tmp_path / "out" / "train") == documents(tmp_path / "one" / "train")
    by_file = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts_by_file"]
    assert [counts["sentences"] for counts in by_file.values()] == [1 if i % 3 else 2 for i in range(40)]


def json_lines(texts, field="text"):
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()


def parquet(texts, field="text"):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    arrow_parquet = importlib.import_module("pyarrow.parquet")
    buffer = io.BytesIO()
    table = arrow.table({"id": list(range(len(texts))), field: list(texts)})
    arrow_parquet.write_table(table, buffer, row_group_size=50)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def texts(train_text):
    """Documents, some with blank lines within, and one without text."""
    documents = train_text.read_text(encoding="utf-8").split("\n\n")
    return ["", *(text.replace("\n", "\n \n", 1) if i % 5 == 0 else text for i, text in enumerate(documents))]


@pytest.mark.parametrize("documents_are", ["blocks", "lines"])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("corpus.jsonl", json_lines),
        ("corpus.json.gz", lambda texts: gzip.compress(json_lines(texts))),
        ("corpus.parquet", parquet),
    ],
)
def test_records_are_documents(name, write, documents_are, texts, tokenizer_folder, tmp_path):
    (tmp_path / name).write_bytes(write(texts))
    lines = [[line for line in text.split("\n") if line.strip()] for text in texts]
    plain = "".join(
        "\n".join(text) + "\n\n" if documents_are == "blocks" else " ".join(text) + "\n" for text in lines if text
    )
    (tmp_path / "plain.txt").write_text(plain, encoding="utf-8")
    options = ("--documents", documents_are, "--tokenizer", tokenizer_folder, "--valid-documents", 5, "--shards", 2)
    for source, out in ((name, "records"), ("plain.txt", "plain")):
        prepare(tmp_path / source, *options, "--out", tmp_path / out)
    if name.endswith(".parquet"):  # chunks are cut by the size of the file, which is another
        pairs = [(tmp_path / out / s / "train" for s in ("shard0", "shard1")) for out in ("records", "plain")]
        assert documents(*pairs[0]) == documents(*pairs[1])
    else:
        assert documents(tmp_path / "records/shard0/valid") == documents(tmp_path / "plain/shard0/valid")


def test_tokenizer_is_trained_on_records(texts, tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(json_lines(texts, "body"))
    options = ("--text-field", "body", "--vocab-size", 300, "--normalization", "none")
    prepare(tmp_path / "corpus.jsonl", *options, "--out", tmp_path / "out")
    (tmp_path / "plain.txt").write_text("\n\n".join(texts), encoding="utf-8")
    prepare(tmp_path / "plain.txt", *options, "--out", tmp_path / "plain")
    assert (tmp_path / "out" / "dict.txt").read_bytes() == (tmp_path / "plain" / "dict.txt").read_bytes()
    assert documents(tmp_path / "out" / "train").total() == len([text for text in texts if text.strip()])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "One."}\n{"text": ', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "One.", "id": 3}\n', "no text in a field 'text' (there: body, id); name the field with"),
        ("a.jsonl", b'["One."]\n', "no text in a field 'text' (there: list)"),
        ("a.jsonl", b'{"text": "  "}\n', "a.jsonl: no text for train"),
        ("a.jsonl", b'{"text": null}\n', "a.jsonl: no text for train"),
        ("a.jsonl", b'{"text": ["One."]}\n', "a.jsonl, line 1: field 'text' holds list, expected text; name another"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.parquet", b"PAR1 no such thing", "a.parquet: the parquet file is broken or cut off"),
        ("b.parquet", lambda: parquet(["One."], "body"), "no column 'text' (there: id, body); name the column with"),
        ("d.parquet", lambda: parquet([None, "  "]), "d.parquet: no text for train"),
        ("c.parquet", lambda: parquet([3, 4]), "column 'text' holds int, expected text"),
    ],
)
def test_bad_records_end_in_one_line(name, content, message, tokenizer_folder, tmp_path, capsys):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content())
    assert message in error_of(capsys, tmp_path / name, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out")


def test_records_that_cannot_be_opened_are_named(tmp_path):
    for name in ("no.parquet", "no.jsonl"):
        with pytest.raises(UserError, match=rf"{name}: cannot read the .*No such file"):
            next(records.read_document_lines(tmp_path / name))


def test_bad_text_beside_records_is_named_when_a_tokenizer_is_trained(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(json_lines(["One.", "Two."]))
    (tmp_path / "b.txt").write_bytes(b"A line of text.\n" + BROKEN)
    files = (tmp_path / "a.jsonl", tmp_path / "b.txt")
    error = error_of(capsys, *files, "--vocab-size", 300, "--out", tmp_path / "out")
    assert "b.txt, line 2: not UTF-8 (byte 0xe9" in error


def test_a_record_that_does_not_end_is_refused(tokenizer_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_RECORD", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"word " * (1 << 18))
    error = error_of(capsys, tmp_path / "a.jsonl", "--tokenizer", tokenizer_folder, "--out", tmp_path / "out")
    assert "a.jsonl, line 1: longer than 1 MiB" in error


def test_parquet_without_its_package(tokenizer_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = error_of(capsys, tmp_path / "a.parquet", "--tokenizer", tokenizer_folder, "--out", tmp_path / "out")
    assert "run: pip install pyarrow" in error


def test_documents_that_occur_twice_are_dropped_and_counted(texts, tokenizer_folder, tmp_path, capsys):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    texts = [text for text in texts if text.strip()]
    once = [tuple(line for line in text.split("\n") if line.strip()) for text in texts]
    different = len(set(once))
    files[0].write_text("\n\n".join("\n".join(lines) for lines in once), encoding="utf-8")
    again = [once[3], once[1], ("A document", "of its own"), once[3], ("A document",)]
    files[1].write_text("\n\n\n".join("\n".join(lines) for lines in again), encoding="utf-8")
    options = ("--tokenizer", tokenizer_folder, "--drop-duplicates")
    for shards, held_out in ((1, ()), (2, ("--valid-documents", 9))):
        out = tmp_path / str(shards)
        prepare(*files, *options, "--shards", shards, *held_out, "--out", out)
        repeated = len(once) + 5 - different - 2
        assert f"{repeated} documents left out that are equal to an earlier one" in capsys.readouterr().out
        folders = [out] if shards == 1 else [out / "shard0", out / "shard1"]
        found = documents(*(folder / "train" for folder in folders))
        if held_out:
            valid = documents(out / "shard0" / "valid")
            assert valid.total() == 9
            found += valid
        assert found.total() == different + 2
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        assert sum(c["documents"] for c in counts.values()) == different + 2
        assert counts["train"]["repeated_documents"] == repeated


@pytest.mark.parametrize("options", [("--drop-duplicates",), ("--valid-documents", 4), ()])
def test_a_restart_reads_only_what_changed(options, train_text, tokenizer_folder, tmp_path, monkeypatch):
    """Looking through the text is interrupted; what was found before is not read again, but for a file that changed."""
    monkeypatch.setattr(inputs, "_TOGETHER", 1)
    monkeypatch.setattr(inputs, "_WORTH_KEEPING", 1)
    files = [tmp_path / f"{i}.txt" for i in range(4)]
    for file in files:
        file.write_bytes(train_text.read_bytes()[:20_000])
    looked, look = [], inputs._look_through_file

    def note(path, form):
        if path == files[3] and len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(path)
        return look(path, form)

    monkeypatch.setattr(inputs, "_look_through_file", note)
    arguments = [*files, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out", "--workers", 1, *options]
    assert prepare_corpus.main([str(a) for a in arguments]) == 130
    files[1].write_bytes(train_text.read_bytes()[:25_000])
    prepare(*arguments)
    assert looked == [*files[:3], files[1], files[3]]
    whole = [*arguments[:4], *arguments[4:6], "--out", tmp_path / "whole", *arguments[8:]]
    prepare(*whole)
    assert data_files(tmp_path / "out") == data_files(tmp_path / "whole")


def stopped(path, form):
    time.sleep(300)
    (path.parent / "read to its end").touch()


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (lambda *_: (_ for _ in ()).throw(UserError("bad")), "bad"),
        (
            lambda *_: os.kill(os.getpid(), signal.SIGKILL),
            "a worker process was killed, perhaps because memory ran out",
        ),
    ],
)
def test_processes_that_look_through_files_end_with_the_first_error(
    first, message, train_text, tokenizer_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(inputs, "_TOGETHER", 1)
    monkeypatch.setattr(inputs, "_WORTH_KEEPING", 1)
    files = [tmp_path / f"{i}.txt" for i in range(2)]
    for file in files:
        file.write_bytes(train_text.read_bytes()[:20_000])
    look = {files[0]: first, files[1]: stopped}
    monkeypatch.setattr(inputs, "_look_through_file", lambda path, form: look[path](path, form))
    error = error_of(capsys, *files, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out", "--workers", 2)
    assert message in error
    assert not (tmp_path / "read to its end").exists()


def test_what_is_known_of_a_file_is_its_checksum_whatever_its_kind(texts, tokenizer_folder, tmp_path):
    plain = "\n\n".join(texts).encode()
    kinds = {"a.txt": plain, "a.gz": gzip.compress(plain) + bytes(99), "a.xz": lzma.compress(plain)}
    kinds |= {"a.jsonl": json_lines(texts), "a.json.xz": lzma.compress(json_lines(texts))}
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
    prepare(*(tmp_path / name for name in kinds), "--tokenizer", tokenizer_folder, "--out", tmp_path / "out")
    noted = json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]["train"]
    assert [x["sha256"] for x in noted] == [hashlib.sha256(content).hexdigest() for content in kinds.values()]


def test_a_damaged_note_of_a_file_is_made_anew(train_text, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_WORTH_KEEPING", 1)
    options = (train_text, "--tokenizer", tokenizer_folder, "--workers", 1)
    prepare(*options, "--out", tmp_path / "out", "--part", "1/2")
    (note,) = (tmp_path / "out" / "parts" / "inputs").glob("*.npz")
    note.write_bytes(note.read_bytes()[:-20])
    prepare(*options, "--out", tmp_path / "out", "--part", "2/2")
    prepare(*options, "--out", tmp_path / "out", "--merge")
    prepare(*options, "--out", tmp_path / "whole")
    assert data_files(tmp_path / "out") == data_files(tmp_path / "whole")


def test_finished_data_are_not_read_again_to_see_that_nothing_changed(
    train_text, tokenizer_folder, tmp_path, monkeypatch, capsys
):
    options = (train_text, "--tokenizer", tokenizer_folder, "--out", tmp_path / "out")
    prepare(*options)

    def read(path):
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(prepare_corpus, "sha256", read)
    monkeypatch.setattr(prepare_corpus, "look_through", read)
    prepare(*options)
    assert "nothing to do" in capsys.readouterr().err
