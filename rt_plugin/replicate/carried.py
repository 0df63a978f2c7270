"""Runs whose trainings are on another machine, or gone: what a results folder says of them is taken over and stays.

OUT/<stage>/<run>/carried.json    in the place of a training: its parameters and its curve
OUT/<stage>/<run>.json            how it ended, as of runs that were trained here
OUT/evaluation/<run>/, OUT/glue/<variant>/results.csv    what was measured on its encoder
OUT/glue/floor/<task>.csv         what needs no encoder
"""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.glue.results import restore_runs
from rt_plugin.glue.specs import BY_NAME
from rt_plugin.replicate.plan import FINAL, Plan, Run
from rt_plugin.replicate.results import (
    ABOVE_UNIGRAM,
    CURVE_COLUMNS,
    CURVES_FILE,
    FINETUNING_FILE,
    HELD_OUT_FILES,
    OF_A_RUN,
    PAIRS_FILE,
    PHENOMENA_FILE,
    RUN_COLUMNS,
    RUNS_FILE,
    STEPS_FILE,
    evaluation_folder,
    finetuning_file,
    floor_file,
    pairs_folder,
    read_csv,
    results_folder,
    write_csv,
)
from rt_plugin.replicate.runs import CARRIED_FILE, DIVERGED, DONE, Ending, write_ending

_ENDED = ("", DIVERGED, ABOVE_UNIGRAM)


def carry(plan: Plan, runs_so_far: Callable[[], Sequence[Run]], source: Path, out: Path) -> list[Run]:
    """Take over the runs of a results folder that have ended, of which `out` has no training.

    A final run that did not fail is taken over if it was measured on the test split: of another one the encoder would
    be needed, and it is trained again.

    Args:
        runs_so_far: the runs of the plan as far as `out` tells them; asked again after each that was taken over.
        source: the folder, with runs.csv and the files beside it.

    Returns:
        the runs taken over.

    Raises:
        UserError: a file is missing or broken, or a run was not the plan's.
    """
    try:
        carried = _carry_runs(plan, runs_so_far, source, out)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: {error}; expected the CSV files as rt-plugin replicate wrote them") from None
    _carry_steps(source, out)
    _carry_floor(source, out)
    return carried


def _carry_runs(plan: Plan, runs_so_far: Callable[[], Sequence[Run]], source: Path, out: Path) -> list[Run]:
    rows = {_name(row): row for row in read_csv(source / RUNS_FILE, RUN_COLUMNS) if row["failed"] in _ENDED}
    if not rows:
        raise UserError(
            f"{source / RUNS_FILE}: no run there that has ended; give a folder `results` of rt-plugin replicate"
        )
    curves = read_csv(source / CURVES_FILE, CURVE_COLUMNS)
    carried: list[Run] = []
    measured = {_name(row) for row in read_csv(source / HELD_OUT_FILES[0], OF_A_RUN)}
    while found := [run for run in runs_so_far() if _can_be_carried(run, rows, measured, out)]:
        for run in found:
            row = rows[run.stage, run.name]
            _check(plan, run, row, source)
            if run.stage == FINAL:
                _carry_measurements(plan, run, source, out)
            _carry_training(run, row, [point for point in curves if _name(point) == (run.stage, run.name)], out)
        carried += found
    return carried


def _name(row: Mapping[str, str]) -> tuple[str, str]:
    """Stage and name of the run that a row is of."""
    return row.get("stage", FINAL), f"{row['arm']}-lr{float(row['learning_rate']):g}-seed{row['seed']}"


def _can_be_carried(run: Run, rows: Mapping, measured: set[tuple[str, str]], out: Path) -> bool:
    name = (run.stage, run.name)
    is_measured = name in measured and bool(rows.get(name, {}).get("test_loss"))
    return (
        name in rows
        and not run.folder(out).exists()
        and (run.stage != FINAL or is_measured or rows[name]["failed"] == DIVERGED)
    )


def _check(plan: Plan, run: Run, row: Mapping[str, str], source: Path) -> None:
    found = (row["scale"], row["options"], row["updates"] if not row["failed"] else str(run.updates))
    wanted = (plan.scale, shlex.join([run.arm.model, *run.arm.options]), str(run.updates))
    for there, here in zip(found, wanted, strict=True):
        if there != here:
            raise UserError(
                f"{source / RUNS_FILE}: {run.stage} {run.name} has {there!r}, the plan {here!r}; give its plan"
            )


def _carry_training(run: Run, row: Mapping[str, str], curve: Sequence[Mapping[str, str]], out: Path) -> None:
    failed, why = (DONE, "") if row["failed"] == ABOVE_UNIGRAM else (row["failed"], row["why"])
    write_ending(run, out, Ending(failed, why, row["commit"], row["date"]))
    points = [[int(p["update"]), int(p["tokens"]), float(p["hours"]), float(p["valid_loss"] or "nan")] for p in curve]
    parameters = int(row["parameters"]) if row["parameters"] else None
    with replacing(run.folder(out) / CARRIED_FILE) as file:  # last: with it, the run is there
        file.write((json.dumps({"parameters": parameters, "curve": points}) + "\n").encode())


def _carry_measurements(plan: Plan, run: Run, source: Path, out: Path) -> None:
    for name in HELD_OUT_FILES:
        _write_rows(evaluation_folder(run, out) / name, run.name, _of(run, read_csv(source / name, OF_A_RUN)))
    pairs = _of(run, read_csv(source / PAIRS_FILE, (*OF_A_RUN, "data", "mask")))
    for data, mask in dict.fromkeys((row["data"], row["mask"]) for row in pairs):
        if any(Path(name).name != name or name == ".." for name in (data, mask)):  # they become names of folders
            raise UserError(f"{source / PAIRS_FILE}: data {data!r}, mask {mask!r}; expected names without a slash")
        chosen = [row for row in pairs if (row["data"], row["mask"]) == (data, mask)]
        _write_rows(pairs_folder(run, data, mask, out) / PHENOMENA_FILE, run.name, chosen, ("data",))
    for name in plan.finetuning.of(run) if plan.finetuning else ():
        tuned = [row for row in read_csv(source / FINETUNING_FILE, ("model",)) if row["model"] == name]
        if tuned:
            write_csv(finetuning_file(name, out), list(tuned[0]), tuned)
            restore_runs(finetuning_file(name, out))


def _of(run: Run, rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return [row for row in rows if _name(row) == (FINAL, run.name)]


def _write_rows(path: Path, model: str, rows: Sequence[Mapping[str, str]], leave_out: Sequence[str] = ()) -> None:
    """Write rows of a results folder as the program that measured them did: the model in the place of the run."""
    if rows:
        columns = [name for name in rows[0] if name not in (*OF_A_RUN, *leave_out)]
        write_csv(
            path, ["model", *columns], [{"model": model, **{name: row[name] for name in columns}} for row in rows]
        )


def _carry_steps(source: Path, out: Path) -> None:
    steps = read_csv(source / STEPS_FILE)
    if steps and not (results_folder(out) / STEPS_FILE).exists():
        write_csv(results_folder(out) / STEPS_FILE, list(steps[0]), steps)


def _carry_floor(source: Path, out: Path) -> None:
    floors = [row for row in read_csv(source / FINETUNING_FILE, ("model", "task", "lr")) if not row["lr"]]
    for task in dict.fromkeys(row["task"] for row in floors):
        rows = [row for row in floors if row["task"] == task]
        if task in BY_NAME and not floor_file(task, out).exists():  # it becomes the name of a file
            write_csv(floor_file(task, out), list(rows[0]), rows)
