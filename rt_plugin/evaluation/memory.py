"""How far back the state of a recurrent block remembers: |d c[i] / d x1[i - n]|, averaged over text.

From c[i] = f(c[i-k] - x1[i]) + x1[i] with f = Swish follows, with z[i] = c[i-k] - x1[i],

    d c[i] / d c[i-k] = f'(z[i])        d c[i] / d x1[i] = 1 - f'(z[i])
    d c[i] / d x1[i - n k] = (1 - f'(z[i - n k])) * product of f'(z[i - m k]) for m from 0 to n - 1

Where f' is near 1 the state is handed on, where it is near 0 it is replaced by x1. For inputs near 0 and the first
values of alpha and beta f' = 1/2, so that what was n steps ago counts 2^-(n + 1). The controls: `none` knows only the
position itself, and `short-conv` has a weight for each of 4, whatever the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rt_plugin.modules import RecurrentFFN
from rt_plugin.reference import GATES

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CLOSED = 0.05  # a gate nearer to 0 than this lets nothing through
_VALUES_OF_A_BATCH = 100_000  # of a gate, or a few more, that quantiles are taken of


@dataclass
class LayerMemory:
    """What was measured on one layer.

    Attributes:
        block: the layer's.
        lags: (n,) positions back, from 0 on, in steps of k.
        memory: (n, d') float64, mean over the text of |d c[i] / d x1[i - lag]|.
        gates: values of the gate over all channels and a sample of the positions, at `QUANTILES`.
        closed: share of the gate's values, over the whole text, that are nearer to 0 than `CLOSED`.
    """

    block: RecurrentFFN
    lags: Tensor
    memory: Tensor
    gates: list[float]
    closed: float

    def curve(self) -> Tensor:
        """(n,) mean over the channels."""
        return self.memory.mean(dim=1)

    def mean_lag(self) -> float:
        """How many positions back, on average, what the state holds comes from; weighted by the derivatives."""
        return float((self.curve() * self.lags).sum() / self.curve().sum())

    def share_beyond(self, positions: int) -> float:
        """The share of the derivatives' sum that comes from `positions` or more positions back."""
        return float(self.curve()[self.lags >= positions].sum() / self.curve().sum())


def slopes(x1: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """f'(z[i]) = d c[i] / d c[i-1] for sequences (L, B, d') with k = 1, left to right; alpha, beta: (d',)."""
    c = torch.zeros_like(x1[0])
    found = torch.empty_like(x1)
    for i, x in enumerate(x1):
        z = c - x
        s = torch.sigmoid(alpha * z + beta)
        found[i] = s + alpha * z * s * (1 - s)
        c = z * s + x
    return found


def derivatives(slope: Tensor, count: int) -> list[Tensor]:
    """d c[i] / d x1[i - n] for n = 0 ... count - 1, from `slopes`; for each n, (L - n, B, d'): i from n on."""
    found = []
    product = torch.ones_like(slope)  # of slope[i - n + 1] ... slope[i]; its row j is for i = n + j
    for n in range(min(count, len(slope))):
        start = slope[: len(slope) - n]
        found.append((1 - start) * product)
        product = product[1:] * start[1:]
    return found


class _LayerSums:
    """Adds up what one block does with batch after batch; hooked to its input projection."""

    def __init__(self, block: RecurrentFFN, lags: int):
        self.block = block
        self.count = -(-lags // block.step_size)
        self._sums = torch.zeros(self.count, block.inner_dim, dtype=torch.float64)
        self._numbers = torch.zeros(self.count, 1, dtype=torch.float64)
        self._gates: list[Tensor] = []
        self._closed = self._all_gates = 0

    def __call__(self, module: nn.Module, inputs: tuple, x12: Tensor) -> None:
        x1, x2 = x12.detach().float().chunk(2, dim=-1)  # (L, B, d')
        gates = GATES[self.block.gate](x2 + self.block.gate_bias.float())
        self._closed += int((gates.abs() < CLOSED).sum())
        self._all_gates += gates.numel()
        rows = gates.flatten(end_dim=1)  # positions with all their channels, some of them: enough for quantiles
        self._gates.append(rows[:: max(1, gates.numel() // _VALUES_OF_A_BATCH)].flatten().cpu())
        if self.block.recurrence_type != "swish-rnn":
            return
        x1 = x1.flip(0) if self.block.reverse else x1
        alpha, beta = self.block.alpha.float(), self.block.beta.float()
        for first in range(self.block.step_size):  # k interleaved sequences
            steps = derivatives(slopes(x1[first :: self.block.step_size], alpha, beta), self.count)
            for n, step in enumerate(steps):
                self._sums[n] += step.abs().sum(dim=(0, 1)).double().cpu()
                self._numbers[n] += step.shape[0] * step.shape[1]

    def result(self) -> LayerMemory:
        quantiles = np.quantile(torch.cat(self._gates).numpy(), QUANTILES).tolist()  # torch's takes 2^24 at most
        memory = self._memory()
        lags = torch.arange(len(memory)) * self.block.step_size
        return LayerMemory(self.block, lags, memory, quantiles, self._closed / self._all_gates)

    def _memory(self) -> Tensor:
        if self.block.recurrence_type == "none":
            return torch.ones(1, self.block.inner_dim, dtype=torch.float64)
        if self.block.recurrence_type == "short-conv":
            return self.block.conv_weight.detach().double().abs().cpu()
        seen = self._numbers[:, 0] > 0
        return self._sums[seen] / self._numbers[seen]


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Tensor], lags: int) -> list[LayerMemory]:
    """What the recurrent blocks of an encoder do with text.

    Args:
        model: takes (B, L) token ids without padding; in eval mode.
        batches: of such ids, at least one.
        lags: how many positions back, at least 1.

    Returns:
        one for each `RecurrentFFN` in the model, first layer first; none where there are none.
    """
    sums = [_LayerSums(module, lags) for module in model.modules() if isinstance(module, RecurrentFFN)]
    hooks = [layer.block.in_proj.register_forward_hook(layer) for layer in sums]
    try:
        for tokens in batches:
            if not sums:
                break
            model(tokens, features_only=True)
    finally:
        for hook in hooks:
            hook.remove()
    return [layer.result() for layer in sums]
