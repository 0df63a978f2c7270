"""What the blocks of a model do with a text, measured and written down as CSV files.

`LAYERS_FILE` has a row a layer, `MEMORY_FILE` one by layer and lag, `PARAMETERS_FILE` one by layer and parameter.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rt_plugin import hub
from rt_plugin.console.progress import track
from rt_plugin.console.tables import write_csv
from rt_plugin.errors import UserError
from rt_plugin.evaluation.memory import QUANTILES, LayerMemory, measure
from rt_plugin.modules import CONVOLUTION_WIDTH
from rt_plugin.text.raw import read_lines

FILES = LAYERS_FILE, MEMORY_FILE, PARAMETERS_FILE = "layers.csv", "memory.csv", "parameters.csv"
BEYOND_COLUMN = f"from_{CONVOLUTION_WIDTH}_back"  # share of what is seen from so many or more positions back
QUANTILE_COLUMNS = tuple(f"q{100 * q:02.0f}" for q in QUANTILES)
_BLOCKS_PER_BATCH = 8
_PARAMETERS = ("alpha", "beta", "c_bias", "gate_bias")


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


def write_tables(name: str, layers: Sequence[LayerMemory], tokens: int, out: Path) -> None:
    """Write the three CSV files into a folder.

    Args:
        name: of the model.
        tokens: on how many it was measured.

    Raises:
        OSError: a file cannot be written.
    """
    tables = {
        LAYERS_FILE: layer_rows(name, layers, tokens),
        MEMORY_FILE: memory_rows(layers),
        PARAMETERS_FILE: parameter_rows(layers),
    }
    for file, found in tables.items():
        rows = list(found)
        write_csv(out / file, list(rows[0]), rows, lambda value: f"{value:.6g}" if isinstance(value, float) else value)


def layer_rows(name: str, layers: Sequence[LayerMemory], tokens: int) -> Iterator[dict]:
    """What each layer is, how far back it remembers, and the share of its gate's values that are closed."""
    for number, layer in enumerate(layers, start=1):
        yield {
            **{"model": name, "tokens": tokens, "layer": number, "recurrence_type": layer.block.recurrence_type},
            **{"direction": "backward" if layer.block.reverse else "forward", "mean_lag": layer.mean_lag()},
            **{BEYOND_COLUMN: layer.share_beyond(CONVOLUTION_WIDTH), "gate_closed": layer.closed},
        }


def memory_rows(layers: Sequence[LayerMemory]) -> Iterator[dict]:
    """The derivatives by layer and lag: mean over the channels, and the channels at 5, 50 and 95 %."""
    for number, layer in enumerate(layers, start=1):
        marks = layer.memory.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=1).t().tolist()
        for lag, mean, (low, median, high) in zip(layer.lags.tolist(), layer.curve().tolist(), marks, strict=True):
            yield {"layer": number, "lag": lag, "mean": mean, "q05": low, "q50": median, "q95": high}


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
        **dict(zip(QUANTILE_COLUMNS, quantiles, strict=True)),
    }
