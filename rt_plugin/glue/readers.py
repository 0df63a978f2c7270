"""The official GLUE (TSV) and SuperGLUE (JSON lines) files: found, and read into examples row by row."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rt_plugin.errors import UserError
from rt_plugin.glue.specs import GlueTask
from rt_plugin.text.raw import read_lines


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        texts: one or two texts.
        label: a class index, or the score on the task's own scale; None where the file has no labels.
        group: number of the group (`GlueTask.group`) that the row belongs to; None without groups.
    """

    texts: tuple[str, ...]
    label: int | float | None = None
    group: int | None = None


@dataclass(frozen=True)
class _Row:
    """A place in a file, for error messages, and the values found there."""

    path: Path
    number: int
    values: dict[str, Any]

    def error(self, found: str, expected: str) -> UserError:
        return UserError(f"{self.path}, line {self.number}: found {found}, expected {expected}")

    def get(self, key: str, kind: type | tuple[type, ...] = str) -> Any:
        """The value of a key; a JSON line may lack it or hold another type."""
        if key not in self.values:
            raise self.error(f"the keys {', '.join(self.values)}", f"also {key!r}")
        value = self.values[key]
        if not isinstance(value, kind):
            names = " or ".join(t.__name__ for t in (kind if isinstance(kind, tuple) else (kind,)))
            raise self.error(f"{key}: {_shorten(value)}", f"a value of type {names}")
        return value


def source_folder(task: GlueTask, glue_dir: Path) -> Path | None:
    """The folder with the task's official files, or None."""
    for name in (task.name, *task.folders):
        if (glue_dir / name).is_dir():
            return glue_dir / name
    return None


def source_files(
    task: GlueTask, folder: Path, subsets: bool = False, needed: Sequence[str] = ("train", "valid")
) -> dict[str, Path]:
    """split -> file, for the splits that are there.

    Args:
        subsets: prefer the table's reduced files where they exist.
        needed: splits that must be there where the task has them; the train set alone where rows of it are held out.

    Raises:
        UserError: a file that is needed is missing, or there is no file at all.
    """
    found = {}
    for split, name in task.files.items():
        subset = task.subset_files.get(split)
        if subsets and subset and (folder / subset).is_file():
            name = subset
        if (folder / name).is_file():
            found[split] = folder / name
        elif split in needed:
            hint = f"; {subset} is there: add --subsets to use it" if subset and (folder / subset).is_file() else ""
            raise UserError(f"{task.name}: no {folder / name}, expected the {task.official}{split} file{hint}")
    if not found:
        raise UserError(f"{task.name}: none of {', '.join(task.files.values())} in {folder}")
    return found


def read_examples(
    task: GlueTask,
    split: str,
    path: Path,
    on_broken_row: Callable[[UserError], None] | None = None,
    advice: str = "correct the line, or leave out broken lines with --skip-broken-rows",
) -> Iterator[Example]:
    """Read a file of a task, but for blank lines, which are rows only of a TSV with one column.

    Args:
        task: the row of the task table.
        split: name of the split; only those named test* may be without labels.
        path: the file.
        on_broken_row: is told of each broken row, which is then left out; default: the first one raises.
        advice: what to do about a broken row that raises; default: that of rt-plugin prepare-glue.

    Raises:
        UserError: the file is missing, empty or not UTF-8, lacks a column, or has a broken row (file, line, what was
            found, what was expected).
    """
    lines = _tsv_lines(task, split, path) if task.reader == "tsv" else json_lines(path)
    for number, line in lines:
        try:
            # a list: a broken line gives all of its examples or none
            examples = list(READERS[task.reader](task, split, path, number, line))
        except UserError as error:
            if on_broken_row is None:
                raise UserError(f"{error}; {advice}") from None
            on_broken_row(error)
            continue
        yield from examples


def json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of JSON lines that are not blank, with their numbers, from 1."""
    return ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())


def _tsv_lines(task: GlueTask, split: str, path: Path) -> Iterator[tuple[int, tuple[list[str], str]]]:
    """Line numbers with (column names, line)."""
    lines = enumerate(read_lines(path), start=1)
    columns = task.headers.get(split)
    if columns is None:
        columns = next(lines)[1].split("\t")
    wanted = list(task.texts) + ([] if _may_lack_labels(split) else [task.label])
    if missing := [name for name in wanted if name not in columns]:
        raise UserError(
            f"{path}, line 1: columns found: {', '.join(columns)}; expected also {', '.join(missing)} "
            f"(the {task.official}{task.name} layout, tab-separated, with a header line)"
        )
    for number, line in lines:
        if line.strip(" ") or len(columns) == 1:
            yield number, (columns, line)


def _read_tsv(task: GlueTask, split: str, path: Path, number: int, line: tuple[list[str], str]) -> Iterator[Example]:
    columns, text = line
    values = text.split("\t")  # unquoted: a quotation mark is a character like any other
    row = _Row(path, number, dict(zip(columns, values, strict=False)))
    if len(values) != len(columns):
        raise row.error(
            f"{len(values)} tab-separated columns in {_shorten(text)}", f"{len(columns)} ({', '.join(columns)})"
        )
    yield Example(tuple(row.values[name] for name in task.texts), _label(task, split, row))


def _read_jsonl(task: GlueTask, split: str, path: Path, number: int, line: str) -> Iterator[Example]:
    row = _json_row(path, number, line)
    yield Example(tuple(row.get(name) for name in task.texts), _label(task, split, row))


def _read_multirc(task: GlueTask, split: str, path: Path, number: int, line: str) -> Iterator[Example]:
    """A passage with its questions and their answers: one example an answer, grouped by question."""
    passage = _inner(_json_row(path, number, line), "passage")
    for position, question in enumerate(passage.get("questions", list)):
        question = _Row(path, number, question)
        # no passage has as many questions as this; a running number would depend on the lines left out
        group = number * 10_000 + position
        for answer in question.get("answers", list):
            answer = _Row(path, number, answer)
            second = f"{question.get('question')} {answer.get('text')}"
            yield Example((passage.get("text"), second), _label(task, split, answer), group)


_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def _read_copa(task: GlueTask, split: str, path: Path, number: int, line: str) -> Iterator[Example]:
    """A premise and two choices: one example a choice, labelled 1 where it is the right one."""
    row = _json_row(path, number, line)
    if row.get("question") not in _COPA_QUESTIONS:
        raise row.error(f"question {row.get('question')!r}", " or ".join(_COPA_QUESTIONS))
    premise = f"{row.get('premise')} {_COPA_QUESTIONS[row.get('question')]}"
    right = _label(task, split, row)
    for choice in (0, 1):
        label = None if right is None else int(choice == right)
        yield Example((premise, row.get(f"choice{choice + 1}")), label, number)


def _read_wic(task: GlueTask, split: str, path: Path, number: int, line: str) -> Iterator[Example]:
    """Two sentences with the same word, which is marked by quotation marks in both."""
    row = _json_row(path, number, line)
    texts = tuple(_mark_word(row, f"sentence{n}", f"start{n}", f"end{n}") for n in (1, 2))
    yield Example(texts, _label(task, split, row))


def _mark_word(row: _Row, sentence_key: str, start_key: str, end_key: str) -> str:
    sentence = row.get(sentence_key)
    start, end = row.get(start_key, int), row.get(end_key, int)
    if not 0 <= start < end <= len(sentence):
        raise row.error(
            f"{start_key} {start} and {end_key} {end}",
            f"a word within the {len(sentence)} characters of {sentence_key}",
        )
    return f'{sentence[:start]}"{sentence[start:end]}"{sentence[end:]}'


READERS: dict[str, Callable[..., Iterator[Example]]] = {
    "tsv": _read_tsv,
    "jsonl": _read_jsonl,
    "multirc": _read_multirc,
    "copa": _read_copa,
    "wic": _read_wic,
}


def _json_row(path: Path, number: int, line: str) -> _Row:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise _Row(path, number, {}).error(_shorten(line), "one JSON object a line")
    return _Row(path, number, values)


def _inner(row: _Row, key: str) -> _Row:
    return _Row(row.path, row.number, row.get(key, dict))


def _may_lack_labels(split: str) -> bool:
    return split.startswith("test")


def _or_none(task: GlueTask, split: str) -> str:
    return f", or no {task.label!r} at all" if _may_lack_labels(split) else ""


def _label(task: GlueTask, split: str, row: _Row) -> int | float | None:
    """The class index or score of a row, by the table."""
    if task.label not in row.values and _may_lack_labels(split):
        return None
    value = row.get(task.label, (str, bool, int, float))
    if task.is_regression:
        return _score(task, split, row, value)
    # JSON has true, false and numbers where the table has names
    name = value if isinstance(value, str) else json.dumps(value)
    if name not in task.labels:
        raise row.error(
            f"label {_shorten(name)} in {task.label}", f"one of {', '.join(task.labels)}{_or_none(task, split)}"
        )
    return task.labels.index(name)


def _score(task: GlueTask, split: str, row: _Row, value: str | float) -> float:
    low, high = task.score_range
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not low <= score <= high:
        raise row.error(
            f"score {_shorten(value)} in {task.label}", f"a number from {low:g} to {high:g}{_or_none(task, split)}"
        )
    return score


def _shorten(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
