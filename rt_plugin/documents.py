"""Documents that share a sequence and do not see each other: in attention, in positions, in the recurrence.

Everywhere `documents` is (B, L) int64: the number of the document that each position belongs to, from 1; 0 at padding.
The positions of a document stand in a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Separation:
    """What keeps the documents of a batch apart, worked out once for all layers.

    Attributes:
        mask: (B, 1, L, L), True where a query (row) may see a key; None: attention is not restricted.
        columns: None: the recurrence goes on from document to document.
    """

    mask: Tensor | None = None
    columns: "DocumentColumns | None" = None


def same_document(documents: Tensor) -> Tensor:
    """(B, L) -> (B, 1, L, L), True where two positions are of one document; padding sees padding, and nothing else."""
    return (documents.unsqueeze(2) == documents.unsqueeze(1)).unsqueeze(1)


def positions_within(documents: Tensor) -> Tensor:
    """(B, L) -> (B, L) int64: 0 where a document begins, then 1, 2 and so on."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = places.masked_fill(~_begins(documents), 0)
    return places - starts.cummax(dim=1).values


def attention_within(attention, x: Tensor, mask: Tensor) -> Tensor:
    """Self-attention with a mask for each sequence; fairseq's own takes one for each head, many times the memory.

    Args:
        attention: a MultiheadAttention of fairseq.
        x: (L, B, d).
        mask: (B, 1, L, L), True where a query may see a key.

    Returns:
        (L, B, d).
    """
    length, batch, width = x.shape

    def heads(projection) -> Tensor:  # (B, heads, L, d / heads)
        return projection(x).view(length, batch, attention.num_heads, -1).permute(1, 2, 0, 3)

    dropout = attention.dropout_module.p if attention.training else 0.0
    query, key, value = (heads(projection) for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
    seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attention.out_proj(seen.permute(2, 0, 1, 3).reshape(length, batch, width))


class DocumentColumns:
    """Runs a function over every document as a sequence of its own: what it carries along begins anew with each.

    The documents of about one length stand side by side, as columns, filled up with zeros to the longest (by less than
    half). Zeros behind a document change nothing in the recurrence, in either direction (`modules.RecurrentFFN`). So no
    kernel has to know of documents; the price is that rows are copied there and back.

    Args:
        documents: (B, L). Read once on the CPU, which waits for the device.
    """

    def __init__(self, documents: Tensor):
        batch, length = documents.shape
        begins, ends = _begins(documents) & (documents > 0), _begins(documents.flip(1)).flip(1) & (documents > 0)
        places = torch.stack([*begins.nonzero().unbind(1), ends.nonzero()[:, 1]]).cpu()
        sequence, first, lengths = places[0], places[1], places[2] - places[1] + 1
        heights = torch.tensor([_height(n) for n in lengths.tolist()], dtype=torch.int64)
        self._shapes, indices = [], []
        for height in sorted(set(heights.tolist())):
            chosen = heights == height
            down = torch.arange(height).unsqueeze(1)
            rows = (first[chosen] + down) * batch + sequence[chosen]  # of x, with L and B in one dimension
            indices.append(rows.masked_fill(down >= lengths[chosen], -1).reshape(-1))
            self._shapes.append((height, int(chosen.sum())))
        if not indices:  # only padding: a row of zeros, so that every parameter takes part all the same
            self._shapes, indices = [(1, 1)], [torch.tensor([-1])]
        there = torch.cat(indices)
        back = torch.full((length * batch,), -1)
        back[there[there >= 0]] = torch.arange(len(there))[there >= 0]
        self._there, self._back = there.to(documents.device), back.to(documents.device)

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply a function (L', B', C) -> (L', B', C') to the documents of (L, B, C); 0 at padding.

        Returns:
            (L, B, C').
        """
        length, batch, _ = x.shape
        rows = _Rows.apply(x.reshape(length * batch, -1), self._there, self._back)
        parts = rows.split([height * number for height, number in self._shapes])
        results = [
            function(part.view(*shape, -1)).flatten(0, 1) for part, shape in zip(parts, self._shapes, strict=True)
        ]
        return _Rows.apply(torch.cat(results), self._back, self._there).view(length, batch, -1)


class _Rows(torch.autograd.Function):
    """x[there], 0 where `there` is -1. The gradient goes back in the same way, without sums: always the same bits."""

    @staticmethod
    def forward(x, there, back):
        return x[there.clamp(min=0)].masked_fill_((there < 0).unsqueeze(1), 0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, *ctx.indices = inputs

    @staticmethod
    def backward(ctx, gradient):
        there, back = ctx.indices
        return _Rows.apply(gradient, back, there), None, None


def _begins(documents: Tensor) -> Tensor:
    """(B, L), True where another document begins than stood before."""
    before = F.pad(documents[:, :-1], (1, 0), value=-1)
    return documents != before


def _height(length: int) -> int:
    """The length rounded up to 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on: few columns' heights, little to fill up."""
    power = 1 << max(0, length - 1).bit_length()
    return power * 3 // 4 if power >= 4 and length <= power * 3 // 4 else power
