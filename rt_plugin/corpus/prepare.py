"""Raw text -> the data that rt_masked_lm trains on: tokenizer, dictionary and binarised splits.

    OUT/dict.txt, sentencepiece.bpe.model, text_normalization.json   the tokenizer (or GPT-2's encoder.json, vocab.bpe)
    OUT/{train,valid,test}.{bin,idx}                                 the data
    OUT/shard0/..., OUT/shard1/...                                   with --shards: tokenizer and data by shards
    OUT/manifest.json                                                inputs with checksums, options, counts, files

The data are those of sentencepiece encoding and fairseq-preprocess, token for token. An interrupted run continues when
it is started again; text files may be compressed (.gz, .xz, .zst).

Example: rt-plugin prepare-corpus examples/quickstart/train.txt --valid examples/quickstart/valid.txt \\
             --vocab-size 8000 --out runs/corpus
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rt_plugin._version import __version__
from rt_plugin.console import commands
from rt_plugin.console.files import replacing, sha256
from rt_plugin.console.locks import only_user_of
from rt_plugin.console.options import check_values
from rt_plugin.console.tables import plain_table
from rt_plugin.corpus.encoders import GPT2_FILES, TOKENIZER_FILES, gpt2_dictionary, load_line_encoder
from rt_plugin.corpus.parts import (
    FinishedParts,
    Layout,
    check_shards,
    count_documents,
    encode_stream,
    explained_write_errors,
)
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE, copy_files
from rt_plugin.text.normalization import NORMALIZATIONS, TextNormalizer
from rt_plugin.text.tokenizer import Tokenizer
from rt_plugin.text.train import MODEL_TYPES, train_sentencepiece

MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "valid", "test")
_DATA_FILES = tuple(f"{split}.{kind}" for split in SPLITS for kind in ("bin", "idx"))
_PLAN_FILE = "plan.json"
_PARTS_FOLDER = "parts"  # of what an interrupted run continues from
# What decides the data; the others (--workers, --fresh, where the files are) do not.
_OPTIONS = (
    *("shards", "documents", "valid_documents", "seed", "vocab_size", "model_type", "max_sentences"),
    *("normalization", "language"),
)


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
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier run left in FOLDER; start over")
    _add_tokenizer_arguments(parser.add_argument_group("tokenizer", "one of --vocab-size, --tokenizer, --gpt2-bpe"))
    args = parser.parse_args(argv)
    if args.valid and args.valid_documents:
        parser.error("--valid and --valid-documents: give one of them")
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
    group.add_argument("--language", default="en", help="for Moses' rules (default: %(default)s)")
    group.add_argument("--model-type", choices=MODEL_TYPES, default="unigram", help="default: %(default)s")
    group.add_argument(
        "--max-sentences",
        type=int,
        default=5_000_000,
        help="train the tokenizer on a random sample of this many lines, 0 for all (default: %(default)s)",
    )


def prepare(args: argparse.Namespace, report: Callable[[str], None]) -> dict:
    """Prepare the data, or what an interrupted run left to do; returns the manifest.

    Raises:
        UserError: see the functions called; or the folder holds something else.
    """
    check_values({"workers": args.workers})
    started = time.monotonic()
    busy = "another `rt-plugin prepare-corpus` works there; wait for it, or stop it"
    with explained_write_errors(args.out), only_user_of(args.out, busy):
        plan = make_plan(args, report)
        if manifest := _finished(args, plan, report):
            report(f"{args.out}: prepared before from the same files with the same options, nothing to do")
            return manifest
        layout = make_layout(args, plan, report)
        parts = args.out / _PARTS_FOLDER
        _write_json(parts / _PLAN_FILE, plan)
        _write_tokenizer(args, report)
        for split in SPLITS:
            if files := getattr(args, split):
                encode_stream(split, files, layout, args.out, parts, args.workers, report)
        _write_datasets(args, parts)
        manifest = {**plan, **_results(args, parts), "seconds": round(time.monotonic() - started, 1)}
        _write_json(args.out / MANIFEST_FILE, manifest)
        shutil.rmtree(parts)
        return manifest


def make_plan(args: argparse.Namespace, report: Callable[[str], None]) -> dict:
    """What decides the data: options, and the inputs with their sizes and checksums.

    Raises:
        UserError: a file is missing or empty.
    """
    inputs = {split: [_describe(path, report) for path in getattr(args, split)] for split in SPLITS}
    tokenizer = [_describe(path, report) for path in _tokenizer_sources(args)]
    options = {name: getattr(args, name) for name in _OPTIONS}
    return {"version": 1, "options": options, "tokenizer": tokenizer, "inputs": inputs}


def _describe(path: Path, report: Callable[[str], None]) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give an existing one")
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path}: the file is empty; leave it out")
    if size > 2**32:
        report(f"{path}: reading {size / 2**30:.0f} GiB for its checksum")
    return {"path": str(path), "bytes": size, "sha256": sha256(path)}


def _tokenizer_sources(args: argparse.Namespace) -> list[Path]:
    """The files that make up a tokenizer which exists."""
    sources = list(args.gpt2_bpe or ())
    if args.tokenizer:
        sources.append(_model_file(args.tokenizer))
        sources += [p for name in (NORMALIZATION_FILE, DICTIONARY_FILE) if (p := sources[0].with_name(name)).is_file()]
    return [*sources, *filter(None, [args.dictionary])]


def _model_file(tokenizer: Path) -> Path:
    return tokenizer / TOKENIZER_FILE if tokenizer.is_dir() else tokenizer


def _finished(args: argparse.Namespace, plan: dict, report: Callable[[str], None]) -> dict | None:
    """The manifest where all is done; else the folder is ready for the work, or for what is left of it.

    Raises:
        UserError: the folder was made from other inputs or with other options, or by something else.
    """
    out = args.out
    parts = out / _PARTS_FOLDER
    if args.fresh:
        _remove_outputs(out)
    finished = _read_json(out / MANIFEST_FILE)
    earlier = finished or _read_json(parts / _PLAN_FILE)
    if earlier is None:
        foreign = sorted(p.name for p in out.iterdir() if p.name not in (".lock", _PARTS_FOLDER))
        if foreign and not args.fresh:
            raise UserError(f"{out}: holds {foreign[0]} but no prepared data; choose another --out, or --fresh")
        return None
    if changes := _changes(earlier, plan):
        raise UserError(f"{out}: was prepared differently ({'; '.join(changes)}); --fresh starts over")
    if finished and (lost := _lost_files(out, finished)):
        report(f"{out}: {', '.join(lost)}: missing or not of the size that was written; making the data again")
        remove = _remove_data if set(lost).isdisjoint(TOKENIZER_FILES) else _remove_outputs
        remove(out)  # all of it: a tokenizer trained again may differ
        return None
    if finished:
        shutil.rmtree(parts, ignore_errors=True)  # a kill after the manifest leaves them
    return finished


def _file_sizes(out: Path, names: Sequence[str]) -> dict[str, int]:
    """The files of these names in OUT and its shards, relative to OUT, with their sizes."""
    paths = [folder / name for folder in (out, *sorted(out.glob("shard[0-9]*"))) for name in names]
    return {str(path.relative_to(out)): path.stat().st_size for path in paths if path.is_file()}


def _lost_files(out: Path, manifest: dict) -> list[str]:
    """The files of a manifest that are not there as they were written; the first manifests named none."""
    sizes = _file_sizes(out, (*TOKENIZER_FILES, *_DATA_FILES))
    return [name for name, size in manifest.get("files", {}).items() if sizes.get(name) != size]


def _remove_data(out: Path) -> None:
    for name in _file_sizes(out, _DATA_FILES):
        (out / name).unlink()


def _changes(earlier: dict, plan: dict) -> list[str]:
    """What differs between two plans, in words. Files may have moved: their content counts."""
    options = [
        f"--{name.replace('_', '-')} was {earlier['options'].get(name)}, is {value}"
        for name, value in plan["options"].items()
        if earlier["options"].get(name) != value
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
            settings = (normalization, args.language, args.model_type, args.max_sentences, args.seed)
            train_sentencepiece(args.train, out, args.vocab_size, *settings)
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


def make_layout(args: argparse.Namespace, plan: dict, report: Callable[[str], None]) -> Layout:
    """How the text is cut: some thousand parts, at least sixteen a shard, of 64 KiB to 64 MiB.

    Raises:
        UserError: more documents are to be held out than there are; or a split or a shard has no text.
    """
    size = sum(file["bytes"] for file in plan["inputs"]["train"])
    part_bytes = min(2**26, max(2**16, size // max(1024, 16 * args.shards)))
    layout = Layout(args.shards, args.documents == "lines", part_bytes)
    if args.valid_documents:
        report("counting documents")
        documents = count_documents(args.train, layout)
        if args.valid_documents >= documents:
            raise UserError(
                f"--valid-documents {args.valid_documents}: there are only {documents} documents to train on"
            )
        held_out = random.Random(args.seed).sample(range(1, documents + 1), args.valid_documents)
        layout = Layout(args.shards, layout.document_per_line, part_bytes, frozenset(held_out))
    for split in SPLITS:
        if files := getattr(args, split):
            check_shards(split, files, layout)
    return layout


def shard_folders(out: Path, shards: int) -> list[Path]:
    """Where the shards are: OUT itself for a single one."""
    return [out] if shards == 1 else [out / f"shard{i}" for i in range(shards)]


def _write_datasets(args: argparse.Namespace, parts: Path) -> None:
    dtype = load_line_encoder(args.out).dtype
    folders = shard_folders(args.out, args.shards)
    for shard, folder in enumerate(folders):
        copy_files([(args.out / name, name) for name in TOKENIZER_FILES], folder)
        FinishedParts(parts, "train").write_dataset("train", shard, folder / "train", dtype)
    for split in ("valid", "test"):
        if getattr(args, split):
            FinishedParts(parts, split).write_dataset(split, None, folders[0] / split, dtype)
    if args.valid_documents:
        FinishedParts(parts, "train").write_dataset("valid", None, folders[0] / "valid", dtype)


def _results(args: argparse.Namespace, parts: Path) -> dict:
    """Counts by split and by file, the data's name for fairseq, and the versions of what made them."""
    splits, files, shards = {}, {}, [0] * args.shards
    for stream in SPLITS:
        names = [str(path) for path in getattr(args, stream)]
        files.update({name: Counter() for name in names})
        for about in FinishedParts(parts, stream).about():
            for split, counts in about["counts"].items():
                splits.setdefault(split, Counter()).update(counts)
                files[names[about["file"]]].update(counts)
                if split == "train":
                    shards[about["shard"]] += counts["tokens"]
    return {
        "data": ":".join(map(str, shard_folders(args.out, args.shards))),
        "counts": {split: {**c, "unknown_rate": c["unknown"] / max(1, c["tokens"])} for split, c in splits.items()},
        "counts_by_file": files,
        "tokens_by_shard": shards,
        "files": _file_sizes(args.out, (*TOKENIZER_FILES, *_DATA_FILES)),
        "versions": {
            "rt_plugin": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("sentencepiece", "sacremoses", "numpy")},
        },
    }


def _read_json(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); --fresh starts over") from None


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
    if without := sum(c["lines_without_pieces"] for c in manifest["counts"].values()):
        lines.append(f"{without:,} lines of characters that the tokenizer drops: blank lines in the data")
    for path, counts in manifest["counts_by_file"].items():
        if not counts.get("sentences"):
            lines.append(f"{path}: holds no text, only white space")
    shards = manifest.get("tokens_by_shard", [])
    if len(shards) > 1:
        lines.append(f"tokens in a shard: {min(shards):,} to {max(shards):,}")
    return "\n".join([*lines, f"data for fairseq-train: {manifest['data']}"])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run(
        "prepare-corpus",
        lambda: print(format_counts(prepare(args, commands.report))),
        "interrupted; the same command continues",
    )
