"""The block without fairseq: its parameters, its special cases, and that padding changes nothing."""

import subprocess
import sys

import numpy
import pytest
import torch

from conftest import REPOSITORY
from rt_plugin import UserError, reference
from rt_plugin.modules import RecurrentFFN, default_inner_dim

# Runs with fairseq made unfindable, as on a machine that does not have it.
WITHOUT_FAIRSEQ = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "fairseq" else find_spec(name, *rest)
sys.modules["fairseq"] = None
import torch
before = set(sys.modules)
import rt_plugin.reference, rt_plugin.ops, rt_plugin.modules
added = {name.split(".")[0] for name in set(sys.modules) - before}
assert added <= {"rt_plugin"} | sys.stdlib_module_names, added
block = rt_plugin.modules.RecurrentFFN(16)
print(tuple(block(torch.zeros(5, 2, 16)).shape))
"""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def perturbed(block):
    """Away from the initial values, at which a bias that is forgotten would not show."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return block


@pytest.mark.parametrize(("d", "inner"), [(128, 344), (256, 680), (512, 1368), (768, 2048), (1024, 2728), (1, 8)])
def test_default_width_is_eight_thirds_rounded_to_a_multiple_of_eight(d, inner):
    assert default_inner_dim(d) == inner


def test_parameters_and_initial_values():
    block = RecurrentFFN(128)
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "in_proj.weight": (688, 128),
        "alpha": (344,),
        "beta": (344,),
        "c_bias": (344,),
        "gate_bias": (344,),
        "out_proj.weight": (128, 344),
        "out_proj.bias": (128,),
    }
    assert block.alpha.eq(1).all()
    assert not any(p.any() for p in (block.beta, block.c_bias, block.gate_bias, block.out_proj.bias))
    assert block.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_initial_values_of_swish():
    block = RecurrentFFN(8, 5, alpha=0.5, beta=1, beta_spread=2)
    assert block.alpha.tolist() == [0.5] * 5
    assert block.beta.tolist() == [-1, 0, 1, 2, 3]


def test_block_is_the_equation_around_the_operation():
    block = perturbed(RecurrentFFN(12, 8, step_size=2, gate="silu", reverse=True))
    x = torch.randn(7, 3, 12)
    from rt_plugin.reference import swish_rnn

    h = swish_rnn(
        x @ block.in_proj.weight.T, block.alpha, block.beta, block.c_bias, block.gate_bias, 2, "silu", reverse=True
    )
    torch.testing.assert_close(block(x), h @ block.out_proj.weight.T + block.out_proj.bias, rtol=1e-5, atol=1e-6)


def test_without_recurrence_each_position_stands_alone():
    block = perturbed(RecurrentFFN(12, recurrence_type="none"))
    assert {"alpha", "beta"}.isdisjoint(dict(block.named_parameters()))
    x = torch.randn(6, 2, 12)
    alone = torch.cat([block(x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(block(x), alone, rtol=1e-5, atol=1e-6)
    x1, x2 = block.in_proj(x).chunk(2, dim=-1)
    h = (x1 + block.c_bias) * torch.nn.functional.gelu(x2 + block.gate_bias)
    torch.testing.assert_close(block(x), block.out_proj(h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 3, 9])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("step_size", [1, 2])
def test_short_conv_sees_four_positions(length, reverse, step_size):
    block = perturbed(RecurrentFFN(12, 8, recurrence_type="short-conv", reverse=reverse, step_size=step_size))
    assert {"alpha", "beta"}.isdisjoint(dict(block.named_parameters())) and block.conv_weight.shape == (4, 8)
    x = torch.randn(length, 2, 12)
    x1, x2 = block.in_proj(x).chunk(2, dim=-1)
    c = torch.zeros(length, 2, 8)
    for i in range(length):
        for j in range(4):
            source = i + j * step_size if reverse else i - j * step_size
            if 0 <= source < length:
                c[i] += block.conv_weight[j] * x1[source]
    h = (c + block.c_bias) * torch.nn.functional.gelu(x2 + block.gate_bias)
    torch.testing.assert_close(block(x), block.out_proj(h), rtol=1e-5, atol=1e-6)


def test_short_conv_starts_as_the_recurrence_does():
    conv, recurrence = RecurrentFFN(12, recurrence_type="short-conv"), RecurrentFFN(12)
    weights = {name: value for name, value in recurrence.state_dict().items() if name not in ("alpha", "beta")}
    conv.load_state_dict(weights, strict=False)
    x = torch.randn(4, 2, 12) * 1e-3  # where Swish is linear
    torch.testing.assert_close(conv(x), recurrence(x), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("kind", ["swish-rnn", "short-conv"])
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_changes_nothing(reverse, kind):
    block = perturbed(RecurrentFFN(12, reverse=reverse, step_size=2, recurrence_type=kind))
    x = torch.randn(6, 2, 12)
    padded = torch.cat([x, torch.full((3, 2, 12), 7.0)])
    mask = torch.tensor([[False] * 6 + [True] * 3] * 2)
    torch.testing.assert_close(block(padded, mask)[:6], block(x), rtol=1e-5, atol=1e-6)


def test_activation_dropout_acts_in_training_only():
    block = perturbed(RecurrentFFN(12, activation_dropout=0.5))
    x = torch.randn(5, 2, 12)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_dim": 0}, "inner_dim is 0, expected at least 1"),
        ({"step_size": 0}, "step_size is 0, expected at least 1"),
        ({"inner_dim": 1.5}, "inner_dim is 1.5, expected at least 1, at most 2147483647, and whole"),
        ({"inner_dim": 2**70}, f"inner_dim is {2**70}, expected at least 1, at most"),
        ({"inner_dim": "8"}, "inner_dim is '8', expected at least 1, at most"),
        ({"step_size": 1.5}, "step_size is 1.5, expected at least 1, at most"),
        ({"step_size": 2**64}, f"step_size is {2**64}, expected at least 1, at most {2**63 - 1}"),
        ({"gate": "relu"}, "gate is 'relu', expected one of gelu, sigmoid, silu"),
        ({"recurrence_type": "lstm"}, "recurrence_type is 'lstm', expected one of swish-rnn, none, short-conv"),
        ({"impl": "fast"}, "impl is 'fast', expected one of auto, native, reference"),
        ({"alpha": float("nan")}, "alpha is nan, expected a finite number"),
        ({"beta": "2"}, "beta is '2', expected a finite number"),
        ({"beta_spread": 1.0, "recurrence_type": "none"}, "beta_spread is 1.0, and a block of recurrence_type 'none'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        RecurrentFFN(16, **options)


def test_works_without_fairseq_and_imports_nothing_but_torch():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_FAIRSEQ], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "(5, 2, 16)", result.stderr


def test_a_numpy_integer_is_a_step_size():
    block = RecurrentFFN(8, step_size=numpy.int64(2))
    assert block(torch.randn(5, 2, 8)).shape == (5, 2, 8) and type(block.step_size) is int


@pytest.mark.parametrize("step_size", [5, 2**40, 2**62])
def test_a_short_convolution_beyond_the_length_sees_the_position_alone(step_size):
    x1, weight = torch.randn(4, 2, 3), torch.randn(4, 3)
    for reverse in (False, True):
        torch.testing.assert_close(reference.short_convolution(x1, weight, step_size, reverse), x1 * weight[0])
