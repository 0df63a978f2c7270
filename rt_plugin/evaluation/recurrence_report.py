"""Tables and figures for people of what a recurrence has learned, made of the CSV files of `recurrence_tables`."""

from pathlib import Path

from rt_plugin.console import figures
from rt_plugin.console.files import replacing
from rt_plugin.console.tables import markdown_table, read_csv
from rt_plugin.evaluation.memory import CLOSED
from rt_plugin.evaluation.recurrence_tables import (
    BEYOND_COLUMN,
    LAYERS_FILE,
    MEMORY_FILE,
    PARAMETERS_FILE,
    QUANTILE_COLUMNS,
)
from rt_plugin.modules import CONVOLUTION_WIDTH

FILES = ("report.md", "memory.png", "parameters.png")
_ARROWS = {"forward": "left to right", "backward": "right to left"}
Row = dict[str, str]


def write_report(folder: Path, out: Path) -> str:
    """Write `FILES` into a folder.

    Args:
        folder: with the CSV files.

    Returns:
        the Markdown text.

    Raises:
        UserError: matplotlib is not installed.
        OSError: a file cannot be read or written.
    """
    layers, memory, parameters = (read_csv(folder / name) for name in (LAYERS_FILE, MEMORY_FILE, PARAMETERS_FILE))
    text = _markdown(layers, memory, parameters)
    with replacing(out / "report.md") as file:
        file.write(text.encode())
    plot_memory(layers, memory, out / "memory.png")
    plot_parameters(layers[0]["model"], parameters, out / "parameters.png")
    return text


def _of_layer(rows: list[Row], layer: Row) -> list[Row]:
    return [row for row in rows if row["layer"] == layer["layer"]]


def _markdown(layers: list[Row], memory: list[Row], parameters: list[Row]) -> str:
    name, tokens = layers[0]["model"], int(layers[0]["tokens"])
    kinds = ", ".join(dict.fromkeys(layer["recurrence_type"] for layer in layers))
    cells = []
    for layer in layers:
        own = {row["parameter"]: row for row in _of_layer(parameters, layer)}
        curve = _of_layer(memory, layer)
        cells.append(
            [
                layer["layer"],
                layer["direction"],
                *(_mean_and_deviation(own.get(parameter)) for parameter in ("alpha", "beta")),
                f"{float(layer['mean_lag']):.2f}",
                f"{100 * float(layer[BEYOND_COLUMN]):.1f} %",
                f"{float(curve[-1]['mean']) / float(curve[0]['mean']):.0e} at {curve[-1]['lag']}",
                f"{100 * float(layer['gate_closed']):.0f} %",
            ]
        )
    headings = [
        *("layer", "direction", "alpha", "beta", "mean lag", f"from {CONVOLUTION_WIDTH} or more back"),
        *("last of the curve", "gate closed"),
    ]
    return "\n\n".join(
        [
            f"# What the recurrence of {name} has learned",
            f"{kinds}; measured on {tokens:,} tokens. Mean lag: how many positions back, on average, what a state "
            "holds comes from, weighted by |d c[i] / d x1[i - n]|; with the first values of alpha and beta, and inputs "
            f"near 0, it is 1.00, and 6.2 % come from {CONVOLUTION_WIDTH} or more positions back, which a short-conv "
            f"does not see. Gate closed: share of its values nearer to 0 than {CLOSED}. alpha, beta: mean ± standard "
            "deviation over the channels.",
            markdown_table(headings, cells, left=(0, 1)),
            "![How far back a state remembers](memory.png)\n\n![Parameters](parameters.png)\n",
        ]
    )


def _mean_and_deviation(row: Row | None) -> str:
    return "-" if row is None else f"{float(row['mean']):.2f} ± {float(row['std']):.2f}"


def plot_memory(layers: list[Row], memory: list[Row], path: Path) -> None:
    """A panel a layer: the mean derivative against the lag, a band for the channels, and 2^-(n+1) dotted."""
    title = f"{layers[0]['model']}\nhow strongly a state depends on what was n positions back"
    with figures.panels(path, len(layers), title, columns=2, sharex=True, sharey=True) as panels:
        for axes, layer in zip(panels, layers, strict=True):
            own = _of_layer(memory, layer)
            lags = [int(row["lag"]) for row in own]
            low, high, mean = ([float(row[column]) for row in own] for column in ("q05", "q95", "mean"))
            start = [2.0 ** -(n + 1) for n in range(len(lags))]
            axes.plot(lags, start, ":", color="black", label="untrained, inputs near 0: $2^{-(n+1)}$")
            axes.fill_between(lags, low, high, color="C0", alpha=0.2, lw=0, label="channels, 5 to 95 %")
            axes.plot(lags, mean, ".-", color="C0", label="mean over channels and text")
            axes.set(title=f"layer {layer['layer']}, {_ARROWS[layer['direction']]}", yscale="log", ylim=(1e-6, 1.5))
            axes.set(xlabel="n, positions back", ylabel="|d c[i] / d x1[i-n]|")
            axes.label_outer()


def plot_parameters(name: str, parameters: list[Row], path: Path) -> None:
    """A panel a parameter, and one for the gate's values: median, quartiles and the middle 90 % by layer."""
    names = list(dict.fromkeys(row["parameter"] for row in parameters))
    title = f"{name}\nparameters over channels, gate over text and channels; boxes: quartiles, whiskers: 5 to 95 %"
    with figures.panels(path, len(names), title) as panels:
        for axes, parameter in zip(panels, names, strict=True):
            own = [row for row in parameters if row["parameter"] == parameter]
            marks = dict(zip(("whislo", "q1", "med", "q3", "whishi"), QUANTILE_COLUMNS, strict=True))
            boxes = [{mark: float(row[column]) for mark, column in marks.items()} for row in own]
            axes.bxp(boxes, positions=[int(row["layer"]) for row in own], widths=0.6, showfliers=False)
            if parameter in ("alpha", "beta"):
                axes.axhline(float(parameter == "alpha"), color="black", lw=0.8, ls=":", label="first value")
            axes.set(title=parameter, xlabel="layer")
