"""Raw text -> the data that rt_masked_lm trains on: tokenizer, dictionary and binarised splits.

    OUT/dict.txt, sentencepiece.bpe.model, text_normalization.json   the tokenizer (or GPT-2's encoder.json, vocab.bpe)
    OUT/{train,valid,test}.{bin,idx}                                 the data
    OUT/shard0/..., OUT/shard1/...                                   with --shards: tokenizer and data by shards
    OUT/manifest.json                                                inputs, options, counts, files, all with checksums
    OUT/SHA256SUMS                                                   the same of each folder's files; training compares

The data are those of sentencepiece encoding and fairseq-preprocess, token for token. An interrupted run continues when
it is started again; text files may be compressed (.gz, .xz, .zst).

Example: rt-plugin prepare-corpus examples/quickstart/train.txt --valid examples/quickstart/valid.txt \\
             --vocab-size 8000 --out runs/corpus
"""

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rt_plugin._version import __version__
from rt_plugin.console import commands
from rt_plugin.console.checksums import CHECKSUMS_FILE, stamp, write_checksums
from rt_plugin.console.files import replacing, sha256
from rt_plugin.console.locks import in_turn, only_user_of
from rt_plugin.console.options import check_values
from rt_plugin.console.tables import plain_table
from rt_plugin.corpus.encoders import GPT2_FILES, TOKENIZER_FILES, gpt2_dictionary, load_line_encoder
from rt_plugin.corpus.inputs import Form, Input, look_through, repeated_documents, state_of
from rt_plugin.corpus.parts import (
    FinishedParts,
    Layout,
    Part,
    check_shards,
    cut_into_parts,
    dataset_name,
    encode_parts,
    explained_write_errors,
    hint_of_lines,
)
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE, copy_files
from rt_plugin.text.normalization import NORMALIZATIONS, TextNormalizer
from rt_plugin.text.raw import read_lines
from rt_plugin.text.records import kind_of, read_document_lines
from rt_plugin.text.tokenizer import Tokenizer
from rt_plugin.text.train import add_training_options, train_sentencepiece

MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "valid", "test")
_DATA_FILES = tuple(f"{split}.{kind}" for split in SPLITS for kind in ("bin", "idx"))
_PLAN_FILE = "plan.json"
_PARTS_FOLDER = "parts"  # of what an interrupted run continues from
_INPUTS_FOLDER = "inputs"  # in it: what is known of the input files
_LARGEST_PART = 2**26  # bytes of text
# What decides the data; the others (--workers, --fresh, where the files are) do not.
_OPTIONS = (
    *("shards", "documents", "valid_documents", "seed", "vocab_size", "model_type", "max_sentences"),
    *("normalization", "language", "text_field", "drop_duplicates"),
)
_ADDED_OPTIONS = {"text_field": "text", "drop_duplicates": False}  # what manifests from before have done


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("prepare-corpus", __doc__)
    parser.add_argument("train", nargs="+", type=Path, metavar="TEXT", help="UTF-8 text; .gz, .xz, .zst decompressed")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where the data go")
    parser.add_argument("--valid", nargs="+", type=Path, default=[], metavar="TEXT", help="validation text")
    parser.add_argument("--test", nargs="+", type=Path, default=[], metavar="TEXT", help="test text")
    parser.add_argument(
        "--valid-documents",
        type=commands.positive,
        metavar="N",
        help="instead of --valid: hold out this many whole documents, drawn at random",
    )
    parser.add_argument(
        "--documents",
        choices=("blocks", "lines"),
        default="blocks",
        help="a document is a block of lines between blank lines, or each line (default: %(default)s)",
    )
    parser.add_argument(
        "--shards", type=commands.positive, default=1, help="folders of training data (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=commands.positive, default=os.cpu_count(), help="processes (default: %(default)s, one a core)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn at random (default: %(default)s)")
    parser.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="of the records of .jsonl, .ndjson, .json and .parquet files, each of which is a document "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="leave out training documents that are equal, line by line, to an earlier one",
    )
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--part",
        type=_share,
        metavar="I/N",
        help="do the I-th of N parts of the work, on any of the machines that see FOLDER; --merge when all are done",
    )
    several.add_argument("--merge", action="store_true", help="put together what all --part runs have done")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier run left in FOLDER; start over")
    _add_tokenizer_arguments(parser.add_argument_group("tokenizer", "one of --vocab-size, --tokenizer, --gpt2-bpe"))
    args = parser.parse_args(argv)
    if args.valid and args.valid_documents:
        parser.error("--valid and --valid-documents: give one of them")
    if args.fresh and (args.part or args.merge):
        parser.error("--fresh deletes what the other machines have done; remove the folder before the first one starts")
    return args


def _add_tokenizer_arguments(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--vocab-size", type=commands.positive, metavar="N", help="train sentencepiece with this many pieces"
    )
    source.add_argument("--tokenizer", type=Path, help="a sentencepiece model, or a folder with one, to be used")
    source.add_argument(
        "--gpt2-bpe",
        nargs=2,
        type=Path,
        metavar=("ENCODER_JSON", "VOCAB_BPE"),
        help="use GPT-2 BPE: for pretraining and from_pretrained; preparing GLUE needs sentencepiece",
    )
    group.add_argument(
        "--dictionary",
        type=Path,
        metavar="DICT_TXT",
        help="fairseq dictionary; default: dict.txt beside --tokenizer, else all pieces in the tokenizer's order",
    )
    group.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        help="of text before the tokenizer (default: moses with --vocab-size, else what lies beside the tokenizer, "
        "else none)",
    )
    add_training_options(group)


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N, such as 3/8, with I from 1 to N")
    return int(number), int(of)


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
        plan: what decides the data, see `make_plan`.
        inputs: the files of each split, looked through.
        layout: how they are cut.
    """

    plan: dict
    inputs: dict[str, list[Input]]
    layout: Layout

    def parts(self, split: str, shares: int = 1) -> list[Part]:
        """The parts of a split, each with the machine, of so many, that it is for."""
        return cut_into_parts(split, self.inputs[split], self.layout, shares)

    def missing(self, folder: Path, shares: int = 1) -> list[Part]:
        """The parts that are not in the folder yet."""
        return [part for split in SPLITS for part in self.parts(split, shares) if not part.file_in(folder).exists()]


def prepare(args: argparse.Namespace, report: Callable[[str], None]) -> dict | None:
    """Prepare the data, or what an interrupted run left to do; returns the manifest, or None if only a part is done.

    Raises:
        UserError: see the functions called; or the folder holds something else.
    """
    check_values({"workers": args.workers})
    if os.pathsep in str(args.out):
        raise UserError(f"--out {args.out}: holds a {os.pathsep!r}, which joins folders of data; give another folder")
    started = time.monotonic()
    busy = "another `rt-plugin prepare-corpus` works there; wait for it, or stop it"
    with explained_write_errors(args.out):
        if args.part:
            return _prepare_share(args, report, busy)
        with only_user_of(args.out, busy), _no_share_at_work(args.out, busy):
            work = begin(args, report)
            if not isinstance(work, Work):
                return work
            parts = args.out / _PARTS_FOLDER
            if args.merge and (missing := work.missing(parts)):
                raise UserError(
                    f"{args.out}: {len(missing)} of the parts are not done yet, {missing[0].name} is the first; run "
                    "the --part I/N commands that have not ended well again, then this one"
                )
            for split in SPLITS:
                encode_parts(work.parts(split), work.inputs[split], work.layout, args.out, parts, args.workers, report)
            finished = {split: FinishedParts(parts, split) for split in SPLITS}
            _write_datasets(args, finished)
            manifest = {**work.plan, **_results(args, finished), "seconds": round(time.monotonic() - started, 1)}
            _write_lists(args.out, manifest["sha256"])
            _write_json(args.out / MANIFEST_FILE, manifest)
            shutil.rmtree(parts)
            return manifest


def _prepare_share(args: argparse.Namespace, report: Callable[[str], None], busy: str) -> dict | None:
    """Do the work of one machine of several. The first to come trains the tokenizer; the others wait for it."""
    number, shares = args.part
    parts = args.out / _PARTS_FOLDER
    args.out.mkdir(parents=True, exist_ok=True)
    waiting = f"{args.out}: waiting for another machine, which looks through the text or trains the tokenizer"
    with contextlib.ExitStack() as locks:
        with in_turn(args.out / ".lock", lambda: report(waiting)):
            locks.enter_context(only_user_of(args.out, busy, args.out / f".part-{number}-of-{shares}.lock"))
            work = begin(args, report)
        if not isinstance(work, Work):
            return work
        for split in SPLITS:
            own = [part for part in work.parts(split, shares) if part.share == number - 1]
            encode_parts(own, work.inputs[split], work.layout, args.out, parts, args.workers, report)
        others = {part.share + 1 for part in work.missing(parts, shares)}
        waiting = f"not yet done: {', '.join(f'{n}/{shares}' for n in sorted(others))}" if others else "all are done"
        report(f"part {number} of {shares} is done; {waiting}; then: the same command with --merge")
        return None


@contextlib.contextmanager
def _no_share_at_work(out: Path, busy: str) -> Iterator[None]:
    with contextlib.ExitStack() as locks:
        for file in sorted(out.glob(".part-*.lock")):
            locks.enter_context(only_user_of(out, busy, file))
        yield


def begin(args: argparse.Namespace, report: Callable[[str], None]) -> Work | dict:
    """Look through the files and put the tokenizer into OUT, as far as that is not done; the manifest if all is done.

    Raises:
        UserError: see the functions called; or the folder holds something else.
    """
    for split in SPLITS:
        for path in getattr(args, split):
            _check_input(path)
    parts = args.out / _PARTS_FOLDER
    if args.fresh:
        _remove_outputs(args.out)
    earlier = _read_plan(args.out / MANIFEST_FILE)
    if earlier is not None:
        plan = make_plan(args, _checksums(earlier, report))
        if manifest := _finished(args, plan, earlier, report):
            report(f"{args.out}: prepared before from the same files with the same options, nothing to do")
            return manifest
    elif not args.fresh and not (parts / _PLAN_FILE).is_file():
        _refuse_foreign(args.out)
    form = make_form(args)
    inputs = {
        split: look_through(getattr(args, split), _form_of(split, form), parts / _INPUTS_FOLDER, args.workers, report)
        for split in SPLITS
    }
    known = {str(x.path): x.sha256 for found in inputs.values() for x in found}
    plan = make_plan(args, lambda path: known.get(str(path)) or sha256(path))
    _check_same_plan(args.out, _read_plan(parts / _PLAN_FILE), plan)
    _tell_of_repetition(plan["inputs"], report)
    work = Work(plan, inputs, make_layout(args, inputs, form))
    _write_json(parts / _PLAN_FILE, plan)
    _write_tokenizer(args, report)
    return work


def make_plan(args: argparse.Namespace, checksum: Callable[[Path], str]) -> dict:
    """What decides the data: options, and the inputs with their sizes and checksums.

    Raises:
        UserError: a file is missing or empty.
    """
    inputs = {split: [_describe(path, checksum) for path in getattr(args, split)] for split in SPLITS}
    tokenizer = [_describe(path, checksum) for path in _tokenizer_sources(args)]
    options = {name: getattr(args, name) for name in _OPTIONS}
    return {"version": 1, "options": options, "tokenizer": tokenizer, "inputs": inputs}


def _tell_of_repetition(inputs: dict[str, list[dict]], report: Callable[[str], None]) -> None:
    """Report files that are there twice, whatever their names."""
    seen = {}
    for split, files in inputs.items():
        for file in files:
            other, known = seen.get(file["sha256"], (None, None))
            if known == split:
                report(f"{file['path']}: the same text as {other}; it counts twice in the {split} data")
            elif known is not None:
                report(
                    f"{file['path']}: the same text as {other}; the {split} loss will be of text that was trained on"
                )
            seen[file["sha256"]] = (file["path"], split)


def _checksums(manifest: dict, report: Callable[[str], None]) -> Callable[[Path], str]:
    """Gives the checksums of files; of those that are as a manifest has them, without reading them."""
    described = [*manifest["tokenizer"], *(file for files in manifest["inputs"].values() for file in files)]
    known = {tuple(file["state"]): file["sha256"] for file in described if "state" in file}

    def checksum(path: Path) -> str:
        if found := known.get(tuple(state_of(path))):
            return found
        if path.stat().st_size > 2**32:
            report(f"{path}: reading {path.stat().st_size / 2**30:.0f} GiB for its checksum")
        return sha256(path)

    return checksum


def _check_input(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected files; name those in it, such as {path / '*.txt'}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give an existing one")
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty; leave it out")


def _describe(path: Path, checksum: Callable[[Path], str]) -> dict:
    _check_input(path)
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": checksum(path), "state": state_of(path)}


def _tokenizer_sources(args: argparse.Namespace) -> list[Path]:
    """The files that make up a tokenizer which exists."""
    sources = list(args.gpt2_bpe or ())
    if args.tokenizer:
        sources.append(_model_file(args.tokenizer))
        sources += [p for name in (NORMALIZATION_FILE, DICTIONARY_FILE) if (p := sources[0].with_name(name)).is_file()]
    return [*sources, *filter(None, [args.dictionary])]


def _model_file(tokenizer: Path) -> Path:
    return tokenizer / TOKENIZER_FILE if tokenizer.is_dir() else tokenizer


def _refuse_foreign(out: Path) -> None:
    if foreign := sorted(p.name for p in out.iterdir() if p.name != _PARTS_FOLDER and not p.name.startswith(".")):
        raise UserError(f"{out}: holds {foreign[0]} but no prepared data; choose another --out, or --fresh")


def _finished(args: argparse.Namespace, plan: dict, manifest: dict, report: Callable[[str], None]) -> dict | None:
    """The manifest where all is done; else the folder is ready for the work.

    Raises:
        UserError: the data were made from other inputs or with other options.
    """
    out = args.out
    _check_same_plan(out, manifest, plan)
    if lost := _lost_files(out, manifest):
        report(f"{out}: {', '.join(lost)}: missing or not as it was written; making the data again")
        remove = _remove_data if set(lost).isdisjoint(TOKENIZER_FILES) else _remove_outputs
        remove(out)  # all of it: a tokenizer trained again may differ
        return None
    shutil.rmtree(out / _PARTS_FOLDER, ignore_errors=True)  # a kill after the manifest leaves them
    return manifest


def _check_same_plan(out: Path, earlier: dict | None, plan: dict) -> None:
    """Raise a `UserError` where the folder holds the work of another plan."""
    if earlier is not None and (changes := _changes(earlier, plan)):
        raise UserError(f"{out}: was prepared differently ({'; '.join(changes)}); --fresh starts over")


def _file_sizes(out: Path, names: Sequence[str]) -> dict[str, int]:
    """The files of these names in OUT and its shards, relative to OUT, with their sizes."""
    paths = [folder / name for folder in (out, *sorted(out.glob("shard[0-9]*"))) for name in names]
    return {str(path.relative_to(out)): path.stat().st_size for path in paths if path.is_file()}


def _lost_files(out: Path, manifest: dict) -> list[str]:
    """The files of a manifest that are not there as they were written; the first ones named none, or no checksums.

    Those that nobody touched since are not read.
    """
    sizes = _file_sizes(out, (*TOKENIZER_FILES, *_DATA_FILES))
    digests, stamps = manifest.get("sha256", {}), manifest.get("stamps", {})

    def is_lost(name: str, size: int) -> bool:
        if sizes.get(name) != size or name not in digests:
            return sizes.get(name) != size
        return stamps.get(name) != [*stamp(out / name)] and sha256(out / name) != digests[name]

    return [name for name, size in manifest.get("files", {}).items() if is_lost(name, size)]


def _write_lists(out: Path, digests: dict[str, str]) -> None:
    """Write the list of checksums of OUT and of each shard."""
    folders = {Path(name).parent for name in digests}
    for folder in folders:
        listed = {Path(name).name: digest for name, digest in digests.items() if Path(name).parent == folder}
        write_checksums(out / folder, listed)


def _remove_data(out: Path) -> None:
    for name in _file_sizes(out, (*_DATA_FILES, CHECKSUMS_FILE)):
        (out / name).unlink()


def _changes(earlier: dict, plan: dict) -> list[str]:
    """What differs between two plans, in words. Files may have moved: their content counts."""
    before = {**_ADDED_OPTIONS, **earlier["options"]}
    options = [
        f"--{name.replace('_', '-')} was {before.get(name)}, is {value}"
        for name, value in plan["options"].items()
        if before.get(name) != value
    ]
    groups = [("tokenizer", earlier["tokenizer"], plan["tokenizer"])]
    groups += [(split, earlier["inputs"][split], plan["inputs"][split]) for split in SPLITS]
    return options + [change for name, old, new in groups for change in _changed_files(name, old, new)]


def _changed_files(name: str, old: list[dict], new: list[dict]) -> list[str]:
    if len(old) != len(new):
        return [f"{name} files: {len(old)} then, {len(new)} now"]
    return [f"{b['path']} has changed" for a, b in zip(old, new, strict=True) if a["sha256"] != b["sha256"]]


def _remove_outputs(out: Path) -> None:
    (out / MANIFEST_FILE).unlink(missing_ok=True)  # first: it says that all is there
    _remove_data(out)
    for name in (_PARTS_FOLDER, *(p.name for p in out.glob("shard[0-9]*"))):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in TOKENIZER_FILES:
        (out / name).unlink(missing_ok=True)


def _write_tokenizer(args: argparse.Namespace, report: Callable[[str], None]) -> None:
    """Put tokenizer, normalisation and dictionary into OUT, unless they are there."""
    out = args.out
    if args.vocab_size:
        if not (out / TOKENIZER_FILE).exists():
            report(f"training a tokenizer of {args.vocab_size:,} pieces; this takes minutes for every 100 MB of text")
            normalization = args.normalization or "moses"
            TextNormalizer(normalization, args.language).tell_of_missing_rules(report)
            settings = (normalization, args.language, args.model_type, args.max_sentences, args.seed)
            read = functools.partial(read_document_lines, text_field=args.text_field)
            records = any(kind_of(path) != "text" for path in args.train)
            train_sentencepiece(args.train, out, args.vocab_size, *settings, read=read if records else read_lines)
    elif args.tokenizer:
        model = _model_file(args.tokenizer)
        normalizer = _stored_normalizer(args, model.with_name(NORMALIZATION_FILE))
        tokenizer = Tokenizer.read(model, normalizer)
        tokenizer.save(out)
        beside = model.with_name(DICTIONARY_FILE)
        _write_dictionary(out, args.dictionary or (beside if beside.is_file() else None), tokenizer.dictionary)
    else:
        copy_files(zip(args.gpt2_bpe, GPT2_FILES, strict=True), out)
        normalizer = TextNormalizer(args.normalization or "none", args.language)
        _write_text(out / NORMALIZATION_FILE, normalizer.to_json())
        _write_dictionary(out, args.dictionary, lambda: gpt2_dictionary(out))
    load_line_encoder(out)  # refuses files that do not belong together


def _stored_normalizer(args: argparse.Namespace, path: Path) -> TextNormalizer:
    """The normalisation that the tokenizer was trained with, or the one asked for where none is stored."""
    if not path.is_file():
        return TextNormalizer(args.normalization or "none", args.language)
    stored = TextNormalizer.load(path)
    if args.normalization not in (None, stored.choice):
        raise UserError(
            f"--normalization {args.normalization}: {path} says {stored.choice}, which the tokenizer was trained with; "
            "leave the option out"
        )
    return stored


def _write_dictionary(out: Path, source: Path | None, make: Callable[[], str]) -> None:
    if source:
        copy_files([(source, DICTIONARY_FILE)], out)
    else:
        _write_text(out / DICTIONARY_FILE, make())


def make_form(args: argparse.Namespace) -> Form:
    """How the text is read: in some thousand chunks, at least sixteen a shard, of 64 KiB to 64 MiB."""
    size = sum(path.stat().st_size for path in args.train)
    chunk = min(_LARGEST_PART, max(2**16, size // max(1024, 16 * args.shards)))
    counted = bool(args.valid_documents or args.drop_duplicates)
    return Form(args.documents == "lines", args.text_field, chunk, counted, args.drop_duplicates)


def _form_of(split: str, form: Form) -> Form:
    return form if split == "train" else replace(form, count_documents=False, compare_documents=False)


def make_layout(args: argparse.Namespace, inputs: dict[str, list[Input]], form: Form) -> Layout:
    """How the text is cut: small files together, in at least 64 parts where there is text for so many.

    Raises:
        UserError: more documents are to be held out than there are; or a split or a shard has no text.
    """
    size = sum(path.stat().st_size for path in args.train)
    layout = Layout(args.shards, form, min(_LARGEST_PART, max(form.chunk_bytes, size // 64)))
    if args.drop_duplicates:
        layout = replace(layout, repeated=repeated_documents(inputs["train"]))
    if args.valid_documents:
        number = sum(cut.documents for known in inputs["train"] for cut in known)
        left = number - len(layout.repeated)
        if args.valid_documents >= left:
            raise UserError(
                f"--valid-documents {args.valid_documents}: expected fewer than there are documents to train on "
                f"({left}); hold out fewer{hint_of_lines(form)}"
            )
        drawn = np.array(random.Random(args.seed).sample(range(1, left + 1), args.valid_documents))
        if args.drop_duplicates:
            drawn = np.setdiff1d(np.arange(1, number + 1), layout.repeated, assume_unique=True)[drawn - 1]
        layout = replace(layout, held_out=np.sort(drawn))
    for split in SPLITS:
        if inputs[split]:
            check_shards(split, inputs[split], layout)
    return layout


def shard_folders(out: Path, shards: int) -> list[Path]:
    """Where the shards are: OUT itself for a single one."""
    return [out] if shards == 1 else [out / f"shard{i}" for i in range(shards)]


def _write_datasets(args: argparse.Namespace, finished: dict[str, FinishedParts]) -> None:
    dtype = load_line_encoder(args.out).dtype
    folders = shard_folders(args.out, args.shards)
    for shard, folder in enumerate(folders):
        copy_files([(args.out / name, name) for name in TOKENIZER_FILES], folder)
        finished["train"].write_dataset(dataset_name("train", shard), folder / "train", dtype)
    for split in ("valid", "test"):
        if getattr(args, split):
            finished[split].write_dataset(split, folders[0] / split, dtype)
    if args.valid_documents:
        finished["train"].write_dataset("valid", folders[0] / "valid", dtype)


def _results(args: argparse.Namespace, finished: dict[str, FinishedParts]) -> dict:
    """Counts by split and by file, the data's name for fairseq, and the versions of what made them."""
    splits, files, shards = {}, {}, [0] * args.shards
    written = _file_sizes(args.out, (*TOKENIZER_FILES, *_DATA_FILES))
    for stream in SPLITS:
        names = [str(path) for path in getattr(args, stream)]
        for name in names:
            files.setdefault(name, Counter())  # given for two splits, it counts in both
        for about in finished[stream].about:
            for split, counts in about["counts"].items():
                splits.setdefault(split, Counter()).update(counts)
                files[names[about["file"]]].update(counts)
                if split == "train":
                    shards[about["shard"]] += counts.get("tokens", 0)
    return {
        "data": ":".join(map(str, shard_folders(args.out, args.shards))),
        "counts": {split: {**c, "unknown_rate": c["unknown"] / max(1, c["tokens"])} for split, c in splits.items()},
        "counts_by_file": files,
        "tokens_by_shard": shards,
        "files": written,
        "stamps": {name: [*stamp(args.out / name)] for name in written},
        "sha256": {name: sha256(args.out / name) for name in written},
        "versions": {
            "rt_plugin": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("sentencepiece", "sacremoses", "numpy")},
        },
    }


def _read_plan(path: Path) -> dict | None:
    """A plan, or a manifest, which begins with one; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); --fresh starts over") from None
    if not isinstance(plan, dict) or not {"options", "tokenizer", "inputs"} <= plan.keys():
        raise UserError(
            f"{path}: not of prepared data, expected the options, tokenizer and inputs of an earlier run; choose "
            "another --out, or --fresh"
        )
    return plan


def _write_json(path: Path, content: dict) -> None:
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_text(path: Path, content: str) -> None:
    with replacing(path) as file:
        file.write(content.encode())


def format_counts(manifest: dict) -> str:
    """The counts as a table, what was odd in words, and what to give to fairseq-train."""
    names = ("documents", "sentences", "tokens")
    rows = [
        (split, *(f"{counts[name]:,}" for name in names), f"{100 * counts['unknown_rate']:.3f} %")
        for split, counts in manifest["counts"].items()
    ]
    lines = [plain_table(("split", *names, "unknown"), rows)]
    if repeated := sum(c.get("repeated_documents", 0) for c in manifest["counts"].values()):
        lines.append(f"{repeated:,} documents left out that are equal to an earlier one")
    if without := sum(c["lines_without_pieces"] for c in manifest["counts"].values()):
        lines.append(f"{without:,} lines of characters that the tokenizer drops: blank lines in the data")
    for path, counts in manifest["counts_by_file"].items():
        if not counts.get("sentences"):
            lines.append(f"{path}: holds no text, only white space")
    shards = manifest.get("tokens_by_shard", [])
    if len(shards) > 1:
        lines.append(f"tokens in a shard: {min(shards):,} to {max(shards):,}")
    return "\n".join([*lines, f"data for fairseq-train: {manifest['data']}"])


def _print_counts(manifest: dict | None) -> None:
    if manifest is None:
        return
    print(format_counts(manifest))
    if "valid" not in manifest["counts"]:
        commands.report(
            "there is no split `valid`, which rt-plugin pretrain needs: give --valid or --valid-documents, and --fresh"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run(
        "prepare-corpus",
        lambda: _print_counts(prepare(args, commands.report)),
        "interrupted; the same command continues",
    )
