"""Figures of one style: sizes for a page, one legend below the panels, and one colour for a model in all of them."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError

PAGE_WIDTH = 7.2  # inches: what is between the margins of a page
PANEL_HEIGHT = 2.4
DOTS_PER_INCH = 200
FORMATS = ("png", "svg", "pdf")
# What a model's name says of it -> its colour, the first that fits; of two models of a kind the first has the colour.
_COLOURS_OF_KINDS = {
    "conv-alternate": "tab:red",
    "alternate": "tab:blue",
    "backward": "tab:purple",
    "conv": "tab:pink",
    "none": "tab:brown",
    "recurrent": "tab:orange",
    "swish": "tab:orange",
    "roberta": "tab:green",
    "transformer": "tab:green",
    "ffn": "tab:green",
}
_OTHER_COLOURS = ("tab:cyan", "tab:olive", "tab:gray", "black")
_STYLE = {
    **{"font.size": 8, "axes.titlesize": 9, "figure.titlesize": 10, "legend.frameon": False},
    **{"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False},
    **{"lines.linewidth": 1.4, "lines.markersize": 4, "savefig.dpi": DOTS_PER_INCH},
    **{"svg.hashsalt": "rt_plugin", "svg.fonttype": "none"},  # the same names every time; text stays text
}


def colours(models: Sequence[str]) -> dict[str, str]:
    """Model -> colour: by what the names say, so that a model has the same one in every figure."""
    kinds = {model: _colour_of_kind(model) for model in models}
    chosen: dict[str, str] = {}
    for model, colour in kinds.items():
        if colour is not None and colour not in chosen.values():
            chosen[model] = colour
    palette = dict.fromkeys((*_OTHER_COLOURS, *_COLOURS_OF_KINDS.values()))
    free = [colour for colour in palette if colour not in chosen.values()] or list(palette)
    others = [model for model in models if model not in chosen]
    return chosen | {model: free[i % len(free)] for i, model in enumerate(others)}


def _colour_of_kind(model: str) -> str | None:
    return next((colour for word, colour in _COLOURS_OF_KINDS.items() if word in model.lower()), None)


@contextlib.contextmanager
def panels(
    path: Path, number: int, title: str, columns: int = 3, height: float = PANEL_HEIGHT, **subplots
) -> Iterator[list]:
    """The axes of a figure, which is written to `path` at the end of the block, whole or not at all.

    Args:
        path: PNG, SVG or PDF; its folder is made if needed.
        number: how many panels.
        title: of the figure.
        columns: how many panels stand side by side at most; as few as the rows need, four panels two by two.
        height: of a row of panels, in inches.
        **subplots: for pyplot.subplots, such as sharey=True.

    Raises:
        UserError: matplotlib is not installed, or the name's ending is none of `FORMATS`.
        OSError: the file cannot be written.
    """
    pyplot = _pyplot(path)
    if path.suffix[1:].lower() not in FORMATS:
        raise UserError(f"{path}: expected a name that ends in .{', .'.join(FORMATS)}")
    rows = -(-number // columns)
    columns = -(-number // rows)
    with pyplot.rc_context(_STYLE):
        figure, grid = pyplot.subplots(
            rows, columns, squeeze=False, layout="constrained", figsize=(PAGE_WIDTH, height * rows + 0.6), **subplots
        )
        for axes in grid.flat[number:]:
            axes.remove()
        try:
            figure.suptitle(title)
            yield list(grid.flat[:number])
            _legend_below(figure)
            with replacing(path) as file:
                _save(figure, file, path.suffix[1:].lower())
        finally:
            pyplot.close(figure)


def _save(figure, file: BinaryIO, kind: str) -> None:
    """PNG with a palette, which a few colours of lines do with: a third of the size."""
    if kind != "png":
        figure.savefig(file, format=kind)
        return
    from PIL import Image  # of matplotlib's own requirements

    pixels = io.BytesIO()
    figure.savefig(pixels, format=kind)
    with Image.open(pixels) as image:
        dots = (DOTS_PER_INCH, DOTS_PER_INCH)
        image.convert("RGB").quantize(256).save(file, format=kind, optimize=True, dpi=dots)


def _pyplot(path: Path):
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError(f"matplotlib is not installed, so {path} is missing; run: pip install matplotlib") from None
    matplotlib.use("Agg")  # files only
    from matplotlib import pyplot

    return pyplot


def _legend_below(figure) -> None:
    handles = {label: h for axes in figure.axes for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))


def share_span(axes: Iterable) -> None:
    """Give panels of different heights the same length of scale: a point is as long in each of them."""
    limits = {panel: panel.get_ylim() for panel in axes}
    span = max((high - low for low, high in limits.values()), default=0)
    for panel, (low, high) in limits.items():
        panel.set_ylim((low + high - span) / 2, (low + high + span) / 2)
