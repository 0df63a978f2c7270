"""Fine-tunings of the final encoders: what finetuning.csv has, and the third outcome, scores beside the floors."""

from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path

from rt_plugin.console.tables import markdown_table
from rt_plugin.glue.report import floors_named
from rt_plugin.glue.results import read_csv
from rt_plugin.glue.specs import task_rank
from rt_plugin.glue.statistics import AVERAGE, Results, TaskResult, collect, table
from rt_plugin.replicate.plan import Finetuning, Plan
from rt_plugin.replicate.results import FINETUNING_FILE

_SCORES = """\
Dev scores at the end of training, points of 100: the median over seeds at each arm's best rate, with the standard
deviation. The best rate is chosen on the same dev set, which favours an arm whose runs scatter more."""


def read_sweeps(folder: Path) -> tuple[Results, Results]:
    """(arm -> task -> its runs at the end of training, the same of what needs no encoder); both may be empty.

    Raises:
        UserError: the file is broken, or has a run twice.
    """
    file = folder / FINETUNING_FILE
    runs = read_csv(file) if file.is_file() else []
    parts = [run for run in runs if run.lr is not None], [run for run in runs if run.lr is None]
    sweeps, floors = (collect(part, "last") if part else {} for part in parts)
    return sweeps, floors


def tasks_of(planned: Finetuning) -> list[str]:
    """All tasks that encoders are fine-tuned on, in the order of tables."""
    return sorted({task for names, _ in planned.sweeps for task in names}, key=task_rank)


def fine_tuned(plan: Plan, failed: Collection[str] = ()) -> list[str]:
    """The arms that are fine-tuned and their variants, without those whose encoder failed."""
    variants = plan.finetuning.variants if plan.finetuning else {}
    return [name for name, (arm, _) in variants.items() if arm not in failed]


def left(plan: Plan, sweeps: Results, failed: Collection[str] = ()) -> int:
    """How many of the plan's fine-tunings have not ended.

    Args:
        failed: arms whose encoder did not end well, so that there is nothing to fine-tune.
    """
    return sum(_left(plan.finetuning, sweeps.get(name, {})) for name in fine_tuned(plan, failed))


def _left(planned: Finetuning, tasks: Mapping[str, TaskResult]) -> int:
    runs = set()
    for names, seeds in planned.sweeps:
        runs.update(product(names, planned.learning_rates, seeds))
    there = {(t, rate, seed) for t, sweep in tasks.items() for rate, found in sweep.scores.items() for seed in found}
    return len(runs - there)


def tasks_section(plan: Plan, sweeps: Results, floors: Results, failed: Collection[str] = ()) -> list[str]:
    """Third outcome: a row for each floor and arm, a column a task; empty before all fine-tunings have ended.

    Args:
        sweeps, floors: see `read_sweeps`.
        failed: see `left`.
    """
    if not sweeps or left(plan, sweeps, failed):
        return []
    rows = table(sweeps, floors)
    columns = list(dict.fromkeys(row["task"] for row in rows if row["task"] != AVERAGE))
    columns = [*sorted(columns, key=task_rank), AVERAGE]
    cells = {(row["model"], row["task"]): _cell(row, row["model"] in sweeps) for row in rows}
    shown = [[model, *(cells.get((model, task), "-") for task in columns)] for model in [*floors, *sweeps]]
    parts = ["## Third outcome: fine-tuned on tasks", _SCORES.replace("\n", " ")]
    parts.append(markdown_table(["model", *columns], shown))
    return [*parts, *([floors_named(sweeps, floors)] if floors else [])]


def _cell(row: Mapping, has_seeds: bool) -> str:
    spread = f" ± {row['std']:.1f}" if has_seeds and row["runs"] > 1 and row["task"] != AVERAGE else ""
    return f"{row['median']:.1f}{spread}"
