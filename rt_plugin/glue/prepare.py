"""Prepares GLUE tasks for fairseq: official files -> binarised data with a checkpoint's own tokenizer and dictionary.

    OUT/<TASK>/input0/{train,valid,test}.{bin,idx}, dict.txt     the first text
    OUT/<TASK>/input1/...                                        the second text of pairs
    OUT/<TASK>/label/{train,valid}.{bin,idx}, dict.txt           class names, in the order of the task table
    OUT/<TASK>/label/{train,valid}.label                         or scores, scaled to 0-1
    OUT/<TASK>/group/{train,valid,test}.txt                      the group of each row, for tasks scored by groups
    OUT/<TASK>/sentencepiece.bpe.model, text_normalization.json  the tokenizer
    OUT/<TASK>/glue.json                                         the task's name, files and counts

The layout is the one of fairseq's `sentence_prediction`.
"""

import argparse
import functools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fairseq.data import Dictionary, indexed_dataset

from rt_plugin.console import commands
from rt_plugin.errors import UserError
from rt_plugin.glue import download as glue_download
from rt_plugin.glue.readers import Example, read_examples
from rt_plugin.glue.specs import BY_NAME, TASKS, GlueTask
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import DICTIONARY_FILE, GLUE_FILE
from rt_plugin.text.tokenizer import TextEncoder

_SECONDS_BETWEEN_PROGRESS = 5.0


def find_task(name: str) -> GlueTask:
    """The row of the task table.

    Raises:
        UserError: there is no such row.
    """
    if name not in BY_NAME:
        raise UserError(f"GLUE task {name!r} is unknown, expected one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def read_glue_file(folder: Path) -> dict | None:
    """The content of a folder's glue.json, or None where there is none.

    Raises:
        UserError: the file is not JSON, or does not name a task.
    """
    path = folder / GLUE_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        find_task(content["task"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {error}; prepare the data again with scripts/prepare_glue.py") from None
    return content


@dataclass
class SplitCounts:
    """What went into one split; `tokens` counts </s> as well."""

    file: str
    rows: int = 0
    tokens: int = 0
    unknown: int = 0
    labels: Counter = field(default_factory=Counter)
    left_out: int = 0


@dataclass(frozen=True)
class TextTools:
    """What turns text into token ids: a model folder's tokenizer, dictionary, and the dictionary's file."""

    encoder: TextEncoder
    dictionary: Dictionary
    dictionary_path: Path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TextTools":
        """Read a model folder.

        Raises:
            UserError: a file is missing, or tokenizer and dictionary do not belong together.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"--model {folder}: no such folder; give the folder with the checkpoint's tokenizer")
        encoder = TextEncoder.load(folder)
        path = folder / DICTIONARY_FILE
        dictionary = load_dictionary(path)
        encoder.check_dictionary(dictionary.symbols, str(path))
        return cls(encoder, dictionary, path)

    def encode(self, text: str) -> torch.Tensor:
        """(length,) int32 token ids of a text, with </s> at the end."""
        return self.dictionary.encode_line(" ".join(self.encoder.encode(text)), add_if_not_exist=False)


def source_folder(task: GlueTask, glue_dir: Path) -> Path | None:
    """The folder with the task's official files, or None."""
    for name in (task.name, *task.folders):
        if (glue_dir / name).is_dir():
            return glue_dir / name
    return None


def source_files(task: GlueTask, folder: Path, subsets: bool = False) -> dict[str, Path]:
    """split -> file, for the splits that are there.

    Args:
        subsets: prefer the table's reduced files where they exist.

    Raises:
        UserError: there is no train or dev file, or no file at all.
    """
    found = {}
    for split, name in task.files.items():
        subset = task.subset_files.get(split)
        if subsets and subset and (folder / subset).is_file():
            name = subset
        if (folder / name).is_file():
            found[split] = folder / name
        elif split in ("train", "valid"):
            hint = f"; {subset} is there: add --subsets to use it" if subset and (folder / subset).is_file() else ""
            raise UserError(f"{task.name}: no {folder / name}, expected the official {split} file{hint}")
    if not found:
        raise UserError(f"{task.name}: none of {', '.join(task.files.values())} in {folder}")
    return found


def prepare_task(
    task: GlueTask,
    files: dict[str, Path],
    out: Path,
    tools: TextTools,
    report: Callable[[str], None],
    skip_broken_rows: bool = False,
) -> dict[str, SplitCounts]:
    """Binarise one task into OUT/<TASK>, which appears when it is complete and then replaces an older one.

    Args:
        files: split -> official file.
        out: the folder that gets the task's folder.
        report: takes lines of progress and warnings.
        skip_broken_rows: report broken rows and leave them out, instead of stopping at the first.

    Returns:
        split -> counts.

    Raises:
        UserError: a file is broken (see `glue_readers.read_examples`), OUT/<TASK> is a folder of something else, or it
            cannot be written.
    """
    target = out / task.name
    if target.exists() and not (target / GLUE_FILE).is_file():
        raise UserError(f"{target} is there and holds no {GLUE_FILE}: not prepared data; choose another OUT folder")
    partial = out / f".{task.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_dictionaries(task, partial, tools)
        counts = {}
        for split, path in files.items():
            report(f"{task.name}: reading {path}")
            counts[split] = _prepare_split(task, split, path, partial, tools, report, skip_broken_rows)
        tools.encoder.save(partial)
        (partial / GLUE_FILE).write_text(_glue_json(task, counts), encoding="utf-8")
        _replace_folder(partial, target)
    except OSError as error:
        raise UserError(f"{target}: the prepared data cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _write_dictionaries(task: GlueTask, folder: Path, tools: TextTools) -> None:
    for i in range(len(task.texts)):
        (folder / f"input{i}").mkdir()
        shutil.copyfile(tools.dictionary_path, folder / f"input{i}" / DICTIONARY_FILE)
    (folder / "label").mkdir()
    if not task.is_regression:
        label_dictionary(task.labels).save(str(folder / "label" / DICTIONARY_FILE))
    if task.group:
        (folder / "group").mkdir()


def label_dictionary(labels: Iterable[str]) -> Dictionary:
    """A dictionary whose symbols after the special ones are the labels, in their order."""
    dictionary = Dictionary()
    for name in labels:
        dictionary.add_symbol(name)
    return dictionary


def _prepare_split(
    task: GlueTask,
    split: str,
    path: Path,
    folder: Path,
    tools: TextTools,
    report: Callable[[str], None],
    skip_broken_rows: bool,
) -> SplitCounts:
    counts = SplitCounts(path.name)

    def on_broken_row(error: UserError) -> None:
        counts.left_out += 1
        report(f"left out: {error}")

    examples = read_examples(task, split, path, on_broken_row if skip_broken_rows else None)
    # the rows of one MultiRC passage follow each other and share it
    encode = functools.lru_cache(maxsize=16)(tools.encode)
    labels, groups = [], []
    builders = [IndexedWriter(folder / f"input{i}" / split, len(tools.dictionary)) for i in range(len(task.texts))]
    for example in _with_progress(examples, report):
        for builder, text in zip(builders, example.texts, strict=True):
            ids = encode(text)
            builder.add(ids)
            counts.tokens += len(ids)
            counts.unknown += int((ids == tools.dictionary.unk()).sum())
        labels.append(example.label)
        groups.append(example.group)
    if not labels:
        raise UserError(f"{path}: no rows; expected the {split} rows of {task.name}")
    for builder in builders:
        builder.close()
    _write_labels(task, labels, folder / "label" / split, counts)
    if task.group:
        (folder / "group" / f"{split}.txt").write_text("".join(f"{group}\n" for group in groups))
    counts.rows = len(labels)
    return counts


class IndexedWriter:
    """fairseq's builder of one indexed data set, with the names of its two files."""

    def __init__(self, prefix: Path, vocabulary: int):
        self._index_file = indexed_dataset.index_file_path(str(prefix))
        self._builder = indexed_dataset.make_builder(
            indexed_dataset.data_file_path(str(prefix)), impl="mmap", vocab_size=vocabulary
        )

    def add(self, ids: torch.Tensor) -> None:
        self._builder.add_item(ids)

    def close(self) -> None:
        self._builder.finalize(self._index_file)


def _write_labels(task: GlueTask, labels: Sequence[int | float | None], prefix: Path, counts: SplitCounts) -> None:
    """Write the labels of a split; nothing where the file had none, as in the official test sets."""
    if any(label is None for label in labels):
        return
    if task.is_regression:
        low, high = task.score_range
        lines = (f"{(score - low) / (high - low)!r}\n" for score in labels)
        prefix.with_name(f"{prefix.name}.label").write_text("".join(lines))
        return
    dictionary = label_dictionary(task.labels)
    builder = IndexedWriter(prefix, len(dictionary))
    for label in labels:
        builder.add(torch.tensor([dictionary.nspecial + label, dictionary.eos()]))
    builder.close()
    counts.labels.update(task.labels[label] for label in labels)


def _with_progress(examples: Iterator[Example], report: Callable[[str], None]) -> Iterator[Example]:
    last = time.monotonic()
    for number, example in enumerate(examples, start=1):
        yield example
        if time.monotonic() - last > _SECONDS_BETWEEN_PROGRESS:
            last = time.monotonic()
            report(f"  {number:,} rows")


def _glue_json(task: GlueTask, counts: dict[str, SplitCounts]) -> str:
    splits = {
        split: {
            "file": c.file,
            "rows": c.rows,
            "left_out": c.left_out,
            "labels": {name: c.labels[name] for name in task.labels if c.labels},
        }
        for split, c in counts.items()
    }
    return json.dumps({"version": 1, "task": task.name, "splits": splits}, indent=2) + "\n"


def _replace_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; a folder cannot be replaced in one step, so the old one steps aside."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def chosen_tasks(names: Sequence[str] | None, glue_dir: Path) -> list[tuple[GlueTask, Path]]:
    """The tasks with their source folders: the named ones, or all that GLUE_DIR holds.

    Raises:
        UserError: GLUE_DIR or the folder of a named task is missing, or no task is there.
    """
    if not glue_dir.is_dir():
        raise UserError(f"{glue_dir}: no such folder; expected one with task folders such as {glue_dir / 'QNLI'}")
    tasks = [find_task(name) for name in names] if names else TASKS
    pairs = [(task, source_folder(task, glue_dir)) for task in tasks]
    if names and (missing := [task.name for task, folder in pairs if folder is None]):
        raise UserError(f"{glue_dir}: no folder for {', '.join(missing)}; expected {glue_dir / missing[0]}")
    found = [(task, folder) for task, folder in pairs if folder is not None]
    if not found:
        raise UserError(f"{glue_dir}: no task folder there; expected some of {', '.join(BY_NAME)}")
    return found


def format_table(counts: dict[str, dict[str, SplitCounts]]) -> str:
    """A table of all counts, one line a split."""
    rows = [("task", "split", "file", "rows", "tokens", "unknown", "labels")]
    for task, splits in counts.items():
        for split, c in splits.items():
            labels = ", ".join(f"{name} {number:,}" for name, number in sorted(c.labels.items())) or "-"
            unknown = f"{100 * c.unknown / max(1, c.tokens):.2f} %"
            rows.append((task, split, c.file, f"{c.rows:,}", f"{c.tokens:,}", unknown, labels))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = [
        [cell.rjust(w) if 3 <= i <= 5 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("prepare-glue", __doc__)
    parser.add_argument("glue_dir", metavar="GLUE_DIR", type=Path, help="folder with a folder for each task")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the prepared data, one folder a task")
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model folder: the checkpoint's tokenizer and dict.txt"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: every task that GLUE_DIR holds")
    parser.add_argument(
        "--subsets",
        action="store_true",
        help="take reduced files such as train_subset.tsv where they are there, instead of the official ones",
    )
    parser.add_argument(
        "--skip-broken-rows", action="store_true", help="report and leave out broken rows instead of stopping"
    )
    parser.add_argument("--download", action="store_true", help="first fetch the official files that GLUE_DIR lacks")
    parser.add_argument(
        "--urls",
        type=Path,
        metavar="JSON",
        help='with --download: {"TASK": {"url": ..., "sha256": ...}}, your own addresses',
    )
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> None:
    """Prepare the tasks that the command line asks for and print the table of counts."""
    tools = TextTools.load(args.model)
    if args.download:
        sources = glue_download.read_sources(args.urls)
        glue_download.download(args.tasks, args.glue_dir, sources, commands.report)
    # all files are found before the first is read, so that a missing one does not show after minutes
    jobs = [
        (task, source_files(task, folder, args.subsets)) for task, folder in chosen_tasks(args.tasks, args.glue_dir)
    ]
    counts = {
        task.name: prepare_task(task, files, args.out, tools, commands.report, args.skip_broken_rows)
        for task, files in jobs
    }
    print(format_table(counts))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("prepare-glue", lambda: prepare(args))
