"""Figures as data: what is drawn is made from CSV files first, so that a test can compare it, then drawn."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rt_plugin.console import figures as console_figures
from rt_plugin.replicate.results import HELD_OUT_FILES, read_csv

FIGURES_FILE = "figures.json"
_DIGITS = 6  # of what is kept: the last bits differ between machines
_LINE, _POINTS, DOTTED = "line", "points", "dotted"
_STYLES = {
    _LINE: {"marker": ".", "ls": "-"},
    _POINTS: {"marker": ".", "ls": ""},
    DOTTED: {"marker": "", "ls": ":"},
}


@dataclass(frozen=True)
class Series:
    """One line, or points: y against x, both alike long; `low` and `high` are the ends of error bars, or empty."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: str = _LINE


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `ticks`: names for x = 0, 1, ... instead of numbers."""

    title: str
    xlabel: str
    ylabel: str
    series: Sequence[Series]
    xscale: str = "linear"
    ticks: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """One image file, `name`.png."""

    name: str
    panels: Sequence[Panel]


def points_panel(title: str, ylabel: str, values: Mapping[str, Sequence[float]]) -> Panel:
    """A point a run; values: arm -> a value a seed."""
    series = [Series(arm, [i] * len(found), found, style=_POINTS) for i, (arm, found) in enumerate(values.items())]
    return Panel(title, "", ylabel, series, ticks=list(values))


def of_held_out(folder: Path) -> list[Figure]:
    """Loss by position and by frequency, from positions.csv and frequencies.csv: means over the runs of an arm."""
    _, positions, frequencies = (read_csv(folder / name) for name in HELD_OUT_FILES)
    loss = "loss on <mask>, bits a token"
    found = []
    if positions:
        place = _means(positions, lambda row: (int(row["first"]) + int(row["last"])) / 2)
        panels = [
            Panel("", "position in the block", loss, _lines(place)),
            Panel("", "position in the block (logarithmic)", loss, _lines(place), "log"),
        ]
        found.append(Figure("positions", panels))
    if frequencies:
        often = _means(frequencies, lambda row: math.sqrt(max(1, int(row["per_million_from"])) * int(row["below"])))
        found.append(
            Figure("frequencies", [Panel("", "occurrences in a million training tokens", loss, _lines(often), "log")])
        )
    return found


def _means(rows: Iterable[Mapping[str, str]], x) -> dict[str, dict[float, float]]:
    """Label -> x -> mean loss."""
    values = defaultdict(lambda: defaultdict(list))
    for row in rows:
        values[row.get("arm") or row["model"]][x(row)].append(float(row["loss"]))
    return {label: {at: sum(y) / len(y) for at, y in points.items()} for label, points in values.items()}


def _lines(values: Mapping[str, Mapping[float, float]]) -> list[Series]:
    return [Series(label, sorted(points), [points[x] for x in sorted(points)]) for label, points in values.items()]


def as_json(figures: Iterable[Figure]) -> str:
    """What figures show, rounded: for comparing."""
    return json.dumps([_rounded(asdict(figure)) for figure in figures], indent=1) + "\n"


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def draw(figures: Iterable[Figure], out: Path) -> None:
    """Write each figure as a PNG into a folder.

    Raises:
        UserError: matplotlib is not installed.
    """
    for figure in figures:
        colours = console_figures.colours(list(dict.fromkeys(s.label for panel in figure.panels for s in panel.series)))
        path, title = out / f"{figure.name}.png", figure.name.replace("_", " ")
        with console_figures.panels(path, len(figure.panels), title) as axes:
            for ax, panel in zip(axes, figure.panels, strict=True):
                _draw_panel(ax, panel, colours)


def _draw_panel(ax, panel: Panel, colours: Mapping[str, str]) -> None:
    for s in panel.series:
        line = {**_STYLES[s.style], "color": colours[s.label], "label": s.label}
        if s.low:
            spread = [[y - low for y, low in zip(s.y, s.low, strict=True)]]
            spread.append([high - y for y, high in zip(s.y, s.high, strict=True)])
            ax.errorbar(s.x, s.y, yerr=spread, capsize=2, **line)
        else:
            ax.plot(s.x, s.y, **line)
    ax.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel, xscale=panel.xscale)
    if panel.ticks:
        ax.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=30, ha="right")
