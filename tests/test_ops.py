"""The compiled operation against the definition in float64, and its manners: autograd, compile, threads, errors."""

import inspect
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    CASES,
    CHAIN_CASES,
    DTYPES,
    GATES,
    TOLERANCES,
    WIDE_CASES,
    assert_close_to_reference,
    make_inputs,
    reference_results,
    relative_error,
)
from torch import library as torch_library

from rt_plugin import UserError, ops
from rt_plugin.modules import RecurrentFFN

PACKAGE = Path(ops.__file__).parent


def _missing(device) -> str:
    reason = ops.native_backends()[device]
    return reason or ("" if device == "cpu" or torch.cuda.is_available() else "torch sees no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if missing := _missing(request.param):
        told_to_run = request.param == "cuda" and "RT_REQUIRE_GPU" in os.environ
        (pytest.fail if told_to_run else pytest.skip)(f"no compiled op for {request.param}: {missing}")
    return request.param


@pytest.fixture
def cpu():
    if _missing("cpu"):
        pytest.skip(f"no compiled op for cpu: {_missing('cpu')}")


@pytest.fixture
def poisoned_memory():
    """torch.empty gives NaN, so that an element that is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def _native_results(x12, parameters, dh, *arguments):
    leaves = [t.detach().requires_grad_() for t in (x12, *parameters)]
    h = ops.swish_rnn(*leaves, *arguments, impl="native")
    return h, *torch.autograd.grad(h, leaves, dh)


def _to(device, x12, parameters, dh):
    return x12.to(device), [p.to(device) for p in parameters], dh.to(device)


# ---- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_are_those_of_the_reference(case, dtype, device, poisoned_memory):
    length, batch, width, *arguments = case
    inputs = make_inputs(length, batch, width, dtype)
    results = _native_results(*_to(device, *inputs), *arguments)
    assert all(r.dtype == dtype for r in results)
    assert_close_to_reference(results, reference_results(*inputs, *arguments), TOLERANCES[dtype], (case, dtype))


@pytest.mark.parametrize("offset", (0, 1))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", (*WIDE_CASES, *CHAIN_CASES), ids=str)
def test_wide_tensors_aligned_for_vectors_and_not(case, dtype, offset, device, poisoned_memory):
    """`offset`: how many elements behind the start of their memory x12, dh and the saved state begin."""

    def shifted(tensor):
        return torch.nn.functional.pad(tensor.flatten(), (offset, 0))[offset:].view(tensor.shape)

    inputs = make_inputs(*case[:3], dtype)
    x12, parameters, dh = _to(device, *inputs)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shifted(t) if t.dim() == 3 else t, lambda t: t):
        results = _native_results(shifted(x12), parameters, shifted(dh), *case[3:])
    expected = reference_results(*inputs, *case[3:])
    assert_close_to_reference(results, expected, 2 * TOLERANCES[dtype], (case, dtype))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64), ids=str)
def test_parameters_may_stay_in_float32(dtype, device, poisoned_memory):
    inputs = make_inputs(63, 3, 344, dtype, parameter_dtype=torch.float32)
    h, dx12, *gradients = _native_results(*_to(device, *inputs), 1, "gelu", False)
    assert h.dtype == dx12.dtype == dtype
    assert all(g.dtype == torch.float32 for g in gradients)
    tolerance = max(TOLERANCES[dtype], 1e-6)
    assert_close_to_reference(
        (h, dx12, *gradients), reference_results(*inputs, 1, "gelu", False), tolerance, f"{dtype}, float32 parameters"
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    length=st.integers(0, 40),
    batch=st.integers(0, 5),
    width=st.integers(1, 150),
    step_size=st.integers(1, 45),
    gate=st.sampled_from(GATES),
    reverse=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_any_shape(length, batch, width, step_size, gate, reverse, dtype):
    if _missing("cpu"):
        pytest.skip(f"no compiled op for cpu: {_missing('cpu')}")
    inputs = make_inputs(length, batch, width, dtype, seed=length + 7 * width)
    results = _native_results(*inputs, step_size, gate, reverse)
    expected = reference_results(*inputs, step_size, gate, reverse)
    # Few elements: their rounding errors do not average out as those of the cases above do.
    assert_close_to_reference(results, expected, 2 * TOLERANCES[dtype], (length, batch, width, step_size, gate))


@pytest.mark.parametrize("gate", GATES)
def test_large_arguments_saturate_as_in_the_reference(gate, device):
    x12 = torch.linspace(-60, 60, 2 * 4 * 16).reshape(4, 1, 32).to(device)
    parameters = [
        p.to(device) for p in (torch.full((16,), 30.0), torch.full((16,), -5.0), torch.zeros(16), torch.ones(16))
    ]
    dh = torch.ones(4, 1, 16, device=device)
    results = _native_results(x12, parameters, dh, 1, gate, False)
    assert_close_to_reference(results, reference_results(x12, parameters, dh, 1, gate, False), 1e-5, gate)


def test_steep_swish_is_a_running_maximum(device):
    x12, _, _ = make_inputs(63, 2, 24, torch.float32)
    parameters = [torch.full((24,), 1e6), torch.zeros(24), torch.zeros(24), torch.full((24,), 50.0)]
    h = ops.swish_rnn(*(t.to(device) for t in (x12, *parameters)), gate="sigmoid", impl="native").cpu()
    torch.testing.assert_close(h, x12[..., :24].cummax(0).values.clamp(min=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_numbers_stay_in_their_row_and_channel(dtype, bad, device):
    x12, parameters, dh = _to(device, *make_inputs(20, 3, 40, dtype))
    clean = _native_results(x12, parameters, dh, 1, "gelu", False)
    x12[7, 1, 5] = bad
    h, dx12, *gradients = _native_results(x12, parameters, dh, 1, "gelu", False)
    assert not h[7:, 1, 5].isfinite().all()
    assert not dx12[:, 1, 5].isfinite().all()
    for after, before in ((h, clean[0]), (dx12[..., :40], clean[1][..., :40]), (dx12[..., 40:], clean[1][..., 40:])):
        untouched = torch.ones_like(after, dtype=torch.bool)
        untouched[:, 1, 5] = False
        assert torch.equal(after[untouched], before[untouched])
    for after, before in zip(gradients, clean[2:], strict=True):
        assert torch.equal(after[torch.arange(40) != 5], before[torch.arange(40) != 5])


# ---- the same bits


@pytest.mark.parametrize("strides", ("batch first", "every second channel", "a part of a wider tensor"))
def test_strided_inputs_give_the_same_bits(strides, device):
    x12, parameters, dh = _to(device, *make_inputs(20, 3, 40, torch.float32))
    expected = _native_results(x12, parameters, dh, 2, "gelu", True)
    if strides == "batch first":
        x12, dh = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x12, dh))
    elif strides == "every second channel":
        x12, dh, *parameters = (t.repeat_interleave(2, dim=-1)[..., ::2] for t in (x12, dh, *parameters))
    else:
        x12, dh = (torch.nn.functional.pad(t, (3, 5))[..., 3:-5] for t in (x12, dh))
    assert not x12.is_contiguous() and not dh.is_contiguous()
    for actual, exact in zip(_native_results(x12, parameters, dh, 2, "gelu", True), expected, strict=True):
        assert torch.equal(actual, exact)


def test_expanded_gradient(device):
    x12, parameters, dh = _to(device, *make_inputs(20, 3, 40, torch.float32))
    expanded = torch.ones((), device=device).expand(dh.shape)
    for actual, exact in zip(
        _native_results(x12, parameters, expanded, 1, "silu", False),
        _native_results(x12, parameters, torch.ones_like(dh), 1, "silu", False),
        strict=True,
    ):
        assert torch.equal(actual, exact)


@pytest.mark.parametrize("shape", ((40, 1, 2048), (40, 5, 344), (9, 7, 2500), (5, 64, 8)), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_same_bits_for_any_number_of_threads(shape, dtype, cpu):
    inputs = make_inputs(*shape, dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append(_native_results(*inputs, 1, "gelu", False))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_same_bits_on_every_run(device):
    inputs = _to(device, *make_inputs(129, 6, 344, torch.float32))
    first = _native_results(*inputs, 1, "gelu", False)
    for _ in range(5):
        again = _native_results(*inputs, 1, "gelu", False)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ---- autograd and its companions


def _small(device, dtype=torch.float32):
    x12, parameters, dh = _to(device, *make_inputs(9, 3, 7, dtype))
    return [t.requires_grad_() for t in (x12, *parameters)], dh


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("step_size, reverse", ((1, False), (2, True)))
def test_gradcheck(gate, step_size, reverse, device):
    leaves, _ = _small(device, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: ops.swish_rnn(*t, step_size, gate, reverse, impl="native"), leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((9, 3, 7), (0, 2, 4), (2, 0, 8), (5, 1, 64)), ids=str)
@pytest.mark.parametrize("save_state", (False, True))
def test_opcheck(shape, dtype, save_state, device):
    x12, parameters, dh = _to(device, *make_inputs(*shape, dtype, parameter_dtype=torch.float32))
    for tensor in (x12, x12.transpose(0, 1).contiguous().transpose(0, 1)):
        arguments = (tensor, *parameters, 2, "gelu", False)
        torch_library.opcheck(torch.ops.rt_plugin.swish_rnn_forward.default, (*arguments, save_state))
        backward_arguments = (dh, tensor, *parameters, torch.zeros_like(dh), 2, "gelu", False)
        torch_library.opcheck(torch.ops.rt_plugin.swish_rnn_backward.default, backward_arguments)


def _loss(*tensors):
    return ops.swish_rnn(*tensors, impl="native").float().square().sum()


def test_func_grad(device):
    leaves, _ = _small(device)
    expected = torch.autograd.grad(_loss(*leaves), leaves)
    actual = torch.func.grad(_loss, argnums=tuple(range(5)))(*(t.detach() for t in leaves))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    # One parameter alone, the others closed over.
    alone = torch.func.grad(lambda beta: _loss(leaves[0], leaves[1], beta, *leaves[3:]))(leaves[2].detach())
    assert torch.equal(alone, expected[2])


def test_compile_without_graph_breaks(device):
    leaves, _ = _small(device)
    compiled = torch.compile(lambda *t: ops.swish_rnn(*t).square().sum(), fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(_loss(*leaves), leaves)
    actual = torch.autograd.grad(compiled(*leaves), leaves)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(compiled(*leaves), _loss(*leaves))


@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpointing(use_reentrant, device):
    leaves, _ = _small(device)
    expected = torch.autograd.grad(_loss(*leaves), leaves)
    torch.utils.checkpoint.checkpoint(_loss, *leaves, use_reentrant=use_reentrant).backward()
    assert all(torch.equal(t.grad, g) for t, g in zip(leaves, expected, strict=True))


def test_autocast_runs_the_op_in_the_type_of_the_projection(device):
    torch.manual_seed(0)
    block = RecurrentFFN(16, impl="native").to(device)
    seen = []
    block.out_proj.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].dtype))
    x = torch.randn(5, 2, 16, device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = block(x)
    y.float().sum().backward()
    assert seen == [torch.bfloat16] and y.dtype == torch.bfloat16
    assert block.alpha.grad.dtype == torch.float32 and x.grad.dtype == torch.float32
    plain = block(x).sum()
    (exact,) = torch.autograd.grad(plain, block.alpha)
    assert relative_error(block.alpha.grad, exact) < 0.05


def test_distributed_data_parallel(cpu, tmp_path):
    torch.manual_seed(0)
    block = RecurrentFFN(16, impl="native")
    x = torch.randn(5, 2, 16)
    block(x).square().sum().backward()
    expected = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.nn.parallel.DistributedDataParallel(block)(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(p.grad, g) for p, g in zip(block.parameters(), expected, strict=True))


def test_saves_what_the_backward_needs_and_nothing_without_gradients(device):
    leaves, dh = _small(device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        h = ops.swish_rnn(*leaves, impl="native")
        assert sorted(saved) == sorted([leaves[0].shape, *(t.shape for t in leaves[1:]), dh.shape])
        saved.clear()
        with torch.no_grad():
            without = ops.swish_rnn(*leaves, impl="native")
        frozen = ops.swish_rnn(*(t.detach() for t in leaves), impl="native")
    assert saved == []
    assert torch.equal(without, h) and torch.equal(frozen, h)
    assert without.grad_fn is None and frozen.grad_fn is None
    _, c = torch.ops.rt_plugin.swish_rnn_forward(*(t.detach() for t in leaves), 1, "gelu", False, False)
    assert c.numel() == 0


def test_second_derivatives_are_refused(device):
    leaves, _ = _small(device)
    (first,) = torch.autograd.grad(_loss(*leaves), leaves[0], create_graph=True)
    with pytest.raises(UserError, match="no second derivatives; use impl='reference'"):
        torch.autograd.grad(first.sum(), leaves[0])


def test_forward_mode_is_refused(device):
    leaves, _ = _small(device)
    x12, *parameters = (t.detach() for t in leaves)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, pytest.raises(UserError, match="no forward-mode derivatives; use impl='reference'"):
            torch.func.jvp(lambda x: ops.swish_rnn(x, *parameters, impl="native"), (x12,), (x12,))


@pytest.mark.parametrize("transform", (lambda f: f, torch.func.grad), ids=("values", "gradients"))
def test_vmap_is_refused(transform, device):
    leaves, _ = _small(device)
    x12, *parameters = (t.detach() for t in leaves)
    mapped = torch.func.vmap(transform(lambda x: _loss(x, *parameters)))
    with pytest.raises(UserError, match="does not work under torch.vmap; use impl='reference'"):
        mapped(torch.stack([x12, x12]))
    with pytest.raises(UserError, match="does not work under torch.vmap; use impl='reference'"):
        torch.func.jacrev(lambda x: _loss(x, *parameters))(x12)


def test_script_calls_the_op(device):
    """torch.jit.script makes of the block one that calls the op from Python; what it makes cannot be saved."""
    block = RecurrentFFN(16, impl="native").to(device)
    x = torch.randn(5, 2, 16, device=device)
    scripted = torch.jit.script(block)
    assert torch.equal(scripted(x), block(x))
    padding = torch.zeros(2, 5, dtype=torch.bool, device=device)
    padding[1, 3:] = True
    assert torch.equal(scripted(x, padding), block(x, padding))


def test_script_takes_the_bare_function(cpu):
    """It ended in words of torch's about its language."""
    x12 = torch.randn(5, 2, 16)
    parameters = [torch.randn(8) for _ in range(4)]
    scripted = torch.jit.script(ops.swish_rnn)
    for impl in ops.IMPLEMENTATIONS:
        expected = ops.swish_rnn(x12, *parameters, step_size=2, impl=impl)
        assert torch.equal(scripted(x12, *parameters, step_size=2, impl=impl), expected)
    assert torch.equal(scripted(x12, *parameters), ops.swish_rnn(x12, *parameters))
    with pytest.raises(Exception, match="swish_rnn: impl is 'other'"):
        scripted(x12, *parameters, impl="other")


def test_a_call_binds_no_signature(monkeypatch, cpu):
    """torch binds the arguments of a Function with `setup_context` at each call, which took longer than a small op."""
    leaves, dh = _small("cpu")
    expected = _native_results(leaves[0], leaves[1:], dh, 1, "gelu", False)

    def bind(*arguments, **options):
        raise AssertionError("a signature was bound")

    monkeypatch.setattr(inspect.Signature, "bind", bind)
    actual = _native_results(leaves[0], leaves[1:], dh, 1, "gelu", False)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# ---- arguments, choice and report


def test_wrong_arguments_are_refused_before_the_kernel(cpu):
    x12, parameters, dh = make_inputs(4, 2, 6, torch.float32)
    with pytest.raises(UserError, match=r"alpha has shape \(5,\)"):
        ops.swish_rnn(x12, parameters[0][:5], *parameters[1:], impl="native")
    forward, backward = torch.ops.rt_plugin.swish_rnn_forward, torch.ops.rt_plugin.swish_rnn_backward
    for wrong, message in (
        ((x12[0], *parameters, 1, "gelu", False, True), "x12 is not of shape"),
        ((x12.long(), *parameters, 1, "gelu", False, True), "x12 is not of type"),
        ((x12, parameters[0][:5], *parameters[1:], 1, "gelu", False, True), "alpha is not of shape"),
        ((x12, parameters[0].double(), *parameters[1:], 1, "gelu", False, True), "alpha is neither"),
        ((x12, *parameters, 0, "gelu", False, True), "step_size is 0"),
        ((x12, *parameters, 1, "tanh", False, True), "gate is 'tanh'"),
    ):
        with pytest.raises(RuntimeError, match=message):
            forward(*wrong)
    for bad_dh, bad_c, message in ((dh[:3], dh, "dh is not of shape"), (dh, dh.double(), "c is not of the type")):
        with pytest.raises(RuntimeError, match=message):
            backward(bad_dh, x12, *parameters, bad_c, 1, "gelu", False)


@pytest.mark.parametrize("impl", ops.IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "wrong, message",
    (
        ({"x12": [[[1.0, 2.0]]]}, "x12 is of type list, expected a torch.Tensor"),
        ({"x12": numpy.ones((4, 2, 12), "float32")}, "x12 is of type ndarray, expected a torch.Tensor"),
        ({"beta": [0.0] * 6}, "beta is of type list, expected a torch.Tensor"),
        ({"c_bias": None}, "c_bias is of type NoneType, expected a torch.Tensor"),
        ({"x12": torch.ones(4, 2, 12).to_sparse()}, "x12 has layout torch.sparse_coo, expected a dense tensor"),
        ({"alpha": torch.ones(6, device="meta")}, "alpha is on meta, x12 on cpu; move one of them"),
        ({"x12": torch.ones(4, 2, 12, device="meta")}, "alpha is on cpu, x12 on meta; move one of them"),
        ({"step_size": 2**63}, f"step_size is {2**63}, expected a whole number of at least 1, at most {2**63 - 1}"),
        ({"step_size": 1.5}, "step_size is 1.5, expected a whole number"),
        ({"gate": ["gelu"]}, r"gate is \['gelu'\], expected one of gelu"),
        ({"reverse": "yes"}, "reverse is 'yes', expected True or False"),
    ),
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_bad_inputs_are_user_errors(wrong, message, impl, cpu):
    x12, parameters, _ = make_inputs(4, 2, 6, torch.float32)
    names = ("x12", "alpha", "beta", "c_bias", "gate_bias")
    arguments = {**dict(zip(names, (x12, *parameters), strict=True)), **wrong}
    with pytest.raises(UserError, match=f"^swish_rnn: {message}"):
        ops.swish_rnn(**arguments, impl=impl)


@pytest.mark.parametrize("step_size", [6, 3 * 2**60, 2**63 - 1])
@pytest.mark.parametrize("impl", ops.IMPLEMENTATIONS)
def test_a_step_size_beyond_the_length_is_no_recurrence(impl, step_size, cpu):
    """Forward and backward, also where a multiple of it is more than 64 bits hold."""
    x12, parameters, dh = make_inputs(5, 2, 16, torch.float32)

    def results(k):
        leaves = [t.clone().requires_grad_() for t in (x12, *parameters)]
        h = ops.swish_rnn(*leaves, step_size=k, impl=impl)
        return h.detach(), *torch.autograd.grad(h, leaves, dh)

    for found, expected in zip(results(step_size), results(5), strict=True):
        assert torch.equal(found, expected)


def test_a_kernel_that_does_not_start_says_what_to_do(cpu, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("swish_rnn: the CUDA kernel did not start: no kernel image is available\nand a trace")

    monkeypatch.setattr(ops, "_may_be_differentiated", lambda: False)
    monkeypatch.setattr(torch.ops.rt_plugin, "swish_rnn_forward", fail)
    x12, parameters, _ = make_inputs(4, 2, 6, torch.float32)
    with torch.no_grad(), pytest.raises(UserError, match=r"no kernel image is available; .* TORCH_CUDA_ARCH_LIST"):
        ops.swish_rnn(x12, *parameters, impl="native")


def test_tensors_of_several_devices_are_refused_by_the_op_itself(cpu):
    """A tensor without memory decides which kernel runs: one that knows shapes alone, and leaves memory as it was."""
    x12, parameters, dh = make_inputs(4, 2, 6, torch.float32)
    meta = [p.to("meta") for p in parameters]
    with pytest.raises(UserError, match="one tensor is on meta, x12 on cpu"):
        torch.ops.rt_plugin.swish_rnn_forward(x12, *meta, 1, "gelu", False, True)
    with pytest.raises(UserError, match="one tensor is on meta, x12 on cpu"):
        torch.ops.rt_plugin.swish_rnn_backward(dh.to("meta"), x12, *parameters, dh, 1, "gelu", False)
    h, c = torch.ops.rt_plugin.swish_rnn_forward(x12.to("meta"), *meta, 1, "gelu", False, True)
    assert h.is_meta and h.shape == c.shape == dh.shape


@pytest.mark.parametrize("which", range(5))
def test_freed_memory_is_refused(which, cpu):
    """As sharded training frees parameters between uses. The process ended here."""
    x12, parameters, _ = make_inputs(63, 33, 64, torch.float32)
    tensors = [x12, *parameters]
    tensors[which].untyped_storage().resize_(0)
    name = ("x12", "alpha", "beta", "c_bias", "gate_bias")[which]
    with pytest.raises(UserError, match=f"the memory of {name} was freed: 0 bytes where [0-9]+ are needed"):
        ops.swish_rnn(*tensors, impl="native")


def test_freed_state_is_refused_in_the_backward(cpu):
    leaves, dh = _small("cpu")
    c = torch.zeros_like(dh)
    for freed, name in ((c, "c"), (dh, "dh")):
        freed.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=f"the memory of {name} was freed"):
            torch.ops.rt_plugin.swish_rnn_backward(
                torch.zeros(c.shape) if name == "c" else dh,
                *(t.detach() for t in leaves),
                torch.zeros(c.shape) if name == "dh" else c,
                1,
                "gelu",
                False,
            )


def test_results_on_any_device_can_be_compared():
    """The tests' own comparison takes both tensors to the CPU: on a GPU both may be there."""

    class Elsewhere(torch.Tensor):
        """As a tensor on a device is: not to be mixed with others before `cpu()`."""

        @classmethod
        def __torch_function__(cls, function, types, arguments=(), options=None):
            result = super().__torch_function__(function, types, arguments, options or {})
            if function is torch.Tensor.cpu:
                return result.as_subclass(torch.Tensor)
            assert all(isinstance(a, cls) for a in arguments if isinstance(a, torch.Tensor)), "on several devices"
            return result

    here = torch.ones(3)
    there = torch.ones(3).as_subclass(Elsewhere)
    with pytest.raises(AssertionError, match="on several devices"):
        here - there
    assert relative_error(there, here) == relative_error(here, there) == relative_error(there, there) == 0


def test_choice_of_implementation(monkeypatch, caplog):
    x12, parameters, _ = make_inputs(4, 2, 6, torch.float32)
    monkeypatch.setitem(ops._REASONS, "cpu", "the compiled op was not built; do this")
    with pytest.raises(UserError, match="impl='native' cannot run on cpu: the compiled op was not built; do this"):
        ops.swish_rnn(x12, *parameters, impl="native")
    with pytest.raises(UserError, match="impl is 'fast', expected one of auto, native, reference"):
        ops.swish_rnn(x12, *parameters, impl="fast")
    ops._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="rt_plugin.ops"):
        for _ in range(3):
            ops.swish_rnn(x12, *parameters, impl="auto")
    ops._log_choice.cache_clear()
    expected = "swish_rnn on cpu runs in plain PyTorch: the compiled op was not built; do this"
    assert [r.getMessage() for r in caplog.records] == [expected]


def _run_package(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.fixture
def package_alone(tmp_path):
    """The package without libraries, in an environment without fairseq."""
    shutil.copytree(PACKAGE, tmp_path / "rt_plugin", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "fairseq.py").write_text("raise ImportError\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'fairseq' else find(name, *rest)\n"
    )
    return tmp_path


def test_report_names_what_is_missing(package_alone):
    result = _run_package(
        package_alone, "-m", "rt_plugin", "backends", "--require", "cpu", PYTHONPATH=str(package_alone)
    )
    assert result.returncode == 1, result.stderr
    assert re.search(
        r"cpu +plain PyTorch: the compiled op was not built; .*pip install --no-build-isolation", result.stdout
    )


def test_report_names_what_is_there(cpu, package_alone):
    for library in PACKAGE.glob("_C*.so"):
        shutil.copy(library, package_alone / "rt_plugin")
    result = _run_package(
        package_alone, "-m", "rt_plugin", "backends", "--require", "cpu", PYTHONPATH=str(package_alone)
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"cpu +compiled op \(instructions: ", result.stdout)


def test_broken_library_is_reported(package_alone):
    (package_alone / "rt_plugin" / "_C.abi3.so").write_bytes(b"no library")
    result = _run_package(package_alone, "-m", "rt_plugin", "backends", PYTHONPATH=str(package_alone))
    assert re.search(r"cpu +plain PyTorch: .*_C.abi3.so cannot be loaded", result.stdout), result.stderr


def test_import_is_cheap(package_alone):
    """Less than 0.3 s over torch, and none of torch's compiler."""
    for library in PACKAGE.glob("_C*.so"):
        shutil.copy(library, package_alone / "rt_plugin")
    program = (
        "import time, torch, sys; start = time.process_time(); import rt_plugin.modules; "
        "print(time.process_time() - start, 'torch._dynamo' in sys.modules)"
    )
    seconds, compiler = _run_package(package_alone, "-c", program, PYTHONPATH=str(package_alone)).stdout.split()
    assert float(seconds) < 0.3
    assert compiler == "False"
