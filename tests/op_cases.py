"""What the tests of the operation share: the cases, the tolerances, and the float64 reference."""

import itertools

import torch

from rt_plugin import reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
GATES = tuple(reference.GATES)
STEP_SIZES = (1, 2, 5, 200)
NAMES = ("h", "x12", "alpha", "beta", "c_bias", "gate_bias")

# Largest relative error (norm of the difference over the norm) of the output and of any gradient against float64.
# Half types: what is left is the rounding of inputs' products, of the output, and of the saved state.
TOLERANCES = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}

SHAPES = tuple(itertools.product((0, 1, 2, 63, 129), (0, 1, 3), (1, 7, 8, 344, 2048)))  # L, B, d'

# Every shape once, the other arguments taking turns; then every combination of those at one shape.
ARGUMENTS = tuple(itertools.product(STEP_SIZES, GATES, (False, True)))
CASES = tuple((*shape, *ARGUMENTS[i * 7 % len(ARGUMENTS)]) for i, shape in enumerate(SHAPES)) + tuple(
    (63, 3, 344, *arguments) for arguments in ARGUMENTS
)

# For the CUDA kernels that load vectors of two and of four channels: with more positions than they load ahead, and few;
# and with more chains (k) than threads are for, so that each takes several.
WIDE_CASES = ((19, 3, 21848, 1, "gelu", False), (19, 129, 2048, 1, "sigmoid", True), (9, 2, 32768, 2, "silu", True))
CHAIN_CASES = ((131, 8, 2048, 65, "gelu", True), (12, 2, 65600, 9, "silu", False))


def make_inputs(length, batch, width, dtype, parameter_dtype=None, seed=0):
    """x12, alpha, beta, c_bias, gate_bias and the gradient of h, drawn with a fixed seed."""
    generator = torch.Generator().manual_seed(seed)
    x12 = torch.randn(length, batch, 2 * width, generator=generator).to(dtype)
    offsets = (1.0, 0.0, 0.0, 0.0)
    parameters = [
        (torch.randn(width, generator=generator) * 0.3 + offset).to(parameter_dtype or dtype) for offset in offsets
    ]
    dh = torch.randn(length, batch, width, generator=generator).to(dtype)
    return x12, parameters, dh


def reference_results(x12, parameters, dh, step_size, gate, reverse):
    """h and the gradients of x12 and the parameters, in float64, from the same (rounded) inputs."""
    leaves = [t.detach().cpu().double().requires_grad_() for t in (x12, *parameters)]
    h = reference.swish_rnn(*leaves, step_size, gate, reverse)
    return h.detach(), *torch.autograd.grad(h, leaves, dh.detach().cpu().double())


def relative_error(actual, expected, floor=0.0) -> float:
    """The norm of the difference over the norm of what is expected, or over `floor` where that is larger."""
    actual, expected = (t.detach().cpu().double() for t in (actual, expected))
    assert actual.shape == expected.shape
    scale = max(expected.norm().item(), floor)
    difference = (actual - expected).norm().item()
    return difference / scale if scale else difference


def assert_close_to_reference(results, expected, tolerance, case):
    # A parameter's gradient sums L * B numbers of about 1; where they happen to cancel, it has no relative accuracy.
    typical_sum = results[0].numel() ** 0.5
    for name, actual, exact in zip(NAMES, results, expected, strict=True):
        error = relative_error(actual, exact, 0.0 if name in ("h", "x12") else typical_sum)
        assert error <= tolerance, f"{name} of {case}: relative error {error:.2e}, allowed {tolerance:.0e}"
