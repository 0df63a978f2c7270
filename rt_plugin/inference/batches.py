"""Sentences in batches of one length each, so that what stands beside a sentence does not change its result.

Padding does: a longer row of attention is summed in another order. So do few rows, which a library for matrices
multiplies in another way than many, and a layout in memory that differs between one sentence and several. Without the
three, a sentence has the same result in every batch, up to what the library does; alone, it has it to the last bit.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from rt_plugin.inference.projections import quick_projections

TOKENS_PER_BATCH = 4096  # fastest on CPUs for the mini models: what a layer writes stays in the cache
_FEWEST_ROWS = 8


def equal_length_batches(
    lengths: Sequence[int],
    alone: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    rows: int | None = None,
) -> Iterator[list[int]]:
    """Batches of sentences of equal length, the shortest first, as their numbers.

    Args:
        lengths: of the sentences, in tokens.
        alone: one sentence a batch.
        tokens_per_batch: at most so many, but one sentence at least.
        rows: at most so many sentences, in place of `tokens_per_batch`.
    """
    groups = defaultdict(list)
    for number, length in enumerate(lengths):
        groups[length].append(number)
    for length, numbers in sorted(groups.items()):
        size = 1 if alone else rows or max(1, tokens_per_batch // max(1, length))
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def lay_out_alike(model: nn.Module) -> None:
    """Let the first layer of fairseq's RoBERTa have its input in one order in memory, whatever the batch.

    fairseq transposes (B, L, d) to (L, B, d) without moving anything, and a projection of that takes another way.
    """
    layers = getattr(getattr(getattr(model, "encoder", None), "sentence_encoder", None), "layers", None)
    if layers:
        layers[0].register_forward_pre_hook(_contiguous_input)


def _contiguous_input(_, inputs: tuple) -> tuple:
    return (inputs[0].contiguous(), *inputs[1:])


def with_enough_rows(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`function` of (R, d) rows, which it treats one by one, filled up where there are so few that R would matter."""
    missing = _FEWEST_ROWS - len(rows)
    if missing <= 0 or not len(rows):
        return function(rows)
    return function(torch.cat([rows, rows[-1:].expand(missing, -1)]))[: len(rows)]


def logits_at(model: nn.Module, tokens: Tensor, places: Tensor) -> Tensor:
    """What a masked language model says at some places.

    Args:
        model: fairseq's RobertaModel, or one of ours.
        tokens: (B, L) token ids.
        places: (B, L), True where it is asked; R times.

    Returns:
        (R, vocabulary) logits in float32, in the order of the rows.
    """
    with quick_projections():
        features, _ = model(tokens, features_only=True)
        return with_enough_rows(model.encoder.output_layer, features[places]).float()
