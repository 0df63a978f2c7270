"""The results of fine-tuning runs: from a run's dev metrics to one row, and the CSV file of a sweep.

Columns: model, task, lr, seed; epochs (trained), best_epoch (of the highest score); train_loss (mean over the last
epoch: bits for classes, squared error of scores from 0 to 1 for regression); failed (0 or 1); majority (share of the
most frequent class in the dev set); seconds; then for `score`, the headline number, and for every metric best_...
(at best_epoch) and last_... (after the last epoch), as fractions. A second dev set has columns that end in _mismatched.
`checkpoint`: the first digits of the pretrained checkpoint's SHA-256; files of earlier versions have no such column.
Empty: the task has no such metric. "undefined": it has no value (a correlation with a constant). Rows of
`rt-plugin glue-baselines`, whose models are not fine-tuned, have no lr.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rt_plugin.console import tables
from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.glue.specs import BY_NAME, METRICS, GlueTask, task_rank

CSV_FILE = "results.csv"  # of a sweep
RESULT_FILE = "result.json"  # of a run: its row
LOG_FILE = "train.log"  # of a run: all that fairseq-train said
METRICS_FILE = "dev_metrics.jsonl"  # of a run: one line an evaluation
SCORE = "score"  # the mean of a task's headline metrics
UNDEFINED = "undefined"
WHEN = ("best", "last")
_SECOND_DEV_SET = "valid_mismatched"
_RUN_COLUMNS = (
    *("model", "task", "lr", "seed", "epochs", "best_epoch", "train_loss", "failed", "majority", "seconds"),
)
_METRIC_COLUMNS = (
    *(f"{when}_{name}" for name in (SCORE, *METRICS) for when in WHEN),
    *(f"{when}_{name}_mismatched" for name in (SCORE, "accuracy") for when in WHEN),
)
_CHECKPOINT = "checkpoint"
_LOG_END = 4096  # bytes of a log in which fairseq tells its progress once or more
COLUMNS: tuple[str, ...] = (*_RUN_COLUMNS, *_METRIC_COLUMNS, _CHECKPOINT)


def run_folder(out: Path, task: str, lr: float, seed: int) -> Path:
    """Where a sweep into `out` has the run of a task."""
    return out / task / f"lr{lr:g}-seed{seed}"


def read_dev_metrics(folder: Path) -> list[dict]:
    """The dev metrics that a run left in its --save-dir, in the order of its updates.

    An evaluation that was repeated after an interruption counts once; half a line of a killed run is passed over.
    """
    path = folder / METRICS_FILE
    entries = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        entries[entry["updates"], entry["split"]] = entry
    return [entries[key] for key in sorted(entries)]


def epochs_in_log(folder: Path) -> float:
    """The epochs that a run has trained, with the part of the present one, by the end of its log; 0 without one."""
    log = folder / LOG_FILE
    if not log.is_file():
        return 0.0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_END))
        told = re.findall(rb'"update": ([0-9.]+)', file.read())
    return float(told[-1]) if told else 0.0


def summarize(task: GlueTask, entries: Sequence[dict], labels: dict[str, int], diverged: bool = False) -> dict:
    """The columns of a row that come from a run's dev metrics.

    A run failed if it ended no better than the majority class, as in Mosbach et al. 2021 (arXiv 2006.04884): its last
    accuracy on the dev set is at most the share of the most frequent class. Where the headline is a correlation
    (Matthews for CoLA, Pearson for regression), the majority class has 0, and a run failed if its last correlation is
    undefined or not positive. A run that diverged failed, too.

    Args:
        task: of the run.
        entries: see `read_dev_metrics`.
        labels: label name -> rows of the dev set; empty for regression.
        diverged: the run ended early in a loss that is not finite; it then has no last metrics.

    Returns:
        column -> value; an undefined metric is nan.
    """
    dev = [entry for entry in entries if entry["split"] == "valid"]
    best = max(dev, key=lambda entry: (_defined(entry[SCORE], -math.inf), entry["updates"]), default={})
    last = {} if diverged or not dev else dev[-1]
    majority = max(labels.values()) / sum(labels.values()) if labels else None
    row = {
        "epochs": dev[-1]["epoch"] if dev else 0,
        "best_epoch": best.get("epoch"),
        "train_loss": _defined(last.get("train_loss"), math.nan),
        "failed": int(_has_failed(task, last, majority)),
        "majority": majority,
    }
    second = {entry["updates"]: entry for entry in entries if entry["split"] == _SECOND_DEV_SET}
    for when, entry in zip(WHEN, (best, last), strict=True):
        for name in (SCORE, *task.metrics):
            row[f"{when}_{name}"] = _defined(entry.get(name), math.nan)
            if second:
                value = second.get(entry.get("updates"), {}).get(name)
                row[f"{when}_{name}_mismatched"] = _defined(value, math.nan)
    return row


def _has_failed(task: GlueTask, last: dict, majority: float | None) -> bool:
    correlation = "pearson" if task.is_regression else "mcc" if "mcc" in task.headline else None
    if correlation:
        value, floor = last.get(correlation), 0.0
    else:  # where one of two candidates is chosen (COPA), the share of the rows is that of a blind choice, too
        value, floor = last.get("choice_accuracy", last.get("accuracy")), majority
    return value is None or value <= floor


def _defined(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def write_csv(path: Path, rows: Iterable[dict]) -> None:
    """Write all rows in a fixed order: by model, task (as in the task table), learning rate, seed.

    The file appears whole or not at all.
    """
    ordered = sorted(rows, key=lambda r: (r["model"], task_rank(r["task"]), r["lr"] or 0.0, r["seed"]))
    tables.write_csv(path, COLUMNS, ordered, lambda value: UNDEFINED if _is_nan(value) else value)


def _is_nan(value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def restore_runs(path: Path) -> None:
    """Make finished runs of the rows of a sweep's CSV file, beside it, so that a sweep there runs what is left.

    Raises:
        UserError: see `read_csv`.
    """
    runs = read_csv(path)
    with path.open(encoding="utf-8", newline="") as file:
        for run, row in zip(runs, csv.DictReader(file), strict=True):
            if run.lr is None or run.task.name not in BY_NAME:  # it becomes the name of a folder
                continue
            values = {name: _value(name, text) for name, text in row.items() if text}
            with replacing(run_folder(path.parent, run.task.name, run.lr, run.seed) / RESULT_FILE) as result:
                result.write(json.dumps(values, indent=2).encode())


def _value(column: str, text: str) -> str | int | float:
    """What was written as this text."""
    if column in ("model", "task", _CHECKPOINT):
        return text
    if text == UNDEFINED:
        return math.nan
    return int(text) if text.lstrip("-").isdecimal() else float(text)


@dataclass(frozen=True)
class Run:
    """One row of a sweep's CSV.

    Attributes:
        model, task, lr, seed: which run; lr is None for what needs no encoder (`rt-plugin glue-baselines`).
        failed: see `summarize`.
        values: column -> metric; nan where it is undefined; columns that the task does not have are left out.
        checkpoint: that it began with (see above); empty where the file does not say.
    """

    model: str
    task: GlueTask
    lr: float | None
    seed: int
    failed: bool
    values: dict[str, float]
    checkpoint: str = ""


def read_csv(path: Path) -> list[Run]:
    """Read the CSV file of a sweep.

    Raises:
        UserError: the file is missing, is no such file, or a row is broken (file, line, what was found).
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in (*_RUN_COLUMNS, *_METRIC_COLUMNS) if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}, line 1: no column {missing[0]}; expected a file of rt-plugin finetune-glue")
            return [_read_row(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read it ({error}); expected a file of rt-plugin finetune-glue") from None


def _read_row(path: Path, line: int, row: dict[str, str]) -> Run:
    if None in row or None in row.values():
        less = "fewer" if None in row.values() else "more"
        raise UserError(f"{path}, line {line}: {less} columns than line 1 has; is it cut off? Take the whole file")
    try:
        values = {name: _metric(name, row[name]) for name in _METRIC_COLUMNS if row[name]}
        scores = [f"{when}_{SCORE}" for when in (WHEN if row["lr"] else WHEN[:1])]  # a floor has no last epoch
        if missing := [name for name in scores if name not in values]:
            raise ValueError(f"no {missing[0]}")
        task = BY_NAME.get(row["task"]) or GlueTask(
            row["task"], (), (), (), ()
        )  # of one's own: its name is enough here
        failed, checkpoint = bool(int(row["failed"])), row.get(_CHECKPOINT) or ""
        lr = float(row["lr"]) if row["lr"] else None
        return Run(row["model"], task, lr, int(row["seed"]), failed, values, checkpoint)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}, line {line}: {error}; expected a row written by rt-plugin finetune-glue") from None


def _metric(column: str, text: str) -> float:
    """A metric as `write_csv` writes it; nan where it is undefined."""
    if text == UNDEFINED:
        return math.nan
    value = float(text)
    lowest, highest = (0.0, math.inf) if "rmse" in column else (-1.0, 1.0)
    if not (lowest <= value <= highest and math.isfinite(value)):
        raise ValueError(f"{column} is {text}, expected a number from {lowest:g} to {highest:g}, or {UNDEFINED}")
    return value
