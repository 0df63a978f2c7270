"""The CSV files of a replication: what is committed, and all that tables and figures are made of.

plan.json          the plan
runs.csv           a row a pretraining, written as they end; see `RUN_COLUMNS`
curves.csv         their validation losses: after so many updates, tokens and hours
held_out.csv, positions.csv, frequencies.csv    of the final runs on the test split; see replicate/heldout.py
finetuning.csv     fine-tunings of the final encoders, model: the arm, or a variant of one; columns as in
                   rt_plugin/glue/results.py; and what needs no encoder, without a learning rate
minimal_pairs.csv  share of minimal pairs that the final encoders judge right
steps.csv          seconds an update of each arm, measured side by side; see replicate/steps.py
"""

import csv
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rt_plugin.console import tables
from rt_plugin.console.files import replacing, sha256
from rt_plugin.errors import UserError
from rt_plugin.replicate.plan import FINAL, Plan, Run, read_plan
from rt_plugin.replicate.runs import last_loss, read_curve, read_ending, read_parameters

PLAN_FILE, RUNS_FILE, CURVES_FILE = "plan.json", "runs.csv", "curves.csv"
HELD_OUT_FILES = ("held_out.csv", "positions.csv", "frequencies.csv")
PHENOMENA_FILE = "phenomena.csv"  # as rt-plugin minimal-pairs calls it
PAIRS_FILE, FINETUNING_FILE, STEPS_FILE = "minimal_pairs.csv", "finetuning.csv", "steps.csv"
ABOVE_UNIGRAM = "above unigram"
CHECKSUM_DIGITS = 16
# losses in bits a masked token: the last validation's, the best one's, and that over <mask> positions of the test
# split; hours: of training, over all attempts; failed: empty, "diverged", "above unigram" (the last validation loss
# is), "broke off" (it will be tried again) or "under way", then `why`
RUN_COLUMNS = (
    *("scale", "stage", "arm", "options", "parameters", "learning_rate", "seed", "updates", "tokens"),
    *("valid_loss", "best_valid_loss", "test_loss", "hours", "tokens_per_second", "failed", "why", "commit", "date"),
)
STEPS_COLUMNS = ("arm", "seconds", "low", "high", "rounds", "tokens", "device")
CURVE_COLUMNS = ("stage", "arm", "learning_rate", "seed", "update", "tokens", "hours", "valid_loss")
OF_A_RUN = ("arm", "learning_rate", "seed")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping]) -> None:
    """Write a CSV file, whole or not at all; numbers that are not finite become empty."""
    tables.write_csv(path, columns, rows, lambda v: "" if isinstance(v, float) and not math.isfinite(v) else v)


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no such file.

    Raises:
        UserError: it cannot be read, or a column is missing.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a CSV file of rt-plugin replicate") from None
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: no column {missing[0]}; expected a CSV file of rt-plugin replicate")
    return rows


def write_runs(plan: Plan, runs: Sequence[Run], out: Path, unigram_bits: float) -> None:
    """Write plan.json, runs.csv and curves.csv of the runs that have begun, into OUT/results.

    Args:
        unigram_bits: of the validation text under the unigram model.
    """
    folder = results_folder(out)
    with replacing(folder / PLAN_FILE) as file:
        file.write((json.dumps(plan.source, indent=2) + "\n").encode())
    rows, curves = [], []
    for run in runs:
        points = read_curve(run.folder(out))
        ending = read_ending(run, out)
        if not points and ending is None:
            continue
        rows.append(_run_row(plan, run, out, unigram_bits))
        curves += [
            {
                **_key(run),
                "stage": run.stage,
                "update": point.update,
                "tokens": point.tokens,
                "hours": point.hours,
                "valid_loss": point.loss,
            }
            for point in points
        ]
    write_csv(folder / RUNS_FILE, RUN_COLUMNS, rows)
    write_csv(folder / CURVES_FILE, CURVE_COLUMNS, curves)


def checksum(checkpoint: Path) -> str:
    """The first digits of a checkpoint's SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    return sha256(checkpoint)[:CHECKSUM_DIGITS]


def results_folder(out: Path) -> Path:
    """Where the CSV files of OUT are."""
    return out / "results"


def evaluation_folder(run: Run, out: Path) -> Path:
    """Where what is measured on the encoder of a run goes."""
    return out / "evaluation" / run.name


def pairs_folder(run: Run, data: str, mask: str, out: Path) -> Path:
    """Where rt-plugin minimal-pairs writes what it measured on the encoder of a run, with several ways of masking."""
    return evaluation_folder(run, out) / data / mask


def finetuning_file(variant: str, out: Path) -> Path:
    """The CSV file of the fine-tunings of an arm, or of a variant of one."""
    return out / "glue" / variant / "results.csv"


def floor_file(task: str, out: Path) -> Path:
    """The CSV file of what needs no encoder on a task."""
    return out / "glue" / "floor" / f"{task}.csv"


def _key(run: Run) -> dict:
    return {"arm": run.arm.name, "learning_rate": f"{run.learning_rate:g}", "seed": run.seed}


def _run_row(plan: Plan, run: Run, out: Path, unigram_bits: float) -> dict:
    folder, ending = run.folder(out), read_ending(run, out)
    curve = read_curve(folder)
    loss = last_loss(curve)
    failed = ending.failed if ending else "under way"
    why = ending.why if ending else ""
    if not failed and loss > unigram_bits:
        failed, why = ABOVE_UNIGRAM, f"the unigram model has {unigram_bits:.3f} bits"
    held_out = read_csv(evaluation_folder(run, out) / HELD_OUT_FILES[0]) if run.stage == FINAL else []
    tokens, hours = (curve[-1].tokens, curve[-1].hours) if curve else (0, 0.0)
    return {
        "scale": plan.scale,
        "stage": run.stage,
        **_key(run),
        "options": shlex.join([run.arm.model, *run.arm.options]),
        "parameters": read_parameters(folder),
        "updates": curve[-1].update if curve else 0,
        "tokens": tokens,
        "valid_loss": loss,
        "best_valid_loss": min((p.loss for p in curve if math.isfinite(p.loss)), default=math.nan),
        "test_loss": held_out[0]["loss"] if held_out else "",
        "hours": hours,
        "tokens_per_second": round(tokens / hours / 3600) if hours else "",
        "failed": failed,
        "why": why,
        "commit": ending.commit if ending else "",
        "date": ending.date if ending else "",
    }


def write_evaluations(runs: Sequence[Run], out: Path) -> None:
    """Put what was measured on the test split run by run together, into OUT/results.

    Raises:
        UserError: two runs were measured on different tokens, as of another corpus or with other masks.
    """
    measured = {}
    for run in runs:
        for row in read_csv(evaluation_folder(run, out) / HELD_OUT_FILES[0]):
            measured[row["masked"], row["unigram_loss"]] = run.name
    if len(measured) > 1:
        (a, b), (one, other) = list(measured)[:2], list(measured.values())[:2]
        raise UserError(
            f"{out}: {one} was measured on {a[0]} tokens (unigram loss {a[1]}), {other} on {b[0]} ({b[1]}); "
            "the corpus is not the same: choose another --out"
        )
    for name in HELD_OUT_FILES:
        rows = [
            {**_key(run), **{key: value for key, value in row.items() if key != "model"}}
            for run in runs
            for row in read_csv(evaluation_folder(run, out) / name)
        ]
        if rows:
            write_csv(results_folder(out) / name, list(rows[0]), rows)


def write_pairs(runs: Iterable[Run], out: Path) -> None:
    """Put what was measured on minimal pairs run by run together, whatever the data, into OUT/results."""
    rows = []
    for run in runs:
        for path in sorted(evaluation_folder(run, out).glob(f"*/*/{PHENOMENA_FILE}")):
            judged = read_csv(path, ("model", "phenomenon", "mask", "accuracy"))
            of_run = {**_key(run), "data": path.parent.parent.name}
            rows += [{**of_run, **{name: value for name, value in row.items() if name != "model"}} for row in judged]
    if rows:
        write_csv(results_folder(out) / PAIRS_FILE, list(rows[0]), rows)


def write_finetunings(files: Iterable[Path], out: Path) -> None:
    """Put the CSV files of fine-tuning sweeps together, into OUT/results."""
    rows = [row for path in files for row in read_csv(path)]
    if rows:
        columns = dict.fromkeys(name for row in rows for name in row)  # files of another version have others
        write_csv(results_folder(out) / FINETUNING_FILE, list(columns), rows)


def read_results_plan(folder: Path) -> Plan:
    """The plan beside the CSV files.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = folder / PLAN_FILE
    try:
        return read_plan(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {error}; give the folder `results` of rt-plugin replicate") from None
