"""The kernels without torch: under sanitizers, for every instruction set, and the CUDA source executed on the CPU.

tests/native/driver.cpp is compiled with the kernels, reads cases from a file, and writes what they give.
"""

import itertools
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
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
)

import rt_plugin

PACKAGE = Path(rt_plugin.__file__).parent
CSRC = PACKAGE / "csrc"
NATIVE = Path(__file__).parent / "native"
X86 = platform.machine() in ("x86_64", "AMD64")
COMPILER = os.environ.get("CXX") or shutil.which("c++")
FLAGS = ("-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized", "-Wno-unused-function")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# For vector code: what lies on the stack there are registers, and checking them takes the compiler minutes a file. The
# arithmetic is shared with the scalar code, which the undefined-behaviour sanitizer sees.
VECTOR_SANITIZERS = ("-fsanitize=address", "-fno-sanitize-address-use-after-scope", "--param=asan-stack=0")
INSTRUCTIONS = {
    "cpu.cpp": (),
    "cpu_rows_baseline.cpp": (),
    "cpu_rows_avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
    "cpu_rows_avx512.cpp": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    "cpu_rows_avx512bf16.cpp": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mavx512bf16"),
}

# Every combination of the small arguments at odd shapes (more channels than one task takes, a part of a vector, fewer
# positions than one pass).
SHAPES = ((13, 3, 7), (9, 2, 88), (5, 1, 2064), (0, 2, 8), (4, 0, 8), (1, 1, 1))
DRIVER_CASES = tuple(
    (*shape, k, gate, reverse)
    for shape in SHAPES
    for k, gate, reverse in itertools.product((1, 2, 20), GATES, (False, True))
)


def _need_compiler():
    if COMPILER is None:
        pytest.skip("no C++ compiler: install g++, or name it in CXX")
    version = subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in version:
        pytest.skip(f"{COMPILER} is not GCC, whose sanitizer options these builds use: name g++ in CXX")


def _compile(command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


def _link_driver(folder, name, sources, options):
    """Compile every (source, flags) for itself, then link: each instruction set keeps to its own file."""

    def compile_one(source, flags):
        target = folder / f"{name}_{Path(source).name}.o"
        sanitizers = VECTOR_SANITIZERS if "-mavx2" in flags or "-mavx512f" in flags else SANITIZERS
        _compile([COMPILER, *FLAGS, *sanitizers, *options, *flags, "-I", CSRC, "-c", source, "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda pair: compile_one(*pair), sources))
    _compile([COMPILER, *SANITIZERS, *objects, "-pthread", "-o", folder / name])
    return folder / name


@pytest.fixture(scope="session")
def cpu_driver(tmp_path_factory):
    _need_compiler()
    kernels = [(CSRC / name, flags) for name, flags in INSTRUCTIONS.items() if X86 or not flags]
    options = ("-DRT_X86_KERNELS",) if X86 else ()
    return _link_driver(tmp_path_factory.mktemp("cpu"), "driver", [(NATIVE / "driver.cpp", ()), *kernels], options)


@pytest.fixture(scope="session")
def cuda_driver(tmp_path_factory):
    _need_compiler()
    as_cpp = ("-x", "c++", "-Wno-unknown-pragmas")
    return _link_driver(
        tmp_path_factory.mktemp("cuda"),
        "driver",
        [(NATIVE / "driver.cpp", ()), (CSRC / "cuda.cu", as_cpp)],
        ("-DRT_DRIVER_CUDA", "-I", NATIVE / "emulation"),
    )


def _bytes(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _header(case, dtype, parameter_dtypes, save, offsets):
    length, batch, width, step_size, gate, reverse = case
    types = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
    numbers = (length, batch, width, step_size, types[dtype], GATES.index(gate), int(reverse), int(save))
    numbers += (*(types[t] for t in parameter_dtypes), *offsets)
    return " ".join(map(str, numbers)).encode() + b"\n"


def _inputs(case, dtype, parameter_dtypes=None):
    """x12, parameters, dh; the parameters in types of their own where they are given."""
    x12, parameters, dh = make_inputs(*case[:3], dtype)
    return x12, [p.to(t) for p, t in zip(parameters, parameter_dtypes or [dtype] * 4, strict=True)], dh


def _run_driver(driver, folder, cases, dtype, parameter_dtypes=None, threads=1, offsets=(0, 0, 0, 0), **environment):
    """Run cases and return, for each, (h, x12, alpha, beta, c_bias, gate_bias) as `op_cases` names them.

    `offsets`: how many elements behind the start of an allocation x12, dh, c and each parameter begin.
    """
    parameter_dtypes = parameter_dtypes or [dtype] * 4
    with open(folder / "cases", "wb") as file:
        for case, save in itertools.product(cases, (True, False)):
            x12, parameters, dh = _inputs(case, dtype, parameter_dtypes)
            file.write(_header(case, dtype, parameter_dtypes, save, offsets))
            file.writelines(map(_bytes, (x12, *parameters, dh)))
    result = subprocess.run(
        [driver, folder / "cases", folder / "results", str(threads)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr[-4000:]
    data = bytearray((folder / "results").read_bytes())
    results, position = [], 0

    def take(dtype, *shape):
        nonlocal position
        count = torch.Size(shape).numel()
        start, position = position, position + count * dtype.itemsize
        return (
            torch.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)
            if count
            else torch.empty(shape, dtype=dtype)
        )

    for length, batch, width, *_ in cases:
        h = take(dtype, length, batch, width)
        take(dtype, length, batch, width)  # c, seen through the gradients
        dx12 = take(dtype, length, batch, 2 * width)
        gradients = [take(t, width) for t in parameter_dtypes]
        assert torch.equal(take(dtype, length, batch, width), h), "without saving the state, h has other bits"
        results.append((h, dx12, *gradients))
    assert position == len(data)
    return results


def _assert_right(driver, folder, cases, dtype, tolerance, **options):
    for case, results in zip(cases, _run_driver(driver, folder, cases, dtype, **options), strict=True):
        inputs = _inputs(case, dtype, options.get("parameter_dtypes"))
        assert_close_to_reference(results, reference_results(*inputs, *case[3:]), tolerance, (case, dtype))


def _machine_has(instructions) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    needed = {"baseline": "", "avx2": "avx2", "avx512": "avx512bw", "avx512bf16": "avx512_bf16"}[instructions]
    return needed in flags


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("instructions", ("baseline", "avx2", "avx512", "avx512bf16"))
def test_cpu_kernels_under_sanitizers(instructions, dtype, cpu_driver, tmp_path):
    if (not X86 and instructions != "baseline") or not _machine_has(instructions):
        pytest.skip(f"this machine has no {instructions}")
    _assert_right(
        cpu_driver, tmp_path, DRIVER_CASES, dtype, 2 * TOLERANCES[dtype], threads=2, RT_PLUGIN_CPU=instructions
    )


def test_cpu_kernels_give_the_same_bits_for_any_number_of_threads(cpu_driver, tmp_path):
    one = _run_driver(cpu_driver, tmp_path, DRIVER_CASES, torch.float32)
    for threads in (2, 5):
        other = _run_driver(cpu_driver, tmp_path, DRIVER_CASES, torch.float32, threads=threads)
        assert all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_source_on_the_cpu_under_sanitizers(dtype, cuda_driver, tmp_path):
    cases = (*DRIVER_CASES, *CASES[::11], *WIDE_CASES[:2], *CHAIN_CASES[:1])
    _assert_right(cuda_driver, tmp_path, cases, dtype, 2 * TOLERANCES[dtype])


def _same_bits(one, other) -> bool:
    return all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "case, offsets",
    (
        (WIDE_CASES[1], ((1, 1, 1, 1), (2, 2, 2, 2))),
        (CHAIN_CASES[1], ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))),
    ),
    ids=("one by one or in twos", "each tensor"),
)
def test_cuda_source_gives_the_same_bits_however_it_is_cut_up(case, offsets, dtype, cuda_driver, tmp_path):
    """Not aligned for vectors means fewer channels a thread, another number of positions ahead, and other blocks."""
    aligned = _run_driver(cuda_driver, tmp_path, [case], dtype)
    for other in offsets:
        assert _same_bits(aligned, _run_driver(cuda_driver, tmp_path, [case], dtype, offsets=other)), other


# L, B, d', k; then, for forward, backward and the sums' launches, the channels that a thread takes
@pytest.mark.parametrize(
    "shape, forward, backward",
    (
        ((2, 3, 344, 1), 1, 1),
        ((2, 4, 8192, 1), 2, 2),
        ((2, 4, 8191, 2), 1, 1),
        ((2, 4, 8190, 2), 2, 2),
        ((2, 8, 32768, 1), 4, 4),
        ((3, 8, 16384, 2), 4, 4),
    ),
    ids=str,
)
def test_shape_of_the_cuda_kernels(shape, forward, backward, cuda_driver, tmp_path):
    """The table in cuda.cu: two channels a thread from 32k elements a position on (k chains, B, d'), four from 256k."""
    log = tmp_path / "launches"
    _run_driver(cuda_driver, tmp_path, [(*shape, "silu", False)], torch.float16, RT_EMULATION_LOG=str(log))
    with_state, gradients, *_, without_state = map(int, log.read_text().split())
    length, batch, width, step_size = shape
    elements = min(step_size, length) * batch * width
    threads = (with_state, gradients, without_state)
    assert [round(elements / n) for n in threads] == [forward, backward, forward]


@pytest.mark.parametrize("shape", ((40, 1, 65536, 40), (9, 300, 8, 1)), ids=str)
def test_memory_for_the_sums_of_gradients_is_bounded(shape, cuda_driver, tmp_path):
    """Threads of the backward: a row of partial sums each. With k = L there would be one for every position."""
    log = tmp_path / "launches"
    _run_driver(cuda_driver, tmp_path, [(*shape, "silu", False)], torch.float16, RT_EMULATION_LOG=str(log))
    gradients = int(log.read_text().split()[1])
    _, batch, width, _ = shape
    assert gradients <= max(2**20, batch * width) // 4 + 64


@pytest.mark.parametrize("which", ("float32", "mixed"))
def test_cuda_source_with_parameters_in_float32(which, cuda_driver, tmp_path):
    half = torch.float32 if which == "float32" else torch.bfloat16
    _assert_right(
        cuda_driver,
        tmp_path,
        (*DRIVER_CASES[:18], (19, 2, 16400, 1, "gelu", False)),
        torch.bfloat16,
        2 * TOLERANCES[torch.bfloat16],
        parameter_dtypes=(half, torch.float32, half, torch.float32),
    )


@pytest.fixture(scope="session")
def nvcc():
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        pytest.skip("no nvcc: install a CUDA toolkit")
    return found


@pytest.mark.slow
def test_cuda_source_compiles(nvcc, tmp_path):
    """For one architecture, to machine code; no kernel may spill registers to memory."""
    command = [nvcc, "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas=-v", "-cubin", CSRC / "cuda.cu", "-o", tmp_path / "x"]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    spills = [line for line in re.findall(r"(\d+) bytes spill stores", result.stderr) if line != "0"]
    assert len(re.findall(r"bytes spill stores", result.stderr)) >= 48
    assert spills == []


@pytest.mark.parametrize("binding", ("cpu_binding.cpp", "cuda_binding.cpp"))
@pytest.mark.parametrize("version", ("installed", "2.10"))
def test_bindings_compile(version, binding):
    """With the headers of the oldest torch that is supported, too: those of a newer one have names that it lacks."""
    _need_compiler()
    headers = Path(torch.__file__).parent / "include"
    if version == "2.10":
        if "RT_TORCH_2_10_HEADERS" not in os.environ:
            pytest.skip("RT_TORCH_2_10_HEADERS is not set: unpack a wheel of torch 2.10, name its folder torch/include")
        headers = Path(os.environ["RT_TORCH_2_10_HEADERS"])
        assert '"2.10.' in (headers / "torch/headeronly/version.h").read_text()
    options = ("-std=c++17", "-fsyntax-only", "-Werror", "-fvisibility=hidden")
    target = "-DTORCH_TARGET_VERSION=0x020A000000000000"
    _compile([COMPILER, *options, target, "-isystem", headers, "-I", NATIVE / "emulation", CSRC / binding])


def _functions_of_later_versions() -> set[str]:
    """What torch's headers declare for versions after the one that the libraries are built for (2.10)."""
    include = Path(torch.__file__).parent / "include" / "torch" / "csrc"
    text = (include / "stable" / "c" / "shim.h").read_text()
    blocks = re.findall(r"#if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_1[1-9]_0(.*?)\n#endif", text, re.DOTALL)
    return set(re.findall(r"\b((?:ao)?ti_torch_\w+|torch_\w+)\(", "".join(blocks)))


@pytest.mark.parametrize("name", ("_C", "_C_cuda"))
def test_library_needs_nothing_newer_than_torch_2_10(name):
    library = PACKAGE / f"{name}.abi3.so"
    if not library.is_file():
        pytest.skip(f"{library.name} was not built")
    if shutil.which("nm") is None:
        pytest.skip("no nm: install binutils")
    symbols = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    needed = set(re.findall(r" U (\w+)", symbols.stdout))
    assert "torch_library_impl" in needed
    assert not needed & _functions_of_later_versions()
    assert not [s for s in needed if s.startswith(("_ZN2at", "_ZN3c10", "_ZNK3c10", "_Py", "Py"))]
