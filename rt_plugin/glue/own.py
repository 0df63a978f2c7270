"""Tasks of one's own: described in a task.json beside their files, and then carried along in glue.json.

{"texts": ["sentence"], "label": "label", "labels": ["neg", "pos"]}              classes, in the order of their indices
{"texts": ["a", "b"], "label": "score", "score_range": [0, 5]}                   a score
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rt_plugin.errors import UserError
from rt_plugin.glue.specs import BY_NAME, LOWER_IS_BETTER, METRICS, GlueTask, find_task
from rt_plugin.text.records import kind_of

TASK_FILE = "task.json"
_KEYS = ("texts", "label", "labels", "score_range", "metrics", "headline", "files")
_OF_CLASSES = (("accuracy", "f1_macro"), ("accuracy",))  # metrics, headline
_OF_SCORES = (("pearson", "spearman", "rmse"), ("pearson", "spearman"))
_FILES = {"train": "train", "valid": "dev", "test": "test"}


def task_of_folder(name: str, folder: Path) -> GlueTask:
    """A task by its name: of the table, or as the task.json of a folder with its files describes it.

    Raises:
        UserError: the table has no such task and the folder no such file, or it says something else.
    """
    path = folder / TASK_FILE
    if not path.is_file():
        return find_task(name, names_in(folder.parent))
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); see docs/glue.md") from None
    if name in BY_NAME:
        raise UserError(f"{path}: {name} is a task of the table; give the folder another name")
    return make_task(name, description, str(path), {path.name for path in folder.iterdir()})


def names_in(folder: Path) -> list[str]:
    """The names of the tasks in a folder that describe themselves."""
    return sorted(path.parent.name for path in folder.glob(f"*/{TASK_FILE}") if path.is_file())


def make_task(name: str, description: Any, where: str, files: set[str] | None = None) -> GlueTask:
    """A task from its description.

    Args:
        name: of the task.
        description: see above; `metrics` and `headline` are names of `rt_plugin.glue.specs.METRICS`; `files`: split ->
            name, the splits being train, valid (or dev) and test; by default train, dev and test, .tsv or .jsonl.
        where: for errors.
        files: the names in its folder, where there is one.

    Raises:
        UserError: the description is wrong.
    """
    if not isinstance(description, dict) or (unknown := [key for key in description if key not in _KEYS]):
        found = f"unknown key {unknown[0]!r}" if isinstance(description, dict) else "no JSON object"
        raise UserError(f"{where}: {found}; expected some of {', '.join(_KEYS)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in description.items()}
    if not isinstance(given.get("label", ""), str):
        raise UserError(f"{where}: label is {description['label']!r}, expected the name of a column or key")
    if "files" in given:
        given["files"] = _files(description["files"], where)
    for key in ("texts", "labels", "metrics", "headline"):
        if key in given and not (isinstance(given[key], tuple) and all(isinstance(x, str) for x in given[key])):
            raise UserError(f"{where}: {key} is {description[key]!r}, expected a list of names")
    if len(given.get("texts", ())) not in (1, 2):
        raise UserError(f"{where}: texts names {len(given.get('texts', ()))} columns, expected one or two")
    if ("labels" in given) == (given.get("score_range") is not None):
        raise UserError(
            f"{where}: expected labels, in the order of their class indices, or a score_range such as [0, 5]"
        )
    if "labels" in given and (len(set(given["labels"])) < max(2, len(given["labels"]))):
        raise UserError(f"{where}: labels are {', '.join(given['labels'])}; expected two or more, each once")
    metrics, headline = _OF_CLASSES if "labels" in given else _OF_SCORES
    given = {"labels": (), "metrics": metrics, "headline": headline, **given}
    given["metrics"] = tuple(dict.fromkeys((*given["metrics"], metrics[0])))  # which tells whether a run failed
    more = ("mcc",) if len(given["labels"]) > 2 else ("f1", "mcc") if given["labels"] else ()
    _check_metrics(given, where, {*metrics, *more})
    names = given.setdefault("files", {split: f"{file}{_suffix(files or set())}" for split, file in _FILES.items()})
    reader = "jsonl" if any(kind_of(Path(file)) == "json" for file in names.values()) else "tsv"
    return GlueTask(name=name, reader=reader, benchmark="", **given)


def of_earlier_versions(description: Any) -> Any:
    """A description that was taken before, without the files that this version would refuse."""
    files = description.get("files") if isinstance(description, dict) else None
    if not isinstance(files, dict):
        return description
    kept = {split: file for split, file in files.items() if _is_split(split)}
    if "valid" in kept:
        kept.pop("dev", None)
    return {**description, "files": kept}


def _is_split(name: str) -> bool:
    return name in ("train", "dev") or name.startswith(("valid", "test"))


def _files(named: Any, where: str) -> dict[str, str]:
    """split -> file, `dev` under its name `valid`."""
    if not (isinstance(named, dict) and all(isinstance(name, str) for name in named.values())):
        raise UserError(f"{where}: files is {named!r}, expected an object of split -> file name")
    wrong = [split for split in named if not _is_split(split)]
    if wrong or {"dev", "valid"} <= named.keys():
        found = repr(wrong[0]) if wrong else "'dev' and 'valid', which are one split"
        raise UserError(
            f"{where}: files names {found}, expected some of train, valid (or dev) and test, or a name that begins "
            "with valid or test"
        )
    return {"valid" if split == "dev" else split: file for split, file in named.items()}


def _check_metrics(given: dict, where: str, possible: set[str]) -> None:
    for key in ("metrics", "headline"):
        if wrong := [name for name in given[key] if name not in possible]:
            usable = ", ".join(name for name in METRICS if name in possible)
            raise UserError(f"{where}: {key} names {wrong[0]!r}, expected some of {usable}")
    if wrong := LOWER_IS_BETTER & set(given["headline"]):
        raise UserError(f"{where}: headline names {min(wrong)!r}, of which the lowest is the best; name another metric")
    if not given["headline"] or not set(given["headline"]) <= set(given["metrics"]):
        raise UserError(f"{where}: headline is {given['headline']}, expected one or more of its metrics")
    low_high = given.get("score_range")
    if low_high is not None and not (
        isinstance(low_high, tuple)
        and [type(x) in (int, float) for x in low_high] == [True] * 2
        and low_high[0] < low_high[1]
    ):
        raise UserError(f"{where}: score_range is {low_high!r}, expected the lowest and the highest score")


def _suffix(files: set[str]) -> str:
    return ".jsonl" if "train.jsonl" in files else ".tsv"


def describe(task: GlueTask) -> dict | None:
    """What `make_task` makes the task of again; None for a task of the table."""
    if task.name in BY_NAME:
        return None
    values = asdict(task)
    kept = {field.name: values[field.name] for field in fields(task) if field.name in _KEYS}
    return {key: value for key, value in kept.items() if not (key in ("labels", "score_range") and not value)}
