"""Which vector of an encoded sentence a classification head reads: the first position's, or one made of all.

mean, max: over all positions that are no padding, <s> and </s> among them: no text is so short that nothing is left,
and in an encoder whose recurrence runs left to right </s> comes last.

pair: of the means u and v over the two texts, read together as ever, the four parts u, v, |u-v| and u*v side by side,
as in InferSent (Conneau et al. 2017, arXiv 1705.02364), where the texts are read apart. The head's first matrix is four
times as wide.
"""

import torch
from torch import Tensor, nn

from rt_plugin.errors import UserError

PAIR, AUTO = "pair", "auto"
POOLINGS = ("first", "mean", "max", PAIR)  # that a head can have been trained with


def settle(pooling: str, texts: int, task: str) -> str:
    """Which of `POOLINGS` an option means for a task.

    Args:
        pooling: one of them, or `AUTO`: pair for two texts, first for one.
        texts: in each row, 1 or 2.
        task: its name, for errors.

    Raises:
        UserError: it is for pairs, and the task has single texts.
    """
    if pooling == PAIR and texts == 1:
        raise UserError(f"--pooling {PAIR} is for pairs of texts, and {task} has one; use --pooling mean")
    if pooling == AUTO:
        return PAIR if texts == 2 else POOLINGS[0]
    return pooling


def pool(features: Tensor, padding: Tensor, pooling: str) -> Tensor:
    """One vector a row.

    Args:
        features: (B, L, C).
        padding: (B, L), True where a position is padding; each row has one that is not.
        pooling: "first", "mean" or "max".

    Returns:
        (B, C), in the type of the features; a mean is summed in float32.
    """
    if pooling == "first":
        return features[:, 0]
    padding = padding.unsqueeze(-1)
    if pooling == "max":
        return features.masked_fill(padding, -torch.inf).amax(dim=1)
    total = features.masked_fill(padding, 0).sum(dim=1, dtype=torch.float32)
    return (total / (~padding).sum(dim=1)).to(features.dtype)


def pool_pairs(features: Tensor, tokens: Tensor, pad: int, eos: int) -> Tensor:
    """The vector of a pair.

    Args:
        features: (B, L, C).
        tokens: (B, L), each row `<s> a </s> </s> b </s>` and padding.
        pad, eos: the ids of <pad> and </s>.

    Returns:
        (B, 4 C): u, v, |u-v|, u*v of the means u over `<s> a </s>` and v over `</s> b </s>`.

    Raises:
        UserError: a row is no pair.
    """
    ends = tokens.eq(eos)
    between = ends[:, :-1] & ends[:, 1:]  # at the first of two </s> one after the other
    if not between.any(dim=1).all():
        raise UserError("--pooling pair: found a single text, expected two, with </s> </s> between them")
    last = between.int().argmax(dim=1, keepdim=True)
    in_first = torch.arange(tokens.shape[1], device=tokens.device) <= last
    u = pool(features, ~in_first, "mean")
    v = pool(features, in_first | tokens.eq(pad), "mean")
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


class PoolingHook:
    """Has a model's classification head read the pooled vector in place of the first position's.

    fairseq's head takes the features alone and reads position 0. The tokens, which tell texts and padding, are those
    that the model has read last. Weights and their names stay as they are; the head's first matrix is a new one for
    pair.

    Args:
        model: fairseq's roberta, or recurrent_roberta.
        head: name of its classification head.
        pooling: one of `POOLINGS`.
        pad, eos: the ids of <pad> and </s>.
    """

    def __init__(self, model: nn.Module, head: str, pooling: str, pad: int, eos: int):
        self._pooling, self._pad, self._eos = pooling, pad, eos
        self._tokens: Tensor | None = None
        head = model.classification_heads[head]
        if pooling == PAIR:
            head.dense = nn.Linear(4 * head.dense.in_features, head.dense.out_features)
        model.register_forward_pre_hook(self._read, with_kwargs=True)
        head.register_forward_pre_hook(self._replace)

    def _read(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._tokens = args[0] if args else kwargs["src_tokens"]

    def _replace(self, head: nn.Module, args: tuple) -> tuple:
        features, *others = args
        if self._tokens is None or self._tokens.shape != features.shape[:2]:
            raise UserError(
                f"--pooling {self._pooling}: the classification head got features of shape {tuple(features.shape)}, "
                "not those of the tokens that the model read last; use predict of the loaded model"
            )
        if self._pooling == PAIR:
            vector = pool_pairs(features, self._tokens, self._pad, self._eos)
        else:
            vector = pool(features, self._tokens.eq(self._pad), self._pooling)
        return (vector.unsqueeze(1), *others)
