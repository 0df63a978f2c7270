"""The definition of the operation: the paper's equations, their special cases, and what bad arguments say."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rt_plugin import UserError
from rt_plugin.reference import GATES, recurrence, swish_rnn

SCALAR_GATES = {
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
}
shapes = st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(1, 4))
seeds = st.integers(0, 2**16)


def arguments(length, batch, width, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x12 = torch.randn(length, batch, 2 * width, generator=generator, dtype=torch.float64)
    parameters = [torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(4)]
    return x12.to(dtype), *(p.to(dtype) for p in parameters)


def by_hand(x12, alpha, beta, c_bias, gate_bias, step_size, gate):
    """One number at a time, as the paper writes it."""
    length, batch, width = x12.shape[0], x12.shape[1], x12.shape[2] // 2
    h = torch.zeros(length, batch, width, dtype=torch.float64)
    for b in range(batch):
        for d in range(width):
            c = []
            for i in range(length):
                x1, x2 = float(x12[i, b, d]), float(x12[i, b, width + d])
                z = (c[i - step_size] if i >= step_size else 0.0) - x1
                c.append(z / (1 + math.exp(-(float(alpha[d]) * z + float(beta[d])))) + x1)
                h[i, b, d] = (c[i] + float(c_bias[d])) * SCALAR_GATES[gate](x2 + float(gate_bias[d]))
    return h


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("step_size", [1, 2, 3, 7])
def test_equals_the_equations_number_by_number(gate, step_size):
    args = arguments(7, 2, 3)
    torch.testing.assert_close(
        swish_rnn(*args, step_size, gate), by_hand(*args, step_size, gate), rtol=1e-12, atol=1e-12
    )


def test_large_alpha_gives_the_running_maximum_from_zero():
    x1 = arguments(9, 2, 3)[0][..., :3]
    c = recurrence(x1, torch.full((3,), 1e9, dtype=x1.dtype), torch.zeros(3, dtype=x1.dtype))
    torch.testing.assert_close(c, x1.clamp(min=0).cummax(dim=0).values, rtol=0, atol=1e-12)


def test_sigmoid_zero_passes_the_input_through():
    x1 = arguments(6, 2, 3)[0][..., :3]
    c = recurrence(x1, torch.zeros(3, dtype=x1.dtype), torch.full((3,), -1e4, dtype=x1.dtype))
    torch.testing.assert_close(c, x1, rtol=0, atol=0)


@pytest.mark.parametrize("step_size", [1, 2])
def test_sigmoid_one_copies_the_state(step_size):
    """With a large alpha, sigmoid is 1 wherever the state is above the input: the first, largest inputs are kept."""
    x1 = -arguments(8, 2, 3)[0][..., :3].abs()
    x1[:step_size] = 5 + torch.arange(step_size, dtype=x1.dtype).view(-1, 1, 1)
    c = recurrence(x1, torch.full((3,), 1e9, dtype=x1.dtype), torch.zeros(3, dtype=x1.dtype), step_size)
    expected = x1[:step_size].repeat(8 // step_size, 1, 1)
    torch.testing.assert_close(c, expected, rtol=0, atol=0)


@settings(deadline=None, max_examples=50)
@given(shapes, seeds, st.integers(0, 3))
def test_step_size_of_the_length_or_more_is_position_wise(shape, seed, extra):
    args = arguments(*shape, seed=seed)
    h = swish_rnn(*args, step_size=max(1, shape[0]) + extra)
    alone = [swish_rnn(x.unsqueeze(0), *args[1:]) for x in args[0]]
    torch.testing.assert_close(h, torch.cat(alone) if alone else h, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(shapes, seeds, st.integers(1, 4))
def test_step_size_k_is_k_interleaved_sequences(shape, seed, k):
    args = arguments(*shape, seed=seed)
    h = swish_rnn(*args, step_size=k)
    for start in range(min(k, shape[0])):
        torch.testing.assert_close(h[start::k], swish_rnn(args[0][start::k], *args[1:]), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(shapes, seeds, st.integers(1, 4), st.sampled_from(sorted(GATES)))
def test_reverse_is_flipping_input_and_output(shape, seed, k, gate):
    x12, *parameters = arguments(*shape, seed=seed)
    h = swish_rnn(x12, *parameters, k, gate, reverse=True)
    torch.testing.assert_close(h, swish_rnn(x12.flip(0), *parameters, k, gate).flip(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_a_float32_state_and_rounds_once(dtype):
    args = arguments(200, 2, 8, dtype)
    h = swish_rnn(*args)
    assert h.dtype == dtype
    torch.testing.assert_close(h, swish_rnn(*(a.float() for a in args)).to(dtype), rtol=0, atol=0)


def test_low_precision_input_with_float32_parameters():
    x12, *parameters = arguments(5, 2, 3, torch.float32)
    h = swish_rnn(x12.bfloat16(), *parameters)
    torch.testing.assert_close(h, swish_rnn(x12.bfloat16().float(), *parameters).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients(gate, reverse):
    args = [a.requires_grad_() for a in arguments(5, 2, 3)]
    assert torch.autograd.gradcheck(lambda *a: swish_rnn(*a, step_size=2, gate=gate, reverse=reverse), args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_size": 0}, "step_size is 0, expected a whole number of at least 1"),
        ({"step_size": 1.5}, "step_size is 1.5"),
        ({"gate": "relu"}, "gate is 'relu', expected one of gelu, sigmoid, silu"),
        ({"x12": torch.zeros(2, 1, 5)}, r"x12 has shape \(2, 1, 5\)"),
        ({"x12": torch.zeros(2, 6)}, r"x12 has shape \(2, 6\)"),
        ({"x12": torch.zeros(2, 1, 6, dtype=torch.int64)}, "x12 has type torch.int64"),
        ({"alpha": torch.zeros(4)}, r"alpha has shape \(4,\), expected \(3,\)"),
        ({"beta": torch.zeros(3, dtype=torch.float64)}, "beta has type torch.float64"),
    ],
)
def test_bad_arguments_are_named(change, message):
    names = ("x12", "alpha", "beta", "c_bias", "gate_bias")
    good = dict(zip(names, arguments(4, 2, 3, torch.float32), strict=True))
    with pytest.raises(UserError, match=message):
        swish_rnn(**{**good, **change})
