"""Tables and figures of a replication, from its CSV files alone: `rt-plugin replicate-report FOLDER...`

    FOLDER/report.md        the tables and what they say by the plan's rules
    FOLDER/figures.json     what the figures show, in numbers
    FOLDER/*.png            the figures

The same CSV files give the same report.md and figures.json.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rt_plugin.console import commands
from rt_plugin.console.files import replacing
from rt_plugin.console.tables import markdown_table
from rt_plugin.errors import UserError
from rt_plugin.glue.statistics import Results as Sweeps
from rt_plugin.replicate import figures, statistics
from rt_plugin.replicate.figures import Figure, Panel, Series, points_panel
from rt_plugin.replicate.finetunings import read_sweeps, tasks_section
from rt_plugin.replicate.pairs import MEAN_OF_PARADIGMS, pairs_figure, phenomena_table, read_pairs
from rt_plugin.replicate.plan import FINAL, SEARCH, Plan
from rt_plugin.replicate.results import (
    ABOVE_UNIGRAM,
    CURVE_COLUMNS,
    CURVES_FILE,
    HELD_OUT_FILES,
    RUN_COLUMNS,
    RUNS_FILE,
    STEPS_COLUMNS,
    STEPS_FILE,
    read_csv,
    read_results_plan,
)
from rt_plugin.replicate.runs import DIVERGED
from rt_plugin.replicate.stability import stability_figure, stability_section

REPORT_FILE = "report.md"
_LOSS = "validation loss, bits a masked token"
_FAILURES = (DIVERGED, ABOVE_UNIGRAM)
_NEAR = 1.0  # bits


@dataclass(frozen=True)
class Results:
    """The CSV files of a folder.

    Attributes:
        runs: rows of runs.csv.
        curves: (stage, arm, rate, seed) -> rows of curves.csv, in order.
        sweeps, floors: fine-tunings, and what needs no encoder; see `read_sweeps`.
    """

    plan: Plan
    runs: list[dict[str, str]]
    curves: dict[tuple[str, str, float, int], list[dict[str, str]]]
    sweeps: Sweeps
    floors: Sweeps

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read them.

        Raises:
            UserError: a file is missing or broken.
        """
        runs = read_csv(folder / RUNS_FILE, RUN_COLUMNS)
        if not runs:
            raise UserError(f"{folder / RUNS_FILE}: no run there; give the folder `results` of rt-plugin replicate")
        curves = defaultdict(list)
        for row in read_csv(folder / CURVES_FILE, CURVE_COLUMNS):
            curves[_key(row)].append(row)
        return cls(read_results_plan(folder), runs, dict(curves), *read_sweeps(folder))

    def of(self, stage: str) -> list[dict[str, str]]:
        """The runs of a stage that have ended, and did not break off."""
        return [row for row in self.runs if row["stage"] == stage and row["failed"] in ("", *_FAILURES)]

    def arms(self, stage: str) -> list[str]:
        """The arms with such runs, in the plan's order."""
        there = {row["arm"] for row in self.of(stage)}
        return [name for name in self.plan.arms if name in there]


def _key(row: Mapping[str, str]) -> tuple[str, str, float, int]:
    return row["stage"], row["arm"], float(row["learning_rate"]), int(row["seed"])


def outcome(row: Mapping[str, str]) -> float:
    """A final run's test loss or, where it failed or was not evaluated, its last finite validation loss."""
    if row["test_loss"] and row["failed"] not in _FAILURES:
        return float(row["test_loss"])
    return float(row["valid_loss"] or "nan")


def left(results: Results) -> int:
    """How many final runs have not ended: those of the plan's arms and seeds, but for arms that always diverged."""
    final, losses = results.plan.final, _search_losses(results)
    planned = [arm for arm in final.arms if arm not in losses or any(map(math.isfinite, losses[arm].values()))]
    return max(0, len(planned) * len(final.seeds) - len(results.of(FINAL)))


def unfit_for_finetuning(results: Results) -> list[str]:
    """The arms whose encoder that the plan fine-tunes failed, or which always diverged in the search."""
    if results.plan.finetuning is None:
        return []
    seed, losses = results.plan.finetuning.encoder_seed, _search_losses(results)
    failed = {row["arm"] for row in results.of(FINAL) if int(row["seed"]) == seed and row["failed"]}
    return [*failed, *(arm for arm, found in losses.items() if not any(map(math.isfinite, found.values())))]


def is_evaluated(results: Results) -> bool:
    """Whether all final runs that did not fail have a test loss: then outcomes are comparable."""
    return all(row["test_loss"] for row in results.of(FINAL) if not row["failed"])


def search_section(results: Results) -> list[str]:
    """Loss by learning rate and arm; the best rate in bold, and a warning where it is at an edge of the grid."""
    losses = _search_losses(results)
    if not losses:
        return []
    rates = sorted({rate for found in losses.values() for rate in found})
    rows, edges = [], []
    for arm, found in losses.items():
        finite = {rate: loss for rate, loss in found.items() if math.isfinite(loss)}
        best = min(finite, key=finite.get, default=None)
        rows.append([arm, *(_loss_cell(found, rate, best) for rate in rates), "-" if best is None else f"{best:g}"])
        if best in (rates[0], rates[-1]) and len(found) == len(rates) >= len(results.plan.search.learning_rates):
            edges.append(f"{arm} ({best:g})")
    parts = [
        "## Search for learning rates",
        f"Validation loss at the end, bits a masked token, {results.plan.search.updates:,} updates.",
        markdown_table(["arm", *(f"{rate:g}" for rate in rates), "best"], rows),
    ]
    if edges:
        parts.append(f"**At an edge of the grid, the optimum may lie beyond: {', '.join(edges)}.**")
    return parts


def _search_losses(results: Results) -> dict[str, dict[float, float]]:
    """Arm -> rate -> mean loss over seeds; infinite where a run diverged."""
    found = defaultdict(lambda: defaultdict(list))
    for row in results.of(SEARCH):
        loss = math.inf if row["failed"] == DIVERGED else float(row["valid_loss"])
        found[row["arm"]][float(row["learning_rate"])].append(loss)
    return {arm: {r: float(np.mean(x)) for r, x in found[arm].items()} for arm in results.arms(SEARCH)}


def _loss_cell(found: Mapping[float, float], rate: float, best: float | None) -> str:
    if rate not in found:
        return "-"
    if not math.isfinite(found[rate]):
        return "diverged"
    return f"**{found[rate]:.3f}**" if rate == best else f"{found[rate]:.3f}"


def final_section(results: Results) -> list[str]:
    """A row an arm: rate, parameters, validation and test loss with their spread over seeds, speed, failures."""
    rows = []
    for arm in results.arms(FINAL):
        runs = [row for row in results.of(FINAL) if row["arm"] == arm]
        valid = [float(row["valid_loss"] or "nan") for row in runs]
        measured = any(row["test_loss"] for row in runs)  # else a failed run's loss would stand there alone
        test = [outcome(row) for row in runs if row["test_loss"] or (measured and row["failed"] in _FAILURES)]
        failed = sum(bool(row["failed"]) for row in runs)
        tokens, hours = (np.mean([float(row[name]) for row in runs]) for name in ("tokens", "hours"))
        parameters = f"{int(runs[0]['parameters']):,}" if runs[0]["parameters"] else "-"
        rates = ", ".join(dict.fromkeys(row["learning_rate"] for row in runs))
        row = [arm, parameters, rates, str(len(runs)), _mean_and_spread(test), _mean_and_spread(valid)]
        rows.append([*row, f"{tokens / 1e6:.2f}", f"{hours:.2f}", str(failed)])
    if not rows:
        return []
    headings = ["arm", "parameters", "learning rate", "seeds", "test loss", "validation loss", "M tokens", "hours"]
    return [
        "## Final runs",
        "Means over seeds with standard deviations, bits a masked token. Test: over the <mask> positions of the test "
        "split, the same for all, or a failed run's last finite validation loss; validation: over all positions "
        "chosen, which differ by seed.",
        markdown_table([*headings, "failed"], rows),
        f"**{left(results)} final runs are left: nothing is compared before all have ended.**" if left(results) else "",
    ]


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def compared_arms(results: Results) -> list[tuple[str, str]]:
    """The plan's comparisons, with the substitutes that did better in the search in their places."""
    losses = _search_losses(results)
    best = {arm: min(found.values()) for arm, found in losses.items()}

    def chosen(arm: str) -> str:
        candidates = [name for name in (arm, *results.plan.substitutes.get(arm, ())) if name in best]
        return min(candidates, key=best.get, default=arm)

    return [(chosen(a), chosen(b)) for a, b in results.plan.comparisons]


def comparison_section(
    results: Results, values: Mapping[str, Sequence[float]], title: str, unit: str, least: float, concludes: bool
) -> list[str]:
    """The plan's comparisons of `values`, arm -> a value a seed, as one family of tests; lower is better.

    Args:
        least: a difference below counts as none.
        concludes: say which of the plan's verdicts, which are on losses, these comparisons give.
    """
    pairs = compared_arms(results)
    if not pairs or left(results) or any(arm not in values for pair in pairs for arm in pair):
        return []
    compared = statistics.compare([(values[a], values[b]) for a, b in pairs])
    rows = [
        [f"{i}. {a} - {b}", *statistics.comparison_cells(c), statistics.judged(c, least)]
        for i, ((a, b), c) in enumerate(zip(pairs, compared, strict=True), start=1)
    ]
    headings = [*statistics.COMPARISON_HEADINGS, "judged"]
    return [
        title,
        f"Difference of means over seeds, {unit}; negative favours the first arm. Each interval is for itself; p "
        f"(Holm) is corrected for all {len(pairs)} comparisons."
        + (f" Below {least:g} counts as none." if least else ""),
        markdown_table(headings, rows),
        f"**By the plan's rule: {verdict(results.plan, compared, least)}**" if concludes else "",
    ]


def verdict(plan: Plan, compared: Sequence[statistics.Comparison], least: float) -> str:
    """The first verdict of the plan whose comparisons are all in favour of their first arms."""
    lower = {i for i, c in enumerate(compared, start=1) if statistics.judged(c, least) == "lower"}
    found = (rule["says"] for rule in plan.source["verdicts"] if set(rule["in_favour"]) <= lower)
    return next(found, plan.source["otherwise"])


def read_steps(folder: Path) -> dict[str, float]:
    """Arm -> seconds an update; empty where that was not measured.

    Raises:
        UserError: the file is broken.
    """
    return {row["arm"]: float(row["seconds"]) for row in read_csv(folder / STEPS_FILE, STEPS_COLUMNS[:2])}


def time_section(results: Results, folder: Path) -> list[str]:
    """Validation loss at equal time: where each arm's curve is when the fastest arm has done all its updates."""
    steps = read_steps(folder)
    curves = {arm: _mean_curve(results, arm) for arm in results.arms(FINAL) if arm in steps}
    curves = {arm: curve for arm, curve in curves.items() if curve}  # not those that diverged before a validation
    if not curves:
        return []
    shared = min(steps[arm] * curve[-1][0] for arm, curve in curves.items())
    rows = []
    for arm, curve in curves.items():
        update = shared / steps[arm]
        loss = np.interp(update, *zip(*curve, strict=True))
        rows.append([arm, f"{1000 * steps[arm]:.1f}", f"{update:,.0f}", f"{loss:.3f}", f"{curve[-1][1]:.3f}"])
    return [
        "## At equal time",
        "Milliseconds an update, measured side by side; then the update, and the validation loss on the arm's curve, "
        "when the fastest arm is done. A curve read before its end has not seen the end of its schedule: the slower "
        "arm's loss would be lower had it been trained for that time.",
        markdown_table(["arm", "ms an update", "updates in that time", "loss then", "loss at the end"], rows),
    ]


def _mean_curve(results: Results, arm: str) -> list[tuple[int, float]]:
    """(update, mean validation loss over seeds) of an arm's final runs."""
    losses = defaultdict(list)
    for row in results.of(FINAL):
        if row["arm"] == arm:
            for point in results.curves.get(_key(row), ()):
                if point["valid_loss"]:
                    losses[int(point["update"])].append(float(point["valid_loss"]))
    return [(update, float(np.mean(found))) for update, found in sorted(losses.items())]


def position_section(folder: Path) -> list[str]:
    """Loss in the first and the second half of a block, and by frequency, means over seeds."""
    positions, frequencies = (read_csv(folder / name) for name in HELD_OUT_FILES[1:])
    if not positions:
        return []
    middle = max(int(row["last"]) for row in positions) / 2
    halves = {
        "first token": lambda row: int(row["first"]) == 1,
        "first half": lambda row: int(row["last"]) <= middle + 1,
        "second half": lambda row: int(row["last"]) > middle + 1,
    }
    bins = dict.fromkeys((int(row["per_million_from"]), int(row["below"])) for row in frequencies)
    names = [f"{low:,}-{high:,}" for low, high in sorted(bins)]
    places, often = [], []
    for arm in dict.fromkeys(row["arm"] for row in positions):
        own = [row for row in positions if row["arm"] == arm]
        places.append([arm, *(_weighted(list(filter(belongs, own))) for belongs in halves.values())])
        own = [row for row in frequencies if row["arm"] == arm]
        bands = ([row for row in own if int(row["per_million_from"]) == low] for low, _ in sorted(bins))
        often.append([arm, *map(_weighted, bands)])
    return [
        "## Where the loss is",
        "Test loss, bits a token, over <mask> positions; means over seeds. By position in the block:",
        markdown_table(["arm", *halves], places),
        "By how often the token occurs in a million tokens of the training text:",
        markdown_table(["arm", *names], often),
    ]


def _weighted(rows: Sequence[Mapping[str, str]]) -> str:
    tokens = [int(row["tokens"]) for row in rows]
    return f"{np.average([float(row['loss']) for row in rows], weights=tokens):.3f}" if rows else "-"


def make_figures(results: Results, folder: Path) -> list[Figure]:
    """All figures for which there are data."""
    found = [_curves_figure(results, stage, read_steps(folder)) for stage in (SEARCH, FINAL) if results.of(stage)]
    if losses := _search_losses(results):
        finite = {a: {r: x for r, x in rates.items() if math.isfinite(x)} for a, rates in losses.items()}
        series = [Series(arm, sorted(rates), [rates[r] for r in sorted(rates)]) for arm, rates in finite.items()]
        found.append(Figure("learning_rates", [Panel("", "learning rate", _LOSS, series, "log")]))
    if results.of(FINAL):
        found.append(_final_figure(results))
    found += figures.of_held_out(folder)
    found += pairs_figure(folder)
    found += stability_figure(results.sweeps, results.floors)
    return found


def _curves_figure(results: Results, stage: str, steps: Mapping[str, float]) -> Figure:
    """Loss against tokens and hours: of the search each arm's best run, of the final runs all seeds.

    Args:
        steps: arm -> seconds an update; where all arms are there, hours are updates of so long, and not those that
            passed, in which trainings side by side and other programs took turns.
    """
    shown = _shown(results, stage)
    axes: dict[str, Callable[[Mapping[str, str]], float]] = {"million tokens": lambda p: float(p["tokens"]) / 1e6}
    if all(row["arm"] in steps for row in shown):
        axes["hours, updates timed side by side"] = lambda p: int(p["update"]) * steps[p["arm"]] / 3600
    else:
        axes["hours (machine shared)"] = lambda p: float(p["hours"])
    panels = []
    for label, x in axes.items():
        series = []
        for row in shown:
            curve = [point for point in results.curves.get(_key(row), ()) if point["valid_loss"]]
            series.append(Series(row["arm"], list(map(x, curve)), [float(point["valid_loss"]) for point in curve]))
        panels.append(Panel("", label, _LOSS, series))
    return Figure(f"{stage}_curves", panels)


def _shown(results: Results, stage: str) -> list[dict[str, str]]:
    runs = sorted(results.of(stage), key=lambda row: list(results.plan.arms).index(row["arm"]))
    if stage == FINAL:
        return runs
    finite = [row for row in runs if row["failed"] != DIVERGED and row["valid_loss"]]
    best = {}
    for row in finite:
        if row["arm"] not in best or float(row["valid_loss"]) < float(best[row["arm"]]["valid_loss"]):
            best[row["arm"]] = row
    return list(best.values())


def _final_figure(results: Results) -> Figure:
    """A point a run; where arms lie far apart, those near the best once more, at a scale that tells them apart."""
    values = {arm: [outcome(row) for row in results.of(FINAL) if row["arm"] == arm] for arm in results.arms(FINAL)}
    means = {arm: float(np.mean(losses)) for arm, losses in values.items()}
    near = [arm for arm in means if means[arm] < min(means.values()) + _NEAR]
    label = "test loss, bits" if is_evaluated(results) else "validation loss, bits"
    groups = [list(values), near] if 1 < len(near) < len(values) else [list(values)]
    return Figure("final_loss", [points_panel("", label, {arm: values[arm] for arm in arms}) for arms in groups])


def write_report(folder: Path, out: Path) -> str:
    """Write report.md, figures.json and the figures of a folder's CSV files into `out`.

    Returns:
        the Markdown text.

    Raises:
        UserError: a file is missing or broken, or matplotlib is not installed.
    """
    results = Results.load(folder)
    drawn = make_figures(results, folder)
    about = results.plan.source["about"]
    parts = [f"# Replication at the scale `{results.plan.scale}`", f"{about[:1].upper()}{about[1:]}."]
    parts += [*search_section(results), *final_section(results)]
    values = defaultdict(list)
    for row in results.of(FINAL):
        values[row["arm"]].append(outcome(row))
    if values and is_evaluated(results):
        title = "## First outcome: loss on the test documents"
        parts += comparison_section(
            results, values, title, "bits a masked token", results.plan.least_difference, concludes=True
        )
    parts += pairs_section(results, folder)
    failed = unfit_for_finetuning(results)
    parts += [
        *time_section(results, folder),
        *position_section(folder),
        *tasks_section(results.plan, results.sweeps, results.floors, failed),
        *stability_section(results.plan, results.sweeps, failed),
    ]
    parts += failures_section(results)
    parts.append("\n\n".join(f"![{figure.name.replace('_', ' ')}]({figure.name}.png)" for figure in drawn))
    text = "\n\n".join(filter(None, parts)) + "\n"
    for name, content in ((REPORT_FILE, text), (figures.FIGURES_FILE, figures.as_json(drawn))):
        with replacing(out / name) as file:
            file.write(content.encode())
    figures.draw(drawn, out)
    return text


def pairs_section(results: Results, folder: Path) -> list[str]:
    """Second outcome: the share of minimal pairs judged wrong, so that lower is better as with losses."""
    parts = []
    measurable = sum(row["failed"] != DIVERGED for row in results.of(FINAL))
    for (data, mask), judgements in read_pairs(folder).items():
        values = judgements[MEAN_OF_PARADIGMS]
        rows = [[arm, str(len(x)), _mean_and_spread(x)] for arm, x in values.items()]
        parts.append(f"## Second outcome: minimal pairs, {data}, --mask {mask}")
        parts.append(markdown_table(["arm", "seeds", "per cent right, mean over paradigms"], rows))
        if missing := measurable - sum(map(len, values.values())):
            parts.append(f"**{missing} final runs were not measured on these pairs: nothing is compared.**")
        else:
            wrong = {arm: [100 - right for right in x] for arm, x in values.items()}
            parts += comparison_section(results, wrong, "", "points of wrong pairs", least=0, concludes=False)[1:]
        if table := phenomena_table(judgements):
            parts += ["By phenomenon, means over seeds:", table]
    return parts


def failures_section(results: Results) -> list[str]:
    """The runs that failed, are under way or broke off, with the reason."""
    rows = [
        [row["stage"], row["arm"], row["learning_rate"], row["seed"], row["updates"], row["failed"], row["why"][:100]]
        for row in results.runs
        if row["failed"]
    ]
    if not rows:
        return []
    headings = ["stage", "arm", "learning rate", "seed", "updates", "failed", "why"]
    return ["## Runs that failed or have not ended", markdown_table(headings, rows)]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("replicate-report", __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path, help="OUT/results of rt-plugin replicate")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the report (default: beside the CSV files)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: see `write_report`; or several folders shall be written into one.
    """
    if args.out and len(args.folders) > 1:
        raise UserError(f"--out {args.out}: takes one report, and {len(args.folders)} folders are given; leave it out")
    for folder in args.folders:
        out = args.out or folder
        write_report(folder, out)
        print(out / REPORT_FILE)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `replicate-report`; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("replicate-report", lambda: run(args))
