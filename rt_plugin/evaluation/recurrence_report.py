"""Tables and figures of what a recurrence has learned: parameters, gates, and how far back states remember."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rt_plugin import hub
from rt_plugin.console import figures
from rt_plugin.console.files import replacing
from rt_plugin.console.progress import track
from rt_plugin.console.tables import markdown_table, write_csv
from rt_plugin.errors import UserError
from rt_plugin.evaluation.memory import CLOSED, QUANTILES, LayerMemory, measure
from rt_plugin.modules import CONVOLUTION_WIDTH
from rt_plugin.text.raw import read_lines

FILES = ("report.md", "memory.csv", "parameters.csv", "memory.png", "parameters.png")
_BLOCKS_PER_BATCH = 8
_PARAMETERS = ("alpha", "beta", "c_bias", "gate_bias")
_QUANTILE_COLUMNS = tuple(f"q{100 * q:02.0f}" for q in QUANTILES)


def measure_text(
    model: hub.RecurrentRobertaHubInterface, text: Path, count: int, lags: int
) -> tuple[list[LayerMemory], int]:
    """What the blocks of a loaded model do with the beginning of a text, and how many tokens that was.

    Args:
        count: at most so many blocks of text.
        lags: how many positions back.

    Raises:
        UserError: see `text_blocks`; or the model has no recurrent block.
    """
    blocks = text_blocks(model, text, count)
    batches = track(blocks.split(_BLOCKS_PER_BATCH), str(text), -(-len(blocks) // _BLOCKS_PER_BATCH), "batches")
    layers = measure(model.model, batches, lags)
    if not layers:
        raise UserError("found no recurrent block in the model, expected a recurrent_roberta")
    return layers, blocks.numel()


def text_blocks(model: hub.RecurrentRobertaHubInterface, path: Path, count: int) -> Tensor:
    """The beginning of a text as (blocks, length) token ids: <s>, then lines that each end with </s>, all cut to fit.

    Args:
        count: at most so many blocks.

    Raises:
        UserError: the text does not fill one block, or cannot be read.
    """
    length = model.model.max_positions()
    bos = model.task.source_dictionary.bos()
    blocks, block = [], [bos]
    for line in read_lines(path):
        block += model.encode(line).tolist()[1:] if line.strip() else []
        while len(block) >= length and len(blocks) < count:
            blocks.append(block[:length])
            block = [bos, *block[length:]]
        if len(blocks) == count:
            break
    if not blocks:
        raise UserError(f"{path}: found {len(block)} tokens, expected at least {length}, a block of the model's length")
    return torch.tensor(blocks)


def parameter_rows(layers: Sequence[LayerMemory]) -> Iterator[dict]:
    """Statistics of the parameters over the channels, and of the gate over the text, by layer."""
    for number, layer in enumerate(layers, start=1):
        values = {name: getattr(layer.block, name) for name in _PARAMETERS if hasattr(layer.block, name)}
        if hasattr(layer.block, "conv_weight"):
            values |= {f"conv_weight[{j}]": weight for j, weight in enumerate(layer.block.conv_weight)}
        for name, value in values.items():
            value = value.detach().float().cpu()
            quantiles = value.quantile(torch.tensor(QUANTILES)).tolist()
            yield _parameter_row(number, name, value.mean().item(), value.std().item(), quantiles)
        yield _parameter_row(number, "gate", None, None, layer.gates)


def _parameter_row(layer: int, name: str, mean: float | None, std: float | None, quantiles: Sequence[float]) -> dict:
    return {
        **{"layer": layer, "parameter": name, "mean": mean, "std": std},
        **dict(zip(_QUANTILE_COLUMNS, quantiles, strict=True)),
    }


def memory_rows(layers: Sequence[LayerMemory]) -> Iterator[dict]:
    """The derivatives by layer and lag: mean over the channels, and the channels at 5, 50 and 95 %."""
    for number, layer in enumerate(layers, start=1):
        marks = layer.memory.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=1).t().tolist()
        for lag, mean, (low, median, high) in zip(layer.lags.tolist(), layer.curve().tolist(), marks, strict=True):
            direction = "backward" if layer.block.reverse else "forward"
            yield {
                **{"layer": number, "direction": direction, "lag": lag},
                **{"mean": mean, "q05": low, "q50": median, "q95": high},
            }


def write_report(name: str, layers: Sequence[LayerMemory], tokens: int, out: Path) -> str:
    """Write `FILES` into a folder.

    Returns:
        the Markdown text.

    Raises:
        UserError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    for file, rows in (("memory.csv", list(memory_rows(layers))), ("parameters.csv", list(parameter_rows(layers)))):
        write_csv(out / file, list(rows[0]), rows, lambda value: f"{value:.6g}" if isinstance(value, float) else value)
    text = _markdown(name, layers, tokens)
    with replacing(out / "report.md") as file:
        file.write(text.encode())
    plot_memory(name, layers, out / "memory.png")
    plot_parameters(name, layers, out / "parameters.png")
    return text


def _markdown(name: str, layers: Sequence[LayerMemory], tokens: int) -> str:
    kinds = ", ".join(dict.fromkeys(layer.block.recurrence_type for layer in layers))
    rows = []
    for number, layer in enumerate(layers, start=1):
        alpha, beta = (getattr(layer.block, parameter, None) for parameter in ("alpha", "beta"))
        rows.append(
            [
                str(number),
                "backward" if layer.block.reverse else "forward",
                *("-" if p is None else f"{p.float().mean():.2f} ± {p.float().std():.2f}" for p in (alpha, beta)),
                f"{layer.mean_lag():.2f}",
                f"{100 * layer.share_beyond(CONVOLUTION_WIDTH):.1f} %",
                f"{layer.curve()[-1] / layer.curve()[0]:.0e} at {layer.lags[-1]}",
                f"{100 * layer.closed:.0f} %",
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
            markdown_table(headings, rows, left=(0, 1)),
            "![How far back a state remembers](memory.png)\n\n![Parameters](parameters.png)\n",
        ]
    )


def plot_memory(name: str, layers: Sequence[LayerMemory], path: Path) -> None:
    """A panel a layer: the mean derivative against the lag, a band for the channels, and 2^-(n+1) dotted."""
    title = f"{name}\nhow strongly a state depends on what was n positions back"
    with figures.panels(path, len(layers), title, columns=2, sharex=True, sharey=True) as panels:
        for number, (axes, layer) in enumerate(zip(panels, layers, strict=True), start=1):
            lags = layer.lags.tolist()
            low, high = layer.memory.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), dim=1).tolist()
            start = [2.0 ** -(n + 1) for n in range(len(lags))]
            axes.plot(lags, start, ":", color="black", label="untrained, inputs near 0: $2^{-(n+1)}$")
            axes.fill_between(lags, low, high, color="C0", alpha=0.2, lw=0, label="channels, 5 to 95 %")
            axes.plot(lags, layer.curve(), ".-", color="C0", label="mean over channels and text")
            direction = "right to left" if layer.block.reverse else "left to right"
            axes.set(title=f"layer {number}, {direction}", yscale="log", ylim=(1e-6, 1.5))
            axes.set(xlabel="n, positions back", ylabel="|d c[i] / d x1[i-n]|")
            axes.label_outer()


def plot_parameters(name: str, layers: Sequence[LayerMemory], path: Path) -> None:
    """A panel a parameter, and one for the gate's values: median, quartiles and the middle 90 % by layer."""
    rows = list(parameter_rows(layers))
    names = list(dict.fromkeys(row["parameter"] for row in rows))
    title = f"{name}\nparameters over channels, gate over text and channels; boxes: quartiles, whiskers: 5 to 95 %"
    with figures.panels(path, len(names), title) as panels:
        for axes, parameter in zip(panels, names, strict=True):
            own = [row for row in rows if row["parameter"] == parameter]
            marks = dict(zip(("whislo", "q1", "med", "q3", "whishi"), _QUANTILE_COLUMNS, strict=True))
            boxes = [{mark: row[column] for mark, column in marks.items()} for row in own]
            axes.bxp(boxes, positions=[row["layer"] for row in own], widths=0.6, showfliers=False)
            if parameter in ("alpha", "beta"):
                axes.axhline(float(parameter == "alpha"), color="black", lw=0.8, ls=":", label="first value")
            axes.set(title=parameter, xlabel="layer")
