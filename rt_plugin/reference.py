"""The definition of the SwishRNN operation in plain PyTorch: exact, differentiable by autograd, not fast.

Source: Lei, Tian, Bastings, Parikh, "Simple Recurrence Improves Masked Language Models", 2022, arXiv 2205.11588. In the
paper's letters, with X1 = X W1 and X2 = X W2 computed outside (`modules.RecurrentFFN`):

    c[i] = Swish(c[i-k] - x1[i]) + x1[i]          c = 0 before the sequence starts
    Swish(z) = z * sigmoid(alpha * z + beta)      alpha, beta: learned, one per channel
    h = (c + b_c) * g(x2 + b_g)                   g: the gate

The compiled operations of `ops` are tested against this file.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rt_plugin.errors import UserError

GATES = {"gelu": F.gelu, "sigmoid": torch.sigmoid, "silu": F.silu}
MAX_STEP_SIZE = 2**63 - 1
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def swish(z: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Swish(z) = z * sigmoid(alpha * z + beta), element by element."""
    return z * torch.sigmoid(alpha * z + beta)


def recurrence(x1: Tensor, alpha: Tensor, beta: Tensor, step_size: int = 1, reverse: bool = False) -> Tensor:
    """c[i] = Swish(c[i-k] - x1[i]) + x1[i], from c = 0.

    Args:
        x1: (L, B, d'), the first half of the projection.
        alpha, beta: (d',).
        step_size: k >= 1. The k positions of a group do not depend on each other and are computed together.
        reverse: run from the last position to the first, c[i] from c[i+k].

    Returns:
        C, (L, B, d'), in the type of x1.
    """
    if reverse:
        return recurrence(x1.flip(0), alpha, beta, step_size).flip(0)
    c = x1.new_zeros((min(step_size, len(x1)), *x1.shape[1:]))
    groups = []
    for x in x1.split(step_size):  # (k, B, d'); the last group may be shorter
        c = swish(c[: len(x)] - x, alpha, beta) + x
        groups.append(c)
    return torch.cat(groups)


def short_convolution(x1: Tensor, weight: Tensor, step_size: int = 1, reverse: bool = False) -> Tensor:
    """c[i] = sum over j of weight[j] * x1[i - j k]: what stands in the recurrence's place in a control of ours.

    Not in the paper. A causal depthwise convolution mixes neighbours as the recurrence does, but linearly, and over a
    fixed number of positions.

    Args:
        x1: (L, B, d'), the first half of the projection; 0 before the sequence starts.
        weight: (n, d'), for the n positions i, i - k, ..., i - (n - 1) k.
        step_size: k >= 1.
        reverse: run from the last position to the first, c[i] from x1[i + j k].

    Returns:
        C, (L, B, d'), in the type of x1.
    """
    length = len(x1)
    if step_size > 1:  # beyond the length all are alike, and would only be padded
        step_size = min(step_size, max(1, length))
    reach = (len(weight) - 1) * step_size
    x1 = F.pad(x1, (0, 0, 0, 0, 0, reach) if reverse else (0, 0, 0, 0, reach, 0))
    starts = [j * step_size if reverse else reach - j * step_size for j in range(len(weight))]
    c = torch.zeros_like(x1[:length])
    for start, w in zip(starts, weight.to(x1.dtype), strict=True):
        c = torch.addcmul(c, x1[start : start + length], w)
    return c


def gated_output(c: Tensor, x2: Tensor, c_bias: Tensor, gate_bias: Tensor, gate: str = "gelu") -> Tensor:
    """h = (c + b_c) * g(x2 + b_g), element by element."""
    return (c + c_bias) * GATES[gate](x2 + gate_bias)


def swish_rnn(
    x12: Tensor,
    alpha: Tensor,
    beta: Tensor,
    c_bias: Tensor,
    gate_bias: Tensor,
    step_size: int = 1,
    gate: str = "gelu",
    reverse: bool = False,
) -> Tensor:
    """The SwishRNN operation: recurrence over the first half of the channels, gated by the second half.

    Args:
        x12: (L, B, 2 d') float32, float64, float16 or bfloat16; x1 in the first d' channels, x2 in the others.
        alpha, beta: (d',), the parameters of Swish.
        c_bias, gate_bias: (d',), b_c and b_g.
        step_size: k >= 1; c[i] depends on c[i-k].
        gate: "gelu" (exact, by erf), "sigmoid" or "silu".
        reverse: run from the last position to the first.

    Returns:
        (L, B, d') in the type of x12. The state is kept in float32 (float64 for float64) and rounded once, at the end.

    Raises:
        UserError: an argument is not one of the above, or the tensors are on several devices.
    """
    check_arguments(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse)
    state = torch.float64 if x12.dtype == torch.float64 else torch.float32
    x1, x2 = x12.to(state).chunk(2, dim=-1)
    alpha, beta, c_bias, gate_bias = (p.to(state) for p in (alpha, beta, c_bias, gate_bias))
    c = recurrence(x1, alpha, beta, step_size, reverse)
    return gated_output(c, x2, c_bias, gate_bias, gate).to(x12.dtype)


def check_arguments(
    x12: Tensor,
    alpha: Tensor,
    beta: Tensor,
    c_bias: Tensor,
    gate_bias: Tensor,
    step_size: int,
    gate: str,
    reverse: bool,
) -> None:
    """Raise a `UserError` where the arguments of `swish_rnn` are not what its docstring asks for."""
    parameters = (("alpha", alpha), ("beta", beta), ("c_bias", c_bias), ("gate_bias", gate_bias))
    for name, tensor in (("x12", x12), *parameters):
        if not isinstance(tensor, Tensor):
            raise UserError(f"swish_rnn: {name} is of type {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.layout != torch.strided:
            raise UserError(f"swish_rnn: {name} has layout {tensor.layout}, expected a dense tensor; use to_dense()")
    if x12.dtype not in DTYPES:
        names = ", ".join(str(t).removeprefix("torch.") for t in DTYPES)
        raise UserError(f"swish_rnn: x12 has type {x12.dtype}, expected one of {names}")
    if x12.dim() != 3 or x12.shape[-1] % 2:
        raise UserError(f"swish_rnn: x12 has shape {tuple(x12.shape)}, expected (length, batch, 2 * inner_dim)")
    width = x12.shape[-1] // 2
    for name, p in parameters:
        if p.shape != (width,):
            raise UserError(
                f"swish_rnn: {name} has shape {tuple(p.shape)}, expected ({width},), half of x12's last size"
            )
        if p.dtype not in (x12.dtype, torch.float32):
            raise UserError(f"swish_rnn: {name} has type {p.dtype}, expected torch.float32 or x12's {x12.dtype}")
        if p.device != x12.device:
            raise UserError(f"swish_rnn: {name} is on {p.device}, x12 on {x12.device}; move one of them")
    if isinstance(step_size, bool) or not isinstance(step_size, int) or not 1 <= step_size <= MAX_STEP_SIZE:
        raise UserError(
            f"swish_rnn: step_size is {step_size!r}, expected a whole number of at least 1, at most {MAX_STEP_SIZE}"
        )
    if not isinstance(gate, str) or gate not in GATES:
        raise UserError(f"swish_rnn: gate is {gate!r}, expected one of {', '.join(GATES)}")
    if not isinstance(reverse, bool):
        raise UserError(f"swish_rnn: reverse is {reverse!r}, expected True or False")
