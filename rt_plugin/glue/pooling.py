"""Which vector of an encoded sentence a classification head reads: the first position's, or the mean or maximum of all.

Mean and maximum are over all positions that are no padding, <s> and </s> among them: no text is so short that nothing
is left, and in an encoder whose recurrence runs left to right </s> comes last.
"""

import torch
from torch import Tensor, nn

from rt_plugin.errors import UserError

POOLINGS = ("first", "mean", "max")


def pool(features: Tensor, padding: Tensor, pooling: str) -> Tensor:
    """One vector a row.

    Args:
        features: (B, L, C).
        padding: (B, L), True where a position is padding; each row has one that is not.
        pooling: one of `POOLINGS`.

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


class PoolingHook:
    """Has a model's classification head read the pooled vector in place of the first position's.

    fairseq's head takes the features alone and reads position 0. The tokens, which tell the padding, are those that the
    model has read last. Weights and their names stay as they are.

    Args:
        model: fairseq's roberta, or recurrent_roberta.
        head: name of its classification head.
        pooling: one of `POOLINGS`.
        pad: the id of <pad>.
    """

    def __init__(self, model: nn.Module, head: str, pooling: str, pad: int):
        self._pooling, self._pad = pooling, pad
        self._padding: Tensor | None = None
        model.register_forward_pre_hook(self._read, with_kwargs=True)
        model.classification_heads[head].register_forward_pre_hook(self._replace)

    def _read(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._padding = (args[0] if args else kwargs["src_tokens"]).eq(self._pad)

    def _replace(self, head: nn.Module, args: tuple) -> tuple:
        features, *others = args
        if self._padding is None or self._padding.shape != features.shape[:2]:
            raise UserError(
                f"--pooling {self._pooling}: the classification head got features of shape {tuple(features.shape)}, "
                "not those of the tokens that the model read last; use predict of the loaded model"
            )
        return (pool(features, self._padding, self._pooling).unsqueeze(1), *others)
