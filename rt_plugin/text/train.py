"""Trains a sentencepiece tokenizer: writes sentencepiece.bpe.model, text_normalization.json and dict.txt into a folder.

Example: rt-plugin train-tokenizer examples/quickstart/train.txt --folder runs/tokenizer --vocab-size 8000
"""

import argparse
import io
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rt_plugin.console import commands
from rt_plugin.console.files import writing
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, TOKENIZER_FILE
from rt_plugin.text.normalization import NORMALIZATIONS, TextNormalizer
from rt_plugin.text.raw import read_lines
from rt_plugin.text.records import refuse_records
from rt_plugin.text.tokenizer import Tokenizer

MODEL_TYPES = ("unigram", "bpe")
_LONGEST_SENTENCE = 4192  # bytes of UTF-8; sentencepiece leaves longer ones out without a word


def train_sentencepiece(
    inputs: Iterable[str | os.PathLike],
    folder: str | os.PathLike,
    vocab_size: int,
    normalization: str = "moses",
    language: str = "en",
    model_type: str = "unigram",
    max_sentences: int = 5_000_000,
    seed: int = 1,
    threads: int = 4,
    read: Callable[[str | os.PathLike], Iterable[str]] = read_lines,
) -> Tokenizer:
    """Train a tokenizer and write tokenizer, normalisation and dictionary into a folder.

    The same inputs and arguments give the same files. `dict.txt` lists the pieces from sentencepiece id 3 on, so that
    fairseq's ids are those of XLM-R: <s> 0, <pad> 1, </s> 2, <unk> 3, pieces from 4 on. Its counts are all 1; fairseq
    reads them only for `--freq-weighted-replacement`.

    Args:
        inputs: text files, UTF-8, one sentence or paragraph a line.
        vocab_size: pieces including sentencepiece's <unk>, <s> and </s>.
        normalization, language: see `TextNormalizer`.
        model_type: "unigram" (default) or "bpe".
        max_sentences: train on a random sample of this many lines, default 5,000,000; 0 for all (memory grows).
        seed: of that sample, default 1. The same lines in other files give the same sample.
        threads: default 4; the result may depend on it, so it does not follow the machine.
        read: gives the lines of an input, default `read_lines`.

    Returns:
        The tokenizer.

    Raises:
        UserError: an input is missing, empty or not UTF-8, or the vocabulary does not fit the text.
    """
    if max_sentences < 0:
        raise UserError(f"--max-sentences {max_sentences}: expected a whole number, at least 0 (0 for all)")
    if model_type not in MODEL_TYPES:
        raise UserError(f"sentencepiece model type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
    import sentencepiece

    normalizer = TextNormalizer(normalization, language)
    model = io.BytesIO()
    input_errors: list[UserError] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_normalized_sentences(inputs, normalizer, max_sentences, seed, read, input_errors),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            num_threads=threads,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise (input_errors or [UserError(_why_training_failed(error, vocab_size))])[0] from None
    return _save_trained(model.getvalue(), normalizer, Path(folder))


def _normalized_sentences(
    inputs: Iterable[str | os.PathLike],
    normalizer: TextNormalizer,
    max_sentences: int,
    seed: int,
    read: Callable[[str | os.PathLike], Iterable[str]],
    errors: list[UserError],
) -> Iterator[str]:
    """A sample of the non-blank lines of all inputs; a mistake goes into `errors`, too: sentencepiece stops, but hides
    it. sentencepiece's own sample does not follow from the seed that it is given.
    """
    try:
        lines = (line for path in inputs for line in read(path) if line.strip())
        for line in _sample(lines, max_sentences, seed) if max_sentences else lines:
            if sentence := normalizer.normalize(line):
                yield from _parts(sentence)
    except UserError as error:
        errors.append(error)
        raise


def _parts(sentence: str) -> Iterator[str]:
    """A sentence in parts that sentencepiece does not leave out: cut at spaces, or within a word longer than a part."""
    data = sentence.encode()
    start = 0
    while len(data) - start > _LONGEST_SENTENCE:
        end = data.rfind(b" ", start, start + _LONGEST_SENTENCE + 1)
        if end <= start:
            end = start + _LONGEST_SENTENCE
            while data[end] & 0xC0 == 0x80:  # of a character of several bytes, and not its first
                end -= 1
        yield data[start:end].decode()
        start = end
    yield data[start:].decode()


def _sample(lines: Iterable[str], size: int, seed: int) -> Iterator[str]:
    """`size` of the lines with equal chances, or all where there are fewer (Vitter's algorithm R): read once, since a
    pipe cannot be read again.
    """
    sample, draw = [], random.Random(seed)
    for number, line in enumerate(lines):
        if number < size:
            sample.append(line)
        elif (place := draw.randrange(number + 1)) < size:
            sample[place] = line
    sample.reverse()
    while sample:
        yield sample.pop()  # sentencepiece keeps its own


def _why_training_failed(error: Exception, vocab_size: int) -> str:
    message = str(error)
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocabulary size {vocab_size} is below the {found[1]} characters that the text needs; "
            "choose a larger --vocab-size"
        )
    if found := re.search(r"value <= (\d+)", message):
        return f"vocabulary size {vocab_size} is more than the text can fill; choose --vocab-size {found[1]} or less"
    return f"sentencepiece could not train a tokenizer of {vocab_size} pieces: {' '.join(message.split())}"


def _save_trained(model: bytes, normalizer: TextNormalizer, folder: Path) -> Tokenizer:
    # The old tokenizer goes first and the new one comes last: whoever finds a tokenizer finds the dictionary and the
    # normalisation of the same training beside it, also after an interruption.
    (folder / TOKENIZER_FILE).unlink(missing_ok=True)
    tokenizer = Tokenizer(model, normalizer)
    with writing(folder / DICTIONARY_FILE) as file:
        file.write(tokenizer.dictionary().encode())
    tokenizer.save(folder)
    return tokenizer


def add_training_options(group: argparse._ActionsContainer) -> None:
    """--language, --model-type, --max-sentences: what every command that trains a tokenizer takes."""
    group.add_argument("--language", default="en", help="for Moses' rules (default: %(default)s)")
    group.add_argument("--model-type", choices=MODEL_TYPES, default="unigram", help="default: %(default)s")
    group.add_argument(
        "--max-sentences",
        type=int,
        default=5_000_000,
        help="train the tokenizer on a random sample of this many lines, 0 for all (default: %(default)s)",
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("train-tokenizer", __doc__)
    parser.add_argument("inputs", nargs="+", metavar="TEXT", help="UTF-8 text, one sentence or paragraph a line")
    parser.add_argument("--folder", required=True, help="where the three files go; made if needed")
    parser.add_argument(
        "--vocab-size", type=int, required=True, help="pieces, with sentencepiece's own <unk>, <s> and </s>"
    )
    parser.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        default="moses",
        help="what is done to text first, here and wherever the tokenizer is used (default: %(default)s, "
        "Moses' punctuation normalisation)",
    )
    add_training_options(parser)
    parser.add_argument("--seed", type=int, default=1, help="of that sample (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="default: %(default)s; another number may change a tie")
    return parser.parse_args(argv)


def _train(args: argparse.Namespace) -> None:
    for path in args.inputs:
        refuse_records(Path(path))
    TextNormalizer(args.normalization, args.language).tell_of_missing_rules(commands.report)
    train_sentencepiece(**vars(args))
    print(f"{args.folder}: a tokenizer of {args.vocab_size:,} pieces ({args.model_type}, {args.normalization})")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("train-tokenizer", lambda: _train(args))
