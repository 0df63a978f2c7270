"""Tables and a plot of how often models get minimal pairs right; several models side by side."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rt_plugin.console import figures
from rt_plugin.console.files import replacing
from rt_plugin.console.tables import markdown_table, write_csv
from rt_plugin.evaluation.pairs import Accuracy, accuracy_of, mean_of, paired_difference

FILES = ("report.md", "paradigms.csv", "phenomena.csv", "accuracy.png")
MEAN_OF_PARADIGMS = "mean over paradigms"
MEAN_OF_PHENOMENA = "mean over phenomena"


@dataclass(frozen=True)
class Run:
    """The results of one model.

    Attributes:
        model: its name.
        mask: how sentences were scored.
        pairs: says which pairs; equal where they are the same.
        scores: paradigm -> (good, bad) for each of its pairs.
        phenomena: paradigm -> phenomenon.
    """

    model: str
    mask: str
    pairs: str
    scores: dict[str, list[tuple[float, float]]]
    phenomena: dict[str, str]

    def paradigms(self) -> dict[str, Accuracy]:
        """Paradigm -> how many of its pairs are right."""
        return {name: accuracy_of(scores) for name, scores in self.scores.items()}

    def phenomenon_means(self) -> dict[str, Accuracy]:
        """Phenomenon -> mean over its paradigms; then the mean over all paradigms and that over the phenomena."""
        accuracies = self.paradigms()
        groups = defaultdict(list)
        for name, phenomenon in self.phenomena.items():
            if phenomenon:
                groups[phenomenon].append(accuracies[name])
        means = {phenomenon: mean_of(groups[phenomenon]) for phenomenon in sorted(groups)}
        overall = {MEAN_OF_PARADIGMS: mean_of(list(accuracies.values()))}
        if len(groups) > 1:
            overall[MEAN_OF_PHENOMENA] = mean_of(list(means.values()))
        return {**means, **overall}

    def shown(self) -> dict[str, Accuracy]:
        """What the plot has a row for: phenomena, or paradigms where there are none; then the means."""
        return {**({} if any(self.phenomena.values()) else self.paradigms()), **self.phenomenon_means()}


def write_report(runs: Sequence[Run], out: Path) -> str:
    """Write `FILES` into a folder: the CSV files for the first run, report and plot for all.

    Returns:
        the Markdown text.

    Raises:
        UserError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    run = runs[0]
    paradigms = ((("paradigm", name), ("phenomenon", run.phenomena[name])) for name in run.scores)
    _write_csv(out / "paradigms.csv", run, zip(paradigms, run.paradigms().values(), strict=True))
    means = run.phenomenon_means()
    _write_csv(out / "phenomena.csv", run, (((("phenomenon", name),), mean) for name, mean in means.items()))
    text = _markdown(runs)
    with replacing(out / "report.md") as file:
        file.write(text.encode())
    _plot(runs, out / "accuracy.png")
    return text


def _write_csv(path: Path, run: Run, rows: Iterable[tuple[Iterable[tuple[str, str]], Accuracy]]) -> None:
    named = [{"model": run.model, "mask": run.mask, **dict(names), **asdict(accuracy)} for names, accuracy in rows]
    write_csv(path, list(named[0]), named, lambda value: f"{value:.6f}" if isinstance(value, float) else value)


def _markdown(runs: Sequence[Run]) -> str:
    first = runs[0]
    means = [run.phenomenon_means() for run in runs]
    own = means[0][MEAN_OF_PARADIGMS]
    names = list(dict.fromkeys(name for column in means for name in column))
    names.sort(key=(MEAN_OF_PARADIGMS, MEAN_OF_PHENOMENA).__contains__)  # the means last, all else as it is
    headings = [f"{run.model} ({run.mask})" for run in runs]
    parts = [
        "# Minimal pairs",
        "Share of pairs, in per cent, of which the acceptable sentence has the higher pseudo-log-likelihood, with 95 % "
        f"intervals over pairs; in brackets: what is masked. {first.model}: {own.pairs:,} pairs of {len(first.scores)} "
        f"paradigms, {own.ties:,} ties, which count as wrong. Chance is 50.",
        markdown_table(["phenomenon", *headings], [[name, *(_cell(m.get(name)) for m in means)] for name in names]),
    ]
    differences = [_difference(first, other) for other in runs[1:]]
    parts += ["\n".join(filter(None, differences))] if any(differences) else []
    accuracies = [run.paradigms() for run in runs]
    rows = [[name, first.phenomena[name], *(_cell(a.get(name)) for a in accuracies)] for name in first.scores]
    parts += ["## Paradigms", markdown_table(["paradigm", "phenomenon", *headings], rows, left=(0, 1))]
    parts.append("![Accuracy by phenomenon](accuracy.png)")
    return "\n\n".join(parts) + "\n"


def _cell(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    return f"{100 * accuracy.accuracy:.1f} ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"


def _difference(run: Run, other: Run) -> str:
    if run.pairs != other.pairs:
        return f"- {other.model} ({other.mask}) has read other pairs: no difference is given."
    mean, low, high = paired_difference(run.scores.values(), (other.scores[name] for name in run.scores))
    return (
        f"- {run.model} ({run.mask}) - {other.model} ({other.mask}), {MEAN_OF_PARADIGMS}: {100 * mean:+.1f} points "
        f"(95 % interval over the same pairs: {100 * low:+.1f} to {100 * high:+.1f})"
    )


def _plot(runs: Sequence[Run], path: Path) -> None:
    names = list(runs[0].shown())
    labels = [f"{run.model} ({run.mask})" for run in runs]
    colours = figures.colours(labels)
    title = "Minimal pairs right, with 95 % intervals over pairs; small dots: paradigms; dotted: chance"
    with figures.panels(path, 1, title, height=0.8 + (0.14 + 0.1 * len(runs)) * len(names)) as (axes,):
        for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
            _draw(axes, run, names, 0.7 * ((i + 0.5) / len(runs) - 0.5), colours[label], label)
        axes.axvline(50, color="black", lw=0.8, ls=":")
        axes.set(xlim=(0, 100), xlabel="pairs right, %")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()


def _draw(axes, run: Run, names: Sequence[str], shift: float, colour: str, label: str) -> None:
    accuracies, means = run.paradigms(), run.shown()
    dots = [(names.index(p), accuracies[name]) for name, p in run.phenomena.items() if p in names]
    places, shares = [i + shift for i, _ in dots], [100 * a.accuracy for _, a in dots]
    axes.plot(shares, places, ".", color=colour, alpha=0.35, ms=3)
    found = [(i + shift, means[name]) for i, name in enumerate(names) if name in means]
    centers = [100 * mean.accuracy for _, mean in found]
    errors = [[100 * (m.accuracy - m.low) for _, m in found], [100 * (m.high - m.accuracy) for _, m in found]]
    axes.errorbar(centers, [place for place, _ in found], xerr=errors, fmt="o", capsize=2, color=colour, label=label)
