"""RecurrentFFN: the block of the paper that takes the place of a Transformer layer's feed-forward block."""

import math
import numbers

import torch
from torch import Tensor, nn

from rt_plugin import ops, reference
from rt_plugin.documents import DocumentColumns
from rt_plugin.errors import UserError

RECURRENCE_TYPES = ("swish-rnn", "none", "short-conv")
CONVOLUTION_WIDTH = 4  # positions that short-conv sees
MAX_WIDTH = 2**31 - 1


def default_inner_dim(embed_dim: int) -> int:
    """d' = 8 d / 3 rounded to the nearest multiple of 8: 3 d d' parameters, as many as a feed-forward block's 2 d 4d.

    344, 680, 1368, 2048, 2728 for d = 128, 256, 512, 768, 1024. The rounding is ours; the paper does not give it.
    """
    return max(1, round(embed_dim / 3)) * 8


class RecurrentFFN(nn.Module):
    """H = ((C + b_c) * g(X W2 + b_g)) W3 + b_3 with c[i] = Swish(c[i-k] - x1[i]) + x1[i] and X1 = X W1.

    Source: arXiv 2205.11588 (see `reference`). Initial values (alpha 1, beta 0, biases 0: plain Swish; weights normal
    with standard deviation 0.02, as BERT's) are ours; the paper does not give them.

    Args:
        embed_dim: d, the width of input and output.
        inner_dim: d', default `default_inner_dim(embed_dim)`.
        step_size: k, default 1; positions i and i-k are connected.
        gate: g, "gelu" (default), "sigmoid" or "silu".
        reverse: run right to left, default False.
        recurrence_type: "swish-rnn" (default), or a control of ours without alpha and beta: "none", the same gated
            block with c = x1; "short-conv", c a causal depthwise convolution of x1 over 4 positions
            (`reference.short_convolution`), which starts as what the recurrence's first values give for small x1, cut
            off after 4 positions: weights 1/2, 1/4, 1/8, 1/16.
        impl: "auto" (default), "native" or "reference"; see `ops.swish_rnn`.
        activation_dropout: probability of dropping an element before the output projection, default 0.
        quant_noise, quant_noise_block_size: fairseq's quantisation noise on both projections, default off.
        alpha, beta: initial values, default 1 and 0. A larger beta keeps more of the state before: for small inputs the
            share sigmoid(beta) of it.
        beta_spread: the channels' initial beta are evenly spaced from beta - beta_spread to beta + beta_spread, so that
            they remember for different times; default 0.

    Shape:
        x: (L, B, embed_dim) -> (L, B, embed_dim)

    Raises:
        UserError: a width or the step size is no whole number of at least 1, a name is unknown, an initial value is no
            finite number, or one is given to a block without alpha and beta.
    """

    def __init__(
        self,
        embed_dim: int,
        inner_dim: int | None = None,
        step_size: int = 1,
        gate: str = "gelu",
        reverse: bool = False,
        recurrence_type: str = "swish-rnn",
        impl: str = "auto",
        activation_dropout: float = 0.0,
        quant_noise: float = 0,
        quant_noise_block_size: int = 8,
        alpha: float = 1.0,
        beta: float = 0.0,
        beta_spread: float = 0.0,
    ):
        super().__init__()
        _check_count("embed_dim", embed_dim, MAX_WIDTH)
        if inner_dim is None:
            inner_dim = default_inner_dim(embed_dim)
        _check_count("inner_dim", inner_dim, MAX_WIDTH)
        _check_count("step_size", step_size, reference.MAX_STEP_SIZE)
        for name, value, known in (
            ("gate", gate, tuple(reference.GATES)),
            ("recurrence_type", recurrence_type, RECURRENCE_TYPES),
            ("impl", impl, ops.IMPLEMENTATIONS),
        ):
            if value not in known:
                raise UserError(f"RecurrentFFN: {name} is {value!r}, expected one of {', '.join(known)}")
        _check_initial_values(recurrence_type, alpha=(alpha, 1.0), beta=(beta, 0.0), beta_spread=(beta_spread, 0.0))
        self.embed_dim = embed_dim
        self.inner_dim = inner_dim
        self.step_size = int(step_size)  # also of a numpy integer
        self.gate = gate
        self.reverse = reverse
        self.recurrence_type = recurrence_type
        self.impl = impl

        self.in_proj = _quant_noise(
            nn.Linear(embed_dim, 2 * inner_dim, bias=False), quant_noise, quant_noise_block_size
        )
        if recurrence_type == "swish-rnn":
            self.alpha = nn.Parameter(torch.full((inner_dim,), float(alpha)))
            self.beta = nn.Parameter(torch.linspace(beta - beta_spread, beta + beta_spread, inner_dim))
        elif recurrence_type == "short-conv":
            halves = 0.5 ** torch.arange(1, CONVOLUTION_WIDTH + 1)
            self.conv_weight = nn.Parameter(halves.unsqueeze(1).repeat(1, inner_dim))
        self.c_bias = nn.Parameter(torch.zeros(inner_dim))
        self.gate_bias = nn.Parameter(torch.zeros(inner_dim))
        self.dropout = nn.Dropout(activation_dropout)
        self.out_proj = _quant_noise(nn.Linear(inner_dim, embed_dim), quant_noise, quant_noise_block_size)
        for projection in (self.in_proj, self.out_proj):
            nn.init.normal_(projection.weight, std=0.02)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (L, B, embed_dim).
            padding_mask: (B, L), True where a position is padding, or None. Padded inputs are set to 0: in_proj has no
                bias, so x1 = 0 there, c stays 0 up to the first token, and padding after a sentence changes nothing in
                either direction.

        Returns:
            (L, B, embed_dim); what stands at padded positions has no meaning.
        """
        if not isinstance(x, Tensor):
            raise UserError(f"RecurrentFFN: x is of type {type(x).__name__}, expected a torch.Tensor")
        return self.out_proj(self.dropout(self._recurrence(self._project(x, padding_mask))))

    @torch.jit.unused
    def within_documents(self, x: Tensor, padding_mask: Tensor | None, columns: DocumentColumns) -> Tensor:
        """Apply the block with a recurrence that begins anew with each document; else as `forward`.

        Args:
            columns: the documents that share the sequences.
        """
        return self.out_proj(self.dropout(columns.apply(self._recurrence, self._project(x, padding_mask))))

    def _project(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.t().unsqueeze(-1), 0)
        return self.in_proj(x)

    def _recurrence(self, x12: Tensor) -> Tensor:
        if self.recurrence_type != "swish-rnn":
            return self._control(x12)
        return ops.swish_rnn(
            x12,
            self.alpha,
            self.beta,
            self.c_bias,
            self.gate_bias,
            self.step_size,
            self.gate,
            self.reverse,
            self.impl,
        )

    @torch.jit.ignore  # torch.jit.script would compile what this block has no parameters for
    def _control(self, x12: Tensor) -> Tensor:
        c, x2 = x12.chunk(2, dim=-1)
        if self.recurrence_type == "short-conv":
            c = reference.short_convolution(c, self.conv_weight, self.step_size, self.reverse)
        return reference.gated_output(c, x2, self.c_bias.to(x12.dtype), self.gate_bias.to(x12.dtype), self.gate)

    def extra_repr(self) -> str:
        direction = "backward" if self.reverse else "forward"
        return (
            f"{self.embed_dim}, inner_dim={self.inner_dim}, step_size={self.step_size}, gate={self.gate}, "
            f"direction={direction}, recurrence_type={self.recurrence_type}, impl={self.impl}"
        )


def _check_count(name: str, value: int, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= value <= largest:
        raise UserError(f"RecurrentFFN: {name} is {value!r}, expected at least 1, at most {largest}, and whole")


def _check_initial_values(recurrence_type: str, **values: tuple[float, float]) -> None:
    """Of each value's name, the value and its default."""
    for name, (value, default) in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UserError(f"RecurrentFFN: {name} is {value!r}, expected a finite number")
        if recurrence_type != "swish-rnn" and value != default:
            raise UserError(
                f"RecurrentFFN: {name} is {value!r}, and a block of recurrence_type {recurrence_type!r} has no alpha "
                "and beta; leave it out"
            )


def _quant_noise(module: nn.Linear, probability: float, block_size: int) -> nn.Module:
    if not probability:
        return module
    try:
        from fairseq.modules.quant_noise import quant_noise
    except ImportError as error:
        raise UserError(
            "RecurrentFFN: quant_noise needs fairseq; pip install fairseq-fixed, or leave it at 0"
        ) from error
    return quant_noise(module, probability, block_size)
