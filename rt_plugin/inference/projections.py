"""A loaded model's projections on a CPU by oneDNN, where that is faster than what torch takes.

For float32, torch multiplies matrices by MKL, which uses AVX-512 on Intel's processors only; elsewhere oneDNN, which
torch has too, takes half the time (2.1 to 2.2 times as fast from 128 tokens on, 1.1 to 1.5 times at 16, on an AMD EPYC
of the Zen 5 kind). A row's result then depends on the number of rows less than MKL's: not at all from two rows on.
Rounding errors are up to twice as large as MKL's.
"""

import contextlib
import functools
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from fairseq.models.roberta.model import RobertaLMHead
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn
from torch.nn import functional as F

_CPUINFO = Path("/proc/cpuinfo")
_state = threading.local()  # .on: whether this thread is within `quick_projections`; .laid_out: see `_laid_out`


@functools.cache
def are_quicker() -> bool:
    """Whether oneDNN is the faster one: an x86 processor with AVX-512 that is not Intel's."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:
        return hasattr(torch.ops.mkldnn, "_linear_pointwise") and "GenuineIntel" not in _CPUINFO.read_text("utf-8")
    except OSError:
        return False


@contextlib.contextmanager
def quick_projections(many: bool = False) -> Iterator[None]:
    """Let the projections of models that were given to `prepare` use oneDNN, in this thread, for the length of a block.

    Outside of it they are torch's own: who calls the model itself gets what fairseq gives.

    Args:
        many: the block reads many batches: lay the weights out in memory as oneDNN wants them once, in place of once a
            batch. They must not change before its end. The results are the same to the last bit.
    """
    before = getattr(_state, "on", False), getattr(_state, "laid_out", None)
    _state.on, _state.laid_out = True, {} if many and before[1] is None else before[1]
    try:
        yield
    finally:
        _state.on, _state.laid_out = before


def prepare(model: nn.Module) -> None:
    """Make a model's linear layers, attention and output layer look whether they are within `quick_projections`.

    Nothing else changes: types, names and weights stay, and so does what they compute in other types than float32, on
    other devices, in training, or compiled. In memory an attention's three input weights then follow each other, so
    that one call can read them all.
    """
    replacements = {
        nn.Linear: _forward_linear,
        MultiheadAttention: _forward_attention,
        RobertaLMHead: _forward_head,
    }
    for module in model.modules():
        forward = replacements.get(type(module))
        if forward is not None:
            module.forward = types.MethodType(forward, module)
        if type(module) is MultiheadAttention:
            _join(module)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by oneDNN; x: (..., d) -> (..., d')."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x.contiguous(), _laid_out(weight), bias, "none", [], "")


def _laid_out(weight: Tensor) -> Tensor:
    """The weight in oneDNN's own order, where this block reads many batches, else as it is."""
    kept = getattr(_state, "laid_out", None)
    if kept is None:
        return weight
    if id(weight) not in kept:
        kept[id(weight)] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None), weight  # and keeps its id
    return kept[id(weight)][0]


class _Linear(torch.autograd.Function):
    """Forward by oneDNN, so that it gives the same bits with gradients and without."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient @ weight,
            rows.t() @ x.reshape(-1, x.shape[-1]),
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _is_quick(x: Tensor, weight: Tensor) -> bool:
    return (
        getattr(_state, "on", False)
        and x.dtype is weight.dtype is torch.float32
        and x.is_cpu
        and weight.is_cpu
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


def _named_forward(function):
    function.__name__ = "forward"  # a copy of the model that comes out of pickle finds the class's own by it
    return function


@_named_forward
def _forward_linear(self, x):
    return linear(x, self.weight, self.bias) if _is_quick(x, self.weight) else nn.Linear.forward(self, x)


@_named_forward
def _forward_attention(self, query, key, value, key_padding_mask=None, **options):
    """Of a batch without padding, (L, B, d) to itself; anything else is fairseq's."""
    asked_for = {name for name, option in options.items() if option is not None and option is not False}
    usual = key is query and value is query and key_padding_mask is None and not asked_for and "need_weights" in options
    extended = self.bias_k is not None or self.add_zero_attn or self.use_xformers
    if not usual or extended or self.training or not _is_quick(query, query):
        return MultiheadAttention.forward(self, query, key, value, key_padding_mask, **options)
    length, batch, width = query.shape
    joined = _joined(self)
    if joined is None:
        projected = [linear(query, part.weight, part.bias) for part in _inputs(self)]
    else:
        projected = _onednn(query, *joined).chunk(3, dim=-1)
    heads = (x.view(length, batch, self.num_heads, self.head_dim).permute(1, 2, 0, 3) for x in projected)
    seen = F.scaled_dot_product_attention(*heads)
    return self.out_proj(seen.permute(2, 0, 1, 3).reshape(length, batch, width)), None


def _inputs(attention: MultiheadAttention) -> tuple[nn.Module, nn.Module, nn.Module]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _join(attention: MultiheadAttention) -> None:
    """Put weights and biases of the three input projections, views from now on, into one tensor each."""
    parts = _inputs(attention)
    if any(type(part) is not nn.Linear or part.bias is None for part in parts):
        return
    if any(part.weight.shape != parts[0].weight.shape for part in parts):
        return
    attention.joined = tuple(torch.cat([getattr(part, name).detach() for part in parts]) for name in ("weight", "bias"))
    for name, whole in zip(("weight", "bias"), attention.joined, strict=True):
        for part, view in zip(parts, whole.chunk(3), strict=True):
            getattr(part, name).data = view


def _joined(attention: MultiheadAttention) -> tuple[Tensor, Tensor] | None:
    """(3 d, d) weight and (3 d,) bias of query, key and value; None where they are not, or no more, what is in use."""
    joined = vars(attention).get("joined")
    if joined is None or torch.is_grad_enabled():
        return None
    for number, part in enumerate(_inputs(attention)):
        for used, whole in ((part.weight, joined[0]), (part.bias, joined[1])):
            if used is None or used.data_ptr() != whole.data_ptr() + number * used.nbytes:
                return None
    return joined


@_named_forward
def _forward_head(self, features, masked_tokens=None, **unused):
    if not _is_quick(features, self.weight):
        return RobertaLMHead.forward(self, features, masked_tokens, **unused)
    if masked_tokens is not None:
        features = features[masked_tokens, :]
    return linear(self.layer_norm(self.activation_fn(self.dense(features))), self.weight, self.bias)
