"""The public `swish_rnn`: chooses a backend for the operation that `reference` defines.

The compiled operations are `torch.ops.rt_plugin.swish_rnn_forward` and `swish_rnn_backward`, in the libraries `_C`
(CPU) and `_C_cuda` beside this file. Importing this module loads those that were built; it compiles nothing. Here they
get their fake kernels (shapes for torch.compile) and their place in autograd.
"""

import functools
import inspect
import logging
from pathlib import Path

import torch
from torch import Tensor, library

from rt_plugin import reference
from rt_plugin.errors import UserError

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "native", "reference")

_HOW_TO_BUILD = {
    "cpu": "with torch and a C++ compiler installed, run `pip install --no-build-isolation -e .` in a checkout",
    "cuda": "with a CUDA toolkit installed, run `RT_BUILD_CUDA=1 pip install --no-build-isolation -e .` in a checkout",
}


def _load_library(device_type: str, name: str) -> str:
    """Load one compiled library: "" where that worked, else the reason why not and what to do."""
    file = Path(__file__).with_name(f"{name}.abi3.so")
    if not file.is_file():
        return f"the compiled op was not built; {_HOW_TO_BUILD[device_type]}"
    try:
        torch.ops.load_library(str(file))
    except (OSError, RuntimeError) as error:
        return f"{file} cannot be loaded ({str(error).splitlines()[0]}); build it anew: {_HOW_TO_BUILD[device_type]}"
    return ""


def _load_libraries() -> dict[str, str]:
    reasons = {"cpu": _load_library("cpu", "_C")}
    if torch.version.cuda is None:
        reasons["cuda"] = f"torch {torch.__version__} is built without CUDA; install a torch with CUDA, then this again"
    elif reasons["cpu"]:  # it defines the operations that the CUDA library implements
        reasons["cuda"] = reasons["cpu"]
    else:
        reasons["cuda"] = _load_library("cuda", "_C_cuda")
    return reasons


# Loaded at import, not at first use: torch.compile can trace an operation that is there, but not the loading of one.
_REASONS = _load_libraries()


def native_backends() -> dict[str, str]:
    """For each device type ("cpu", "cuda"): "" where its compiled op can run, else the reason why not."""
    return dict(_REASONS)


def cpu_capability() -> str:
    """The instructions that the compiled CPU op uses here: "avx512bf16", "avx512", "avx2" or "baseline".

    The environment variable RT_PLUGIN_CPU, read once, lowers it. Only where `native_backends()["cpu"]` is "".
    """
    return torch.ops.rt_plugin.cpu_capability()


def _check_devices(x12, *others):
    """Without the compiled kernels' own check, for tensors without memory: their result may claim to have some."""
    for tensor in others:
        if tensor.device != x12.device:
            raise UserError(f"swish_rnn: one tensor is on {tensor.device}, x12 on {x12.device}; move one of them")


def _fake_forward(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse, save_state):
    _check_devices(x12, alpha, beta, c_bias, gate_bias)
    length, batch, channels = x12.shape
    h = x12.new_empty(length, batch, channels // 2)
    return h, torch.empty_like(h) if save_state else x12.new_empty(0)


def _fake_backward(dh, x12, alpha, beta, c_bias, gate_bias, c, step_size, gate, reverse):
    parameters = (alpha, beta, c_bias, gate_bias)
    _check_devices(x12, dh, c, *parameters)
    return x12.new_empty(x12.shape), *(p.new_empty(p.shape) for p in parameters)


if not _REASONS["cpu"]:
    library.register_fake("rt_plugin::swish_rnn_forward", _fake_forward)
    library.register_fake("rt_plugin::swish_rnn_backward", _fake_backward)


class _Bound:
    """What torch asks of `inspect.BoundArguments`, for arguments that are all there and in order."""

    def __init__(self, args: tuple):
        self.args, self.kwargs = args, {}

    def apply_defaults(self) -> None:
        pass


class _PositionalSignature(inspect.Signature):
    """Takes arguments as they come. torch binds those of `forward` to their names at each call of a Function that has a
    `setup_context`, in case there are defaults; on small tensors that takes longer than the operation."""

    def bind(self, *args) -> _Bound:
        return _Bound(args)


def _positional(forward):
    forward.__signature__ = _PositionalSignature(list(inspect.signature(forward).parameters.values()))
    return forward


class _CompiledFunction(torch.autograd.Function):
    """Refuses in words what the compiled op cannot do. A `jvp` would do so for forward mode, but torch.compile takes no
    function that has one."""

    @staticmethod
    def vmap(info, in_dims, *args):
        raise UserError("swish_rnn: the compiled op does not work under torch.vmap; use impl='reference'")


class _SwishRNN(_CompiledFunction):
    """-> (h, c). c is saved for the backward and not differentiable; without `save_state` it is empty."""

    @staticmethod
    @_positional
    def forward(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse, save_state):
        return torch.ops.rt_plugin.swish_rnn_forward(
            x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse, save_state
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.step_size, ctx.gate, ctx.reverse, _ = inputs
        _, c = output
        ctx.mark_non_differentiable(c)
        ctx.save_for_backward(*tensors, c)

    @staticmethod
    def backward(ctx, dh, _):
        arguments = (dh, *ctx.saved_tensors, ctx.step_size, ctx.gate, ctx.reverse)
        # torch.compile traces no function within a function, and differentiates once only
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            gradients = torch.ops.rt_plugin.swish_rnn_backward(*arguments)
        else:
            gradients = _SwishRNNBackward.apply(*arguments)
        return *gradients, None, None, None, None


class _SwishRNNBackward(_CompiledFunction):
    """The gradients as a function of their own, so that differentiating them is refused in words."""

    @staticmethod
    @_positional
    def forward(dh, x12, alpha, beta, c_bias, gate_bias, c, step_size, gate, reverse):
        return torch.ops.rt_plugin.swish_rnn_backward(
            dh, x12, alpha, beta, c_bias, gate_bias, c, step_size, gate, reverse
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise UserError("swish_rnn: the compiled op has no second derivatives; use impl='reference' for them")


def _may_be_differentiated() -> bool:
    """False in `torch.no_grad` and `torch.inference_mode`, unless forward mode or a transform of torch.func is on."""
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _native_swish_rnn(
    x12: Tensor,
    alpha: Tensor,
    beta: Tensor,
    c_bias: Tensor,
    gate_bias: Tensor,
    step_size: int,
    gate: str,
    reverse: bool,
) -> Tensor:
    tensors = (x12, alpha, beta, c_bias, gate_bias)
    save_state = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if torch.compiler.is_compiling():
        return _SwishRNN.apply(*tensors, step_size, gate, reverse, save_state)[0]
    # Through autograd also where no gradient is asked for: called directly, the op would give forward-mode a tangent of
    # zero. Where neither is, directly: on small tensors that takes half the time.
    run = _SwishRNN.apply if _may_be_differentiated() else torch.ops.rt_plugin.swish_rnn_forward
    try:
        return run(*tensors, step_size, gate, reverse, save_state)[0]
    except NotImplementedError as error:
        if "jvp" not in str(error):
            raise
        raise UserError(
            "swish_rnn: the compiled op has no forward-mode derivatives; use impl='reference' for them"
        ) from error
    except RuntimeError as error:
        for beginning, remedy in _SEEN_BY_KERNELS.items():
            _, found, words = str(error).partition(beginning)
            if found:
                raise UserError(found + words.splitlines()[0] + remedy) from error
        raise


# what the kernels alone see: how their message begins -> what to do
_SEEN_BY_KERNELS = {
    "swish_rnn: the memory of": "",
    "swish_rnn: the CUDA kernel did not start": "; if no kernel image is for this GPU, build the operation with its "
    "number in TORCH_CUDA_ARCH_LIST (docs/op.md), or use impl='reference'",
}


@functools.cache
def _log_choice(device_type: str, choice: str, reason: str) -> None:
    logger.info("swish_rnn on %s runs in %s%s", device_type, choice, f": {reason}" if reason else "")


@torch.jit.ignore  # torch.jit.script calls it from Python: its own language knows no autograd.Function
def swish_rnn(
    x12: Tensor,
    alpha: Tensor,
    beta: Tensor,
    c_bias: Tensor,
    gate_bias: Tensor,
    step_size: int = 1,
    gate: str = "gelu",
    reverse: bool = False,
    impl: str = "auto",
) -> Tensor:
    """The SwishRNN operation (see `reference.swish_rnn` for the definition and the arguments).

    Works under torch.compile(fullgraph=True), torch.func.grad, activation checkpointing and DDP; saves nothing where no
    gradient is asked for. Under autocast the type of x12 decides, and parameters may stay in float32. The compiled op
    sums the parameters' gradients in a fixed order: the same bits on every run and for any number of threads.

    Args:
        impl: "reference" runs plain PyTorch, "native" the compiled op, "auto" the compiled op where there is one for
            the device and plain PyTorch elsewhere, and logs the choice once.

    Returns:
        (L, B, d') in the type of x12.

    Raises:
        UserError: an argument is not as documented, or "native" was asked for and cannot run, or a second derivative
            was asked of the compiled op.
    """
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"swish_rnn: impl is {impl!r}, expected one of {', '.join(IMPLEMENTATIONS)}")
    reference.check_arguments(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse)
    device_type = x12.device.type
    reason = _REASONS.get(device_type, f"there is no compiled op for {device_type}")
    if reason and impl == "native":
        raise UserError(f"swish_rnn: impl='native' cannot run on {device_type}: {reason}")
    native = impl != "reference" and not reason
    if impl == "auto" and not torch.compiler.is_compiling():  # a graph cannot hold a log line
        _log_choice(device_type, "the compiled op" if native else "plain PyTorch", reason)
    run = _native_swish_rnn if native else reference.swish_rnn
    return run(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse)


def _scriptable_swish_rnn(
    x12: Tensor,
    alpha: Tensor,
    beta: Tensor,
    c_bias: Tensor,
    gate_bias: Tensor,
    step_size: int = 1,
    gate: str = "gelu",
    reverse: bool = False,
    impl: str = "auto",
) -> Tensor:
    return swish_rnn(x12, alpha, beta, c_bias, gate_bias, step_size, gate, reverse, impl)


# what torch.jit.script takes in the place of the function: one that calls it from Python
swish_rnn.__prepare_scriptable__ = lambda: _scriptable_swish_rnn
