"""Measure the recurrence: plain PyTorch, its compiled forms, our op, a copy of the same bytes, the FFN's GELU.

    python scripts/benchmark_op.py [--device cpu|cuda] [--shapes 512x8x2048,512x32x344] [--dtypes float32,bfloat16]
                                   [--step-sizes 1,2] [--passes forward,backward,forward+backward]

Everything is measured in one run and interleaved: round after round, each candidate once; the median of the rounds
is told. Buffers are warm: freed memory stays with the process (where the C library is glibc), so that no candidate pays
for page faults. The copy moves as many bytes as the op must: forward reads x1 and x2 and writes h and c, backward reads
dh, x1, x2 and c and writes dx1 and dx2; nothing that does so can be faster. The GELU is what a
Transformer's feed-forward block of the same number of parameters does between its projections (width 1.5 d').

On a GPU where the package `sru` (SRU, Lei et al. 2018) is installed its CUDA kernel is measured, too. That is another
recurrence, with 6 tensors to move forward and 10 backward; half precision is float16 there.

Writes the table, benchmark_op.csv and benchmark_op.png to --out.
"""

import argparse
import csv
import ctypes
import datetime
import itertools
import logging
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import checkout

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rt_plugin import ops, reference

TENSORS = {"forward": 4, "backward": 6, "forward+backward": 10}  # of the width of h, read or written
SRU_TENSORS = {"forward": 6, "backward": 10, "forward+backward": 16}  # it projects to three tensors, and has a skip
COLUMNS = (
    *("shape", "step_size", "dtype", "pass", "candidate", "median_ms", "low_ms", "high_ms"),
    *("times_copy", "gb_per_s", "share_of_copy_bandwidth", "saved_mib", "peak_mib", "machine"),
)


def keep_freed_memory() -> bool:
    """Tell glibc to serve large buffers from its heap and to keep them; False where there is no glibc."""
    trim_threshold, mmap_max = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1))
    except OSError:
        return False


def machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return name


def describe(device: str) -> str:
    hardware = torch.cuda.get_device_name() if device == "cuda" else machine()
    op = ops.native_backends()[device] or "compiled"
    if device == "cpu" and op == "compiled":
        op = ops.cpu_capability()
    counts = f"CUDA {torch.version.cuda}" if device == "cuda" else f"{torch.get_num_threads()} threads"
    return (
        f"{hardware}{driver() if device == 'cuda' else ''}, {counts}, torch {torch.__version__}, op: {op}, "
        f"{datetime.date.today().isoformat()}"
    )


def driver() -> str:
    """ ", driver N" of the GPU, or "" where nvidia-smi does not say."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return ""
    return f", driver {told.stdout.split()[0]}" if told.returncode == 0 and told.stdout.strip() else ""


_HEAD_START = 4_000_000  # clock cycles of the GPU, about 2 ms


class Stopwatch:
    """Milliseconds of one call: on a GPU between device events, on a CPU wall time or the process's CPU time.

    The GPU is kept busy while the CPU queues the call, so that its time is that of the kernels, unless queueing takes
    longer than them; without `head_start` what the CPU does before the first kernel counts, too.
    """

    def __init__(self, device: str, clock: str = "wall", head_start: bool = True):
        self.device = device
        self.head_start = head_start
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]

    def __call__(self, function) -> float:
        if self.device == "cpu":
            start = self.now()
            function()
            return (self.now() - start) * 1e3
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self.head_start:
            torch.cuda._sleep(_HEAD_START)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def interleaved(candidates: dict, watch: Stopwatch, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Times of each candidate, one call a round, until `rounds` rounds are over or `seconds` have passed."""
    for function in candidates.values():
        watch(function), watch(function)
    times = {name: [] for name in candidates}
    end = time.monotonic() + seconds
    for i in range(rounds):
        if i >= 3 and time.monotonic() > end:
            break
        for name, function in candidates.items():
            times[name].append(watch(function))
    return times


def memory_mib(function, device: str) -> tuple[float, float | str]:
    """(what autograd saves, peak of device memory beyond what was there before) of one call; no peak on a CPU."""
    saved = {}

    def note(tensor):
        if type(tensor) is torch.Tensor:  # torch.compile and scan trace with tensors that have no memory
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        function()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if device == "cuda" else ""
    return round(sum(saved.values()) / 2**20, 1), peak and round(peak, 1)


def scan_variant():
    """The loop by torch's private scan, where this torch has it."""
    try:
        from torch._higher_order_ops.scan import scan
    except ImportError:
        return None

    def swish_rnn(x12, alpha, beta, c_bias, gate_bias):
        x1, x2 = x12.float().chunk(2, dim=-1)

        def step(c, x):
            c = reference.swish(c - x, alpha, beta) + x
            return c, c.clone()

        _, c = scan(step, torch.zeros_like(x1[0]), x1, dim=0)
        return reference.gated_output(c, x2, c_bias, gate_bias).to(x12.dtype)

    return swish_rnn


def implementations(args, length: int, step_size: int) -> dict:
    """Name: swish_rnn(x12, alpha, beta, c_bias, gate_bias)."""
    found = {"reference loop": lambda *t: reference.swish_rnn(*t, step_size)}
    if not ops.native_backends()[args.device]:
        found["op"] = lambda *t: ops.swish_rnn(*t, step_size, impl="native")
    if args.compile and step_size == 1:
        found["torch.compile of a step"] = compiled_step()
        if length <= args.compile_length:
            found["torch.compile of the loop"] = torch.compile(lambda *t: reference.swish_rnn(*t), dynamic=False)
        if scan_variant() is not None:
            found["scan"] = scan_variant()
    return found


def compiled_step():
    step = torch.compile(lambda c, x, alpha, beta: reference.swish(c - x, alpha, beta) + x, dynamic=False)

    def swish_rnn(x12, alpha, beta, c_bias, gate_bias):
        x1, x2 = x12.float().chunk(2, dim=-1)
        c, states = torch.zeros_like(x1[0]), []
        for x in x1:
            c = step(c, x, alpha, beta)
            states.append(c)
        return reference.gated_output(torch.stack(states), x2, c_bias, gate_bias).to(x12.dtype)

    return swish_rnn


def sru_recurrence(length: int, batch: int, width: int, dtype: torch.dtype, device: str):
    """(function without arguments, its leaves, the gradient of its output) of the sru package's own kernel; None where
    it is not installed."""
    try:
        from sru.ops import elementwise_recurrence_gpu
    except Exception as error:  # it compiles itself at import
        print(f"no comparison with sru's kernel: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        return None
    dtype = torch.float16 if dtype.itemsize == 2 else dtype
    projected = torch.randn(length, batch, 3 * width, device=device, dtype=dtype, requires_grad=True)
    skip = torch.randn(length, batch, width, device=device, dtype=dtype, requires_grad=True)
    weights, bias = (torch.zeros(2 * width, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    start = torch.zeros(batch, width, device=device, dtype=dtype)
    no_activation, one_direction, with_skip = 0, False, True
    options = (no_activation, width, one_direction, with_skip, None, None, None, dtype == torch.float16)
    leaves = [projected, skip, weights, bias]
    return lambda: elementwise_recurrence_gpu(*leaves, start, *options)[0], leaves, torch.randn_like(skip)


def passes_of(function, leaves: list, gradient) -> dict:
    """{"forward": a callable, "backward": ..., "forward+backward": ...}; the backward alone keeps what it needs."""
    kept = []

    def backward():
        if not kept:
            kept.append(function())
        return torch.autograd.grad(kept[0], leaves, gradient, retain_graph=True)

    return {
        "forward": function,  # gradients asked for: the state is saved
        "backward": backward,
        "forward+backward": lambda: torch.autograd.grad(function(), leaves, gradient),
    }


def copy_of(count: int, dtype: torch.dtype, device: str):
    """Copies `count` elements: as many are read as written."""
    source, target = (torch.ones(count, dtype=dtype, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def candidates(args, length: int, batch: int, width: int, step_size: int, dtype: torch.dtype) -> dict[str, dict]:
    """{"forward": {name: callable}, "backward": {...}, "forward+backward": {...}}."""
    torch.manual_seed(0)
    x12 = torch.randn(length, batch, 2 * width, device=args.device).to(dtype).requires_grad_()
    parameters = [torch.full((width,), v, device=args.device, requires_grad=True) for v in (1.0, 0.0, 0.0, 0.0)]
    dh = torch.randn(length, batch, width, device=args.device).to(dtype)
    inner = torch.randn(length, batch, width * 3 // 2, device=args.device).to(dtype).requires_grad_()
    leaves = [x12, *parameters]
    named = {
        "copy": {name: copy_of(dh.numel() * n // 2, dtype, args.device) for name, n in TENSORS.items()},
        "FFN's GELU": passes_of(lambda: F.gelu(inner), [inner], torch.randn_like(inner)),
    }
    for name, function in implementations(args, length, step_size).items():
        named[name] = passes_of(lambda f=function: f(*leaves), leaves, dh)
    other = sru_recurrence(length, batch, width, dtype, args.device) if args.device == "cuda" else None
    if other is not None:
        named["sru's kernel"] = passes_of(*other)
    return {label: {name: functions[label] for name, functions in named.items()} for label in args.passes.split(",")}


def drop_failing(functions: dict, label: str) -> dict:
    """Those that run once; what this torch or this machine cannot run is named and left out."""
    working = {}
    for name, function in functions.items():
        try:
            function()
            working[name] = function
        except Exception as error:  # a private function of torch, or no C++ compiler for torch.compile
            print(f"left out: {name} ({label}): {type(error).__name__}: {str(error).splitlines()[0][:100]}")
    return working


def measure(args, shape: tuple, step_size: int, dtype_name: str, machine: str) -> list[dict]:
    length, batch, width = shape
    dtype = getattr(torch, dtype_name)
    rows = []
    for label, functions in candidates(args, *shape, step_size, dtype).items():
        functions = drop_failing(functions, label)
        times = interleaved(functions, Stopwatch(args.device, args.clock), args.seconds, args.rounds)
        copy = statistics.median(times["copy"])
        tensor_bytes = length * batch * width * dtype.itemsize
        tensors = TENSORS[label]
        moved = {"FFN's GELU": 0, "sru's kernel": SRU_TENSORS[label]}  # the GELU moves other bytes
        for name, samples in times.items():
            median = statistics.median(samples)
            own = moved.get(name, tensors)
            saved, peak = memory_mib(functions[name], args.device)
            rows.append(
                {
                    "shape": "x".join(map(str, shape)),
                    "step_size": step_size,
                    "dtype": dtype_name,
                    "pass": label,
                    "candidate": name,
                    "median_ms": round(median, 3),
                    "low_ms": round(min(samples), 3),
                    "high_ms": round(max(samples), 3),
                    "times_copy": round(median / copy, 2),
                    "gb_per_s": round(own * tensor_bytes / median / 1e6, 1) if own else "",
                    "share_of_copy_bandwidth": round(copy / median * own / tensors, 2) if own else "",
                    "saved_mib": saved,
                    "peak_mib": peak,
                    "machine": machine,
                }
            )
    return rows


def print_table(rows: list[dict], columns=COLUMNS) -> None:
    columns = [c for c in columns if c != "machine"]  # the same in every row, and long
    widths = [max(len(c), *(len(str(r[c])) for r in rows)) for c in columns]
    for cells in (columns, *([r[c] for c in columns] for r in rows)):
        print("  ".join(str(cell).ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip())


def write_csv(rows: list[dict], file: Path, columns=COLUMNS) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)


def import_pyplot():
    """matplotlib's pyplot, for files only; None, and a line that says so, where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no bar chart: matplotlib is not installed")
        return None
    matplotlib.use("Agg")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq turns everything up
    from matplotlib import pyplot

    return pyplot


def plot(rows: list[dict], file: Path, title: str) -> None:
    pyplot = import_pyplot()
    if pyplot is None:
        return
    groups = list(dict.fromkeys((r["shape"], f"k={r['step_size']}", r["dtype"], r["pass"]) for r in rows))
    names = list(dict.fromkeys(r["candidate"] for r in rows))
    figure, axes = pyplot.subplots(figsize=(max(8, 1.6 * len(groups)), 5), layout="constrained")
    for i, name in enumerate(names):
        own = (r for r in rows if r["candidate"] == name)
        values = {(r["shape"], f"k={r['step_size']}", r["dtype"], r["pass"]): r["times_copy"] for r in own}
        places = [g + i / (len(names) + 1) for g in range(len(groups))]
        axes.bar(places, [values.get(g, 0) for g in groups], 1 / (len(names) + 1), label=name)
    axes.set_xticks([g + 0.4 for g in range(len(groups))], ["\n".join(g) for g in groups], fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("times the copy of the same bytes")
    axes.set_title(title, fontsize=8)
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=150)


def add_clock(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="on a CPU: wall time, or the process's CPU time, which suffers less from what else runs (use --threads 1)",
    )


def parse(arguments=None) -> argparse.Namespace:
    parser = checkout.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", default="512x8x2048,128x16x2048,512x32x344", help="LxBxd', comma-separated")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="comma-separated")
    parser.add_argument("--step-sizes", default="1", help="k, comma-separated (default: 1)")
    passes = ", ".join(TENSORS)
    parser.add_argument("--passes", default="forward,forward+backward", help=f"of {passes} (default: first and last)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    add_clock(parser)
    parser.add_argument("--rounds", type=int, default=21, help="at most this many of each (default: 21)")
    parser.add_argument("--seconds", type=float, default=30, help="per shape, type and pass (default: 30)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile and scan variants; takes minutes")
    parser.add_argument("--compile-length", type=int, default=128, help="longest L for compiling the loop whole")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for CSV and chart (default: outputs)")
    args = parser.parse_args(arguments)
    if unknown := set(args.passes.split(",")) - set(TENSORS):
        parser.error(f"--passes {','.join(sorted(unknown))}: expected some of {', '.join(TENSORS)}")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    kept = keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    title = f"{describe(args.device)}, {args.clock} time"
    if args.device == "cpu" and not kept:
        title += ", page faults included"
    print(title)
    rows = []
    for shape, step_size, dtype in itertools.product(
        args.shapes.split(","), map(int, args.step_sizes.split(",")), args.dtypes.split(",")
    ):
        part = measure(args, tuple(int(n) for n in shape.split("x")), step_size, dtype, title)
        print_table(part)
        rows += part
        write_csv(rows, args.out / "benchmark_op.csv")
    plot(rows, args.out / "benchmark_op.png", title)
    print(f"written: {args.out}/benchmark_op.csv, {args.out}/benchmark_op.png")


if __name__ == "__main__":
    main()
