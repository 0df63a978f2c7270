"""The layout of prepared data on disk, which is that of fairseq's `sentence_prediction`: written and read here alone.

input0/{train,valid,test}.{bin,idx}, dict.txt     the first text
input1/...                                        the second text of pairs
label/{train,valid}.{bin,idx}, dict.txt           class names, in the order of the task table
label/{train,valid}.label                         or scores, scaled to 0-1
group/{train,valid,test}.txt                      the group of each row, for tasks scored by groups
glue.json                                         the task's name, files and counts
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils, indexed_dataset

from rt_plugin.errors import UserError
from rt_plugin.glue import own
from rt_plugin.glue.specs import BY_NAME, GlueTask, find_task, generic_task
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import DICTIONARY_FILE, GLUE_FILE, LABEL_DICTIONARY_FILE

_INPUTS = ("input0", "input1")


def write_dictionaries(folder: Path, task: GlueTask, dictionary: Path) -> None:
    """Make the folders of a task's rows, with a copy of the inputs' dictionary and with the labels' own one."""
    for name in _INPUTS[: len(task.texts)]:
        (folder / name).mkdir()
        shutil.copyfile(dictionary, folder / name / DICTIONARY_FILE)
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


class SplitWriter:
    """Writes the rows of a split into a folder that `write_dictionaries` has made.

    Args:
        folder: of the task.
        task: of the rows.
        split: its name.
        vocabulary: symbols in the inputs' dictionary.
    """

    def __init__(self, folder: Path, task: GlueTask, split: str, vocabulary: int):
        self._folder, self._task, self._split = folder, task, split
        self._inputs = [IndexedWriter(folder / name / split, vocabulary) for name in _INPUTS[: len(task.texts)]]
        self._groups: list[int | None] = []
        self.labels: list[int | float | None] = []

    @property
    def has_labels(self) -> bool:
        """Whether every row has one; those of the official test sets have none."""
        return None not in self.labels

    def add(self, texts: Sequence[torch.Tensor], label: int | float | None, group: int | None) -> None:
        """Write a row: the token ids of its texts, each (length,) and ending with </s>, its label and its group."""
        for writer, ids in zip(self._inputs, texts, strict=True):
            writer.add(ids)
        self.labels.append(label)
        self._groups.append(group)

    def close(self) -> None:
        """Write what comes after the last row; without it there is no split."""
        for writer in self._inputs:
            writer.close()
        if self.has_labels:
            prefix = self._folder / "label" / self._split
            self._write_scores(prefix) if self._task.is_regression else self._write_classes(prefix)
        if self._task.group:
            text = "".join(f"{group}\n" for group in self._groups)
            (self._folder / "group" / f"{self._split}.txt").write_text(text)

    def _write_scores(self, prefix: Path) -> None:
        low, high = self._task.score_range
        lines = (f"{(score - low) / (high - low)!r}\n" for score in self.labels)
        prefix.with_name(f"{prefix.name}.label").write_text("".join(lines))

    def _write_classes(self, prefix: Path) -> None:
        dictionary = label_dictionary(self._task.labels)
        writer = IndexedWriter(prefix, len(dictionary))
        for label in self.labels:
            writer.add(torch.tensor([dictionary.nspecial + label, dictionary.eos()]))
        writer.close()


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


def write_glue_file(folder: Path, task: GlueTask, splits: dict[str, dict]) -> None:
    """Write glue.json, the last file of a prepared folder; split -> file, rows, left_out, labels (name -> rows)."""
    description = own.describe(task)
    own_task = {} if description is None else {"description": description}
    text = json.dumps({"task": task.name, **own_task, "splits": splits}, indent=2) + "\n"
    (folder / GLUE_FILE).write_text(text, encoding="utf-8")


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
        task_in(content, str(path))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {error}; prepare the data again with rt-plugin prepare-glue") from None
    return content


def task_in(content: dict, where: str = GLUE_FILE) -> GlueTask:
    """The task that a glue.json names, or describes.

    Raises:
        UserError: it is in no table, or the description is wrong.
    """
    if "description" not in content:
        return find_task(content["task"])
    return own.make_task(content["task"], own.of_earlier_versions(content["description"]), where)


def task_of(
    folder: Path, name: str | None = None, num_classes: int | None = None, regression: bool = False
) -> GlueTask:
    """The task of a folder with prepared data, or of a model folder.

    Args:
        folder: its glue.json names the task, where there is one.
        name: as --glue-task gives it; needed where glue.json is not there.
        num_classes, regression: where neither names a task, those of a generic one.

    Raises:
        UserError: they contradict each other or name none.
    """
    prepared = read_glue_file(folder)
    if name and prepared and prepared["task"] != name:
        raise UserError(f"--glue-task {name}, but {folder / GLUE_FILE} says {prepared['task']}: other data")
    if prepared:
        return task_in(prepared)
    if name:
        return find_task(name)
    if not regression and (num_classes is None or num_classes < 2):
        raise UserError(
            f"{folder}: no {GLUE_FILE} there and --num-classes is {num_classes}; name the task with --glue-task, "
            "or give --num-classes (2 or more) or --regression-target"
        )
    texts = tuple(name for name in _INPUTS if (folder / name).is_dir())  # a model folder of earlier versions has none
    if regression:
        return generic_task(1, True, texts=texts)
    path = dictionary_files(folder)[1]
    labels = label_names(load_dictionary(path), num_classes)
    if len(labels) < num_classes:
        raise UserError(f"{path}: {len(labels)} labels ({', '.join(labels)}), expected {num_classes}")
    return generic_task(num_classes, False, labels, texts)


def dictionary_files(folder: Path) -> tuple[Path, Path]:
    """The dictionary and the label dictionary of a prepared data folder, or of a model folder.

    Raises:
        UserError: the folder is neither.
    """
    if (folder / _INPUTS[0]).is_dir():
        return folder / _INPUTS[0] / DICTIONARY_FILE, folder / "label" / DICTIONARY_FILE
    if (folder / DICTIONARY_FILE).is_file():
        return folder / DICTIONARY_FILE, folder / LABEL_DICTIONARY_FILE
    raise UserError(
        f"data folder {folder}: neither {_INPUTS[0]}/ nor {DICTIONARY_FILE} there; expected a folder written by "
        "rt-plugin prepare-glue (OUT/<TASK>) or a model folder"
    )


def load_labels(path: Path, task: GlueTask) -> Dictionary:
    """The label dictionary.

    Raises:
        UserError: it is missing, has too few labels, or others than the task's.
    """
    dictionary = load_dictionary(path)
    found = label_names(dictionary, task.num_classes)
    if len(found) < task.num_classes:
        raise UserError(f"{path}: {len(found)} labels ({', '.join(found)}), expected {task.num_classes}")
    if task.name in BY_NAME and tuple(found) != task.labels:
        raise UserError(
            f"{path}: labels {', '.join(found)}, expected {', '.join(task.labels)} in this order; "
            "prepare the data with rt-plugin prepare-glue"
        )
    return dictionary


def label_names(dictionary: Dictionary, num_classes: int) -> list[str]:
    """The labels of a label dictionary, in the order of the class indices."""
    return dictionary.symbols[dictionary.nspecial : dictionary.nspecial + num_classes]


def load_inputs(folder: Path, split: str, dictionary: Dictionary) -> list:
    """The one or two indexed data sets of a split's texts.

    Raises:
        UserError: the split is not there, or not all of it.
    """
    names = [name for name in _INPUTS if (folder / name).is_dir()]
    inputs = [data_utils.load_indexed_dataset(str(folder / name / split), dictionary) for name in names]
    if not inputs or None in inputs:
        found = ", ".join(sorted({path.stem for path in folder.glob("input*/*.idx")})) or "none"
        raise UserError(
            f"{folder}: split {split!r} is not complete there; splits found: {found}; expected "
            f"{', '.join(f'{name}/{split}.idx' for name in names or _INPUTS[:1])}; prepare it with "
            "rt-plugin prepare-glue"
        )
    return inputs


def load_classes(folder: Path, split: str, dictionary: Dictionary, num_classes: int) -> np.ndarray | None:
    """(N,) class indices of a split, or None where it has no labels.

    Raises:
        UserError: a label is none of the first `num_classes` of the label dictionary.
    """
    prefix = folder / "label" / split
    dataset = data_utils.load_indexed_dataset(str(prefix), dictionary)
    if dataset is None:
        return None
    classes = np.array([int(dataset[i][0]) for i in range(len(dataset))]) - dictionary.nspecial
    wrong = np.flatnonzero((classes < 0) | (classes >= num_classes))
    if len(wrong):
        raise UserError(
            f"{prefix}: row {wrong[0] + 1} (and {len(wrong) - 1} more) has a label that is none of "
            f"{', '.join(label_names(dictionary, num_classes))}; prepare the data with the label dictionary of this "
            "folder"
        )
    return classes


def load_scores(folder: Path, split: str) -> np.ndarray | None:
    """(N,) scores of a split, 0 to 1, or None where it has none.

    Raises:
        UserError: a line is not a number.
    """
    path = folder / "label" / f"{split}.label"
    if not path.is_file():
        return None
    scores = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            scores.append(float(line))
        except ValueError:
            raise UserError(f"{path}, line {number}: found {line!r}, expected one number from 0 to 1") from None
    return np.array(scores)


def load_groups(folder: Path, split: str) -> np.ndarray | None:
    """(N,) the group of each row of a split, or None where rows stand alone."""
    path = folder / "group" / f"{split}.txt"
    return np.loadtxt(path, dtype=np.int64, ndmin=1) if path.is_file() else None
