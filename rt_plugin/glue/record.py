"""The record of a sweep, which keeps its folder to one model with one set of options."""

import argparse
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rt_plugin.console.files import replacing, sha256
from rt_plugin.errors import UserError
from rt_plugin.glue.plan import PlannedRun
from rt_plugin.glue.prepared import dictionary_files
from rt_plugin.model_folder.checkpoint import checkpoint_path
from rt_plugin.model_folder.files import GLUE_FILE

COMMAND_FILE = "command.txt"  # of a run
SWEEP_FILE = "sweep.json"
_CHECKSUM_DIGITS = 16
_FREE = ("--save-dir", "--cpu", "--distributed-world-size")  # the last two: between CPU and GPU
# in which runs of one sweep differ
_OF_A_RUN = (*_FREE, "--lr", "--seed", "--warmup-updates", "--total-num-update", "--valid-subset")
_PLACES = ("--user-dir", "--finetune-from-model")  # as seen from the folder where the command ran
_MODEL, _MODEL_SUM = "checkpoint", "checkpoint sha256"


def describe_sweep(args: argparse.Namespace, runs: Sequence[PlannedRun]) -> dict[str, str | int]:
    """What all runs of an OUT folder have in common: name of a property -> its value.

    Raises:
        UserError: a file cannot be read.
    """
    checkpoint = checkpoint_path(args.model, args.checkpoint)
    folders = {run.task.name: args.data / run.task.name for run in runs}
    return {
        "name": args.name or checkpoint.parent.resolve().name,
        _MODEL: str(checkpoint),
        _MODEL_SUM: checksum(checkpoint),
        "epochs": args.epochs,
        "batch size": args.batch_size,
        "fairseq options": shlex.join(args.fairseq_options) or "none",
        **{
            f"{task} data sha256": checksum(folder / GLUE_FILE, dictionary_files(folder)[0])
            for task, folder in folders.items()
        },
    }


def checksum(*paths: Path) -> str:
    """The first digits of the SHA-256 of files, one after the other.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        return sha256(*paths)[:_CHECKSUM_DIGITS]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def record_sweep(out: Path, description: dict[str, str | int], runs: Sequence[PlannedRun]) -> None:
    """Write sweep.json, or add further tasks to it.

    Raises:
        UserError: the folder holds another sweep, by its sweep.json, or by its runs (earlier versions wrote no such
            file).
    """
    path = out / SWEEP_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected what rt-plugin finetune-glue wrote; remove the file") from None
    different = [name for name, value in description.items() if before.get(name, value) != value]
    known = before.get(_MODEL_SUM) == description[_MODEL_SUM]
    if known and _MODEL in different:
        different.remove(_MODEL)  # the same file, by another path
    if different:
        begun, found = (", ".join(f"{name} {d[name]}" for name in different) for d in (before, description))
        raise UserError(f"{out}: was begun with {begun}, found now {found}; choose another OUT folder")
    _check_runs(out, runs, _PLACES if known else ())
    with replacing(path) as file:
        file.write(json.dumps({**before, **description}, indent=2).encode())


def _check_runs(out: Path, runs: Sequence[PlannedRun], known: Sequence[str]) -> None:
    """Refuse other options than those that the runs were begun with; `known`: options that are compared elsewhere."""
    planned = {run.folder: run.command for run in runs}
    for path in sorted(out.glob(f"*/lr*-seed*/{COMMAND_FILE}")):
        free = (*(_FREE if path.parent in planned else _OF_A_RUN), *known)
        before = _options(shlex.split(path.read_text(encoding="utf-8")), free)
        now = _options(planned.get(path.parent, runs[0].command), free)
        if before != now:
            raise UserError(
                f"{path.parent}: was begun with {' '.join(sorted(before - now)) or 'fewer options'}, found now "
                f"{' '.join(sorted(now - before)) or 'fewer options'}; choose another OUT folder"
            )


def _options(command: Sequence[str], left_out: Sequence[str]) -> set[str]:
    """The options, each with its value."""
    pairs = itertools.pairwise([*command, "--"])
    return {a if b.startswith("--") else f"{a} {b}" for a, b in pairs if a.startswith("--") and a not in left_out}
