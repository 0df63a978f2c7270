"""Measure the update of the weights: fairseq's Adam, as it is and by torch's fused kernel (`--optimizer fused_adam`).

    python scripts/benchmark_update.py [--device cpu|cuda] [--sizes tiny,mini] [--vocabulary 16000] [--threads N]

The weights of recurrent_roberta in each size, in float32: tensor by tensor, as fairseq updates them by default, and as
one tensor, as under --fp16. Interleaved, medians; the ratio is to fairseq's Adam in the same layout. `difference` is
the largest of any weight after 100 updates of both. Writes the table and benchmark_update.csv to --out.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from benchmark_op import Stopwatch, add_clock, describe, interleaved, keep_freed_memory, print_table, write_csv

import checkout

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fairseq.optim.adam import Adam

import rt_plugin  # noqa: F401  (repairs fairseq)
from rt_plugin.model import SIZES
from rt_plugin.modules import default_inner_dim
from rt_plugin.pretrain.fused_adam import FusedAdam

COLUMNS = (
    "size",
    "parameters",
    "layout",
    "optimizer",
    "median_ms",
    "low_ms",
    "high_ms",
    "ratio",
    "difference",
    "machine",
)
OPTIMIZERS = {"fairseq's Adam": Adam, "fused_adam": FusedAdam}
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}


def shapes(size: str, vocabulary: int) -> list[tuple[int, ...]]:
    """Of the weights of recurrent_roberta in this size, for 512 positions."""
    layers, width, _ = SIZES[size]
    inner = default_inner_dim(width)
    block = [(2 * inner, width), *[(inner,)] * 4, (width, inner), (width,)]
    layer = [*[(width, width), (width,)] * 4, *[(width,)] * 4, *block]
    return [
        (vocabulary, width),
        (514, width),
        (width,),
        (width,),
        *layer * layers,
        (width, width),
        (width,),
        (vocabulary,),
    ]


def candidates(sizes: list[tuple[int, ...]], device: str) -> dict:
    """Optimizer -> (a call of its step, its weights), from equal weights and gradients."""
    found = {}
    for name, optimizer_class in OPTIMIZERS.items():
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in sizes]
        for weight in weights:
            weight.grad = 1e-3 * torch.randn_like(weight)
        found[name] = (optimizer_class(weights, **OPTIONS).step, weights)
    return found


def measure(args, size: str, layout: str, machine: str) -> list[dict]:
    """A row an optimizer."""
    sizes = shapes(size, args.vocabulary)
    count = sum(torch.Size(shape).numel() for shape in sizes)
    pairs = candidates(sizes if layout == "by tensor" else [(count,)], args.device)
    for step, _ in pairs.values():
        for _ in range(100):
            step()
    theirs, ours = (weights for _, weights in pairs.values())
    difference = max((a - b).abs().max().item() for a, b in zip(theirs, ours, strict=True))
    watch = Stopwatch(args.device, args.clock, head_start=False)
    times = interleaved({name: step for name, (step, _) in pairs.items()}, watch, args.seconds, args.rounds)
    base = statistics.median(times["fairseq's Adam"])
    return [
        {
            "size": size,
            "parameters": count,
            "layout": layout,
            "optimizer": name,
            "median_ms": round(statistics.median(samples), 3),
            "low_ms": round(min(samples), 3),
            "high_ms": round(max(samples), 3),
            "ratio": round(statistics.median(samples) / base, 3),
            "difference": f"{difference:.1e}",
            "machine": machine,
        }
        for name, samples in times.items()
    ]


def parse(arguments=None) -> argparse.Namespace:
    parser = checkout.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", default="tiny,mini", help="comma-separated (default: tiny,mini)")
    parser.add_argument("--vocabulary", type=int, default=16000, help="pieces (default: 16000)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.add_argument("--rounds", type=int, default=200, help="at most (default: 200)")
    parser.add_argument("--seconds", type=float, default=5, help="for each size and layout (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the CSV file (default: outputs)")
    add_clock(parser)
    args = parser.parse_args(arguments)
    if unknown := set(args.sizes.split(",")) - set(SIZES):
        parser.error(f"--sizes {','.join(sorted(unknown))}: expected some of {', '.join(SIZES)}")
    return args


def main() -> None:
    args = parse()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = describe(args.device)
    print(machine)
    rows = []
    for size in args.sizes.split(","):
        for layout in ("by tensor", "one tensor"):
            rows += measure(args, size, layout, machine)
    print_table(rows, COLUMNS)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, args.out / "benchmark_update.csv", COLUMNS)


if __name__ == "__main__":
    main()
