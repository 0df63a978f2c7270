"""Prepares GLUE tasks for fairseq: official files -> binarised data with a checkpoint's own tokenizer and dictionary.

    OUT/<TASK>/input0/{train,valid,test}.{bin,idx}, dict.txt     the first text
    OUT/<TASK>/input1/...                                        the second text of pairs
    OUT/<TASK>/label/{train,valid}.{bin,idx}, dict.txt           class names, in the order of the task table
    OUT/<TASK>/label/{train,valid}.label                         or scores, scaled to 0-1
    OUT/<TASK>/group/{train,valid,test}.txt                      the group of each row, for tasks scored by groups
    OUT/<TASK>/sentencepiece.bpe.model, text_normalization.json  the tokenizer
    OUT/<TASK>/glue.json                                         the task's name, files and counts

The layout is the one of fairseq's `sentence_prediction`. A folder with a task.json is a task of your own, such as
{"texts": ["sentence"], "label": "label", "labels": ["neg", "pos"]}, beside train, dev and test, .tsv or .jsonl:
docs/glue.md.
"""

import argparse
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rt_plugin.console import commands
from rt_plugin.console.files import replacing_folder
from rt_plugin.console.progress import track
from rt_plugin.console.tables import plain_table
from rt_plugin.errors import UserError
from rt_plugin.glue import own
from rt_plugin.glue.download import download, read_sources
from rt_plugin.glue.hold_out import add_option as add_hold_out
from rt_plugin.glue.hold_out import is_held_out, needed_splits
from rt_plugin.glue.readers import read_examples, source_files, source_folder
from rt_plugin.glue.specs import BY_NAME, TASKS, GlueTask
from rt_plugin.model_folder.files import GLUE_FILE

if TYPE_CHECKING:
    from rt_plugin.text.encode import IdEncoder


@dataclass
class SplitCounts:
    """What went into one split; `tokens` counts </s> as well."""

    file: str
    rows: int = 0
    tokens: int = 0
    unknown: int = 0
    labels: Counter = field(default_factory=Counter)
    left_out: int = 0

    def for_glue_file(self, task: GlueTask) -> dict:
        """What glue.json says of the split."""
        labels = {name: self.labels[name] for name in task.labels if self.labels}
        return {"file": self.file, "rows": self.rows, "left_out": self.left_out, "labels": labels}


def prepare_task(
    task: GlueTask,
    files: dict[str, Path],
    out: Path,
    encoder: "IdEncoder",
    report: Callable[[str], None],
    skip_broken_rows: bool = False,
    hold_out: float = 0.0,
) -> dict[str, SplitCounts]:
    """Binarise one task into OUT/<TASK>, which appears when it is complete and then replaces an older one.

    Args:
        files: split -> official file.
        out: the folder that gets the task's folder.
        report: takes lines of progress and warnings.
        skip_broken_rows: report broken rows and leave them out, instead of stopping at the first.
        hold_out: share of the train file's rows that become the dev set (see `is_held_out`); then no other file is
            read. 0: the official dev set.

    Returns:
        split -> counts.

    Raises:
        UserError: a file is broken (see `read_examples`), OUT/<TASK> is a folder of something else, or it
            cannot be written.
    """
    from rt_plugin.glue import prepared

    target = out / task.name
    if target.exists() and not (target / GLUE_FILE).is_file():
        raise UserError(f"{target} is there and holds no {GLUE_FILE}: not prepared data; choose another OUT folder")
    counts = {}
    try:
        with replacing_folder(target) as folder:
            prepared.write_dictionaries(folder, task, encoder.dictionary_path)
            for split, path in files.items() if not hold_out else [("train", files["train"])]:
                report(f"{task.name}: reading {path}")
                counts |= _prepare_file(task, split, path, folder, encoder, report, skip_broken_rows, hold_out)
            encoder.tokenizer.save(folder)
            prepared.write_glue_file(folder, task, {split: c.for_glue_file(task) for split, c in counts.items()})
    except OSError as error:
        raise UserError(f"{target}: the prepared data cannot be written ({error.strerror or error})") from error
    return counts


def _prepare_file(
    task: GlueTask,
    split: str,
    path: Path,
    folder: Path,
    encoder: "IdEncoder",
    report: Callable[[str], None],
    skip_broken_rows: bool,
    hold_out: float,
) -> dict[str, SplitCounts]:
    """Write the rows of the official file of `split`; of those held out, the split `valid` is made."""
    from rt_plugin.glue.prepared import SplitWriter

    names = {split: f"{1 - hold_out:g} of {path.name}", "valid": f"{hold_out:g} of {path.name}"}
    counts = {name: SplitCounts(file) for name, file in names.items()} if hold_out else {split: SplitCounts(path.name)}

    def on_broken_row(error: UserError) -> None:
        counts[split].left_out += 1
        report(f"left out: {error}")

    examples = read_examples(task, split, path, on_broken_row if skip_broken_rows else None)
    # the rows of one MultiRC passage follow each other and share it
    encode = functools.lru_cache(maxsize=16)(encoder.encode)
    unknown = encoder.dictionary.unk()
    writers = {name: SplitWriter(folder, task, name, len(encoder.dictionary)) for name in counts}
    for example in track(examples, f"{task.name} {split}", report=report):
        target = "valid" if hold_out and is_held_out(example.texts[0], hold_out) else split
        texts = [encode(text) for text in example.texts]
        writers[target].add(texts, example.label, example.group)
        counts[target].rows += 1
        counts[target].tokens += sum(map(len, texts))
        counts[target].unknown += sum(int((ids == unknown).sum()) for ids in texts)
    for name, writer in writers.items():
        if not counts[name].rows:
            wanted = f"some for {name}, with --hold-out {hold_out:g}" if hold_out else f"the {split} rows"
            raise UserError(f"{path}: no rows; expected {wanted} of {task.name}")
        writer.close()
        if writer.has_labels and not task.is_regression:
            counts[name].labels.update(task.labels[label] for label in writer.labels)
    return counts


def chosen_tasks(names: Sequence[str] | None, glue_dir: Path) -> list[tuple[GlueTask, Path]]:
    """The tasks with their source folders: the named ones, or all that GLUE_DIR holds.

    Raises:
        UserError: GLUE_DIR or the folder of a named task is missing, or no task is there.
    """
    if not glue_dir.is_dir():
        raise UserError(f"{glue_dir}: no such folder; expected one with task folders such as {glue_dir / 'QNLI'}")
    everything = (*(task.name for task in TASKS), *own.names_in(glue_dir))
    tasks = [own.task_of_folder(name, glue_dir / name) for name in dict.fromkeys(names or everything)]
    pairs = [(task, source_folder(task, glue_dir)) for task in tasks]
    if names and (missing := [task.name for task, folder in pairs if folder is None]):
        raise UserError(f"{glue_dir}: no folder for {', '.join(missing)}; expected {glue_dir / missing[0]}")
    found = [(task, folder) for task, folder in pairs if folder is not None]
    if not found:
        raise UserError(
            f"{glue_dir}: no task folder there; expected some of {', '.join(BY_NAME)}, or your own with a task.json"
        )
    return found


def _with_train_set(chosen: Sequence[tuple[GlueTask, Path]], named: bool) -> list[tuple[GlueTask, Path]]:
    without = [task.name for task, _ in chosen if "train" not in task.files]
    if without and (named or len(without) == len(chosen)):
        raise UserError(f"--hold-out: {', '.join(without)} has no train set to hold rows out of; name other --tasks")
    return [(task, folder) for task, folder in chosen if task.name not in without]


def format_table(counts: dict[str, dict[str, SplitCounts]]) -> str:
    """A table of all counts, one line a split."""
    rows = []
    for task, splits in counts.items():
        for split, c in splits.items():
            labels = ", ".join(f"{name} {number:,}" for name, number in sorted(c.labels.items())) or "-"
            unknown = f"{100 * c.unknown / max(1, c.tokens):.2f} %"
            rows.append((task, split, c.file, f"{c.rows:,}", f"{c.tokens:,}", unknown, labels))
    headings = ("task", "split", "file", "rows", "tokens", "unknown", "labels")
    return plain_table(headings, rows, left=(0, 1, 2, 6))


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
    add_hold_out(parser)
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
    from rt_plugin.text.encode import IdEncoder

    encoder = IdEncoder.load(args.model)
    if args.download:
        download(args.tasks, args.glue_dir, read_sources(args.urls), commands.report)
    chosen = chosen_tasks(args.tasks, args.glue_dir)
    if args.hold_out:
        chosen = _with_train_set(chosen, bool(args.tasks))
    # all files are found before the first is read, so that a missing one does not show after minutes
    needed = needed_splits(args.hold_out)
    jobs = [(task, source_files(task, folder, args.subsets, needed)) for task, folder in chosen]
    counts = {
        task.name: prepare_task(task, files, args.out, encoder, commands.report, args.skip_broken_rows, args.hold_out)
        for task, files in jobs
    }
    print(format_table(counts))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("prepare-glue", lambda: prepare(args))
