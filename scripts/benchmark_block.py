"""Measure the recurrent block against the feed-forward block that it replaces, and a training step of both models.

    python scripts/benchmark_block.py [--device cpu|cuda] [--widths 128,256,768] [--dtypes float32] [--steps]

The feed-forward block is two projections of width 4 d with GELU between, without dropout: as many parameters as
RecurrentFFN. Forward and backward together, interleaved, medians; see benchmark_op.py for what is warmed.
--steps adds whole training steps (forward, backward, Adam) of recurrent_roberta and fairseq's own roberta of the same
width, heads and number of layers, on random tokens of which 15 % are predicted; it needs fairseq.

Writes the table, benchmark_block.csv and benchmark_block.png to --out.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from benchmark_op import (
    Stopwatch,
    add_clock,
    describe,
    drop_failing,
    import_pyplot,
    interleaved,
    keep_freed_memory,
    memory_mib,
    print_table,
    write_csv,
)
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rt_plugin.modules import RecurrentFFN

COLUMNS = ("what", "width", "dtype", "candidate", "median_ms", "low_ms", "high_ms", "ratio", "saved_mib", "peak_mib")


class FeedForward(nn.Module):
    """fairseq's feed-forward block without dropout."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def block_candidates(args, width: int, dtype: torch.dtype) -> dict:
    torch.manual_seed(0)
    x = torch.randn(args.length, args.batch, width, device=args.device, dtype=dtype, requires_grad=True)
    dy = torch.randn_like(x)
    blocks = {"feed-forward": FeedForward(width)}
    for k in (1, 2):
        blocks[f"recurrent, k={k}"] = RecurrentFFN(width, step_size=k)
        blocks[f"recurrent, k={k}, plain PyTorch"] = RecurrentFFN(width, step_size=k, impl="reference")

    def candidate(block):
        block = block.to(args.device, dtype)
        leaves = [x, *block.parameters()]
        return lambda: torch.autograd.grad(block(x), leaves, dy)

    return {name: candidate(block) for name, block in blocks.items()}


class _Task:
    """What fairseq's build_model asks of a task."""

    def __init__(self, source_dictionary):
        self.source_dictionary = self.dictionary = source_dictionary


def _model(arch: str, width: int, args, **options) -> nn.Module:
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    dictionary = Dictionary()
    for i in range(args.vocabulary - len(dictionary)):
        dictionary.add_symbol(f"piece{i}")
    namespace = argparse.Namespace(
        encoder_layers=args.layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=max(1, width // 64),
        tokens_per_sample=args.length,
        max_positions=args.length,
        **options,
    )
    ARCH_CONFIG_REGISTRY[arch](namespace)
    return ARCH_MODEL_REGISTRY[arch].build_model(namespace, _Task(dictionary))


def step_candidates(args, width: int, dtype: torch.dtype) -> dict:
    """Training steps in `dtype` throughout, as fairseq's --fp16 and --bf16 run the model."""
    import rt_plugin  # noqa: F401  (registers recurrent_roberta)

    torch.manual_seed(0)
    tokens = torch.randint(5, args.vocabulary, (args.batch, args.length), device=args.device)
    masked = torch.rand(tokens.shape, device=args.device) < 0.15
    models = {"roberta": _model("roberta", width, args)}
    for k in (1, 2):
        models[f"recurrent_roberta, k={k}"] = _model("recurrent_roberta", width, args, recurrence_step_size=k)

    def candidate(model):
        model = model.to(args.device, dtype).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

        def step():
            logits, _ = model(tokens, masked_tokens=masked)
            F.cross_entropy(logits.float().view(-1, logits.shape[-1]), tokens[masked]).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return {name: candidate(model) for name, model in models.items()}


def measure(args, what: str, width: int, dtype_name: str, candidates: dict) -> list[dict]:
    """One row per candidate; `ratio` is to the first one."""
    candidates = drop_failing(candidates, what)
    times = interleaved(candidates, Stopwatch(args.device, args.clock), args.seconds, args.rounds)
    base = statistics.median(next(iter(times.values())))
    rows = []
    for name, samples in times.items():
        median = statistics.median(samples)
        saved, peak = memory_mib(candidates[name], args.device)
        rows.append(
            {
                "what": what,
                "width": width,
                "dtype": dtype_name,
                "candidate": name,
                "median_ms": round(median, 2),
                "low_ms": round(min(samples), 2),
                "high_ms": round(max(samples), 2),
                "ratio": round(median / base, 3),
                "saved_mib": saved,
                "peak_mib": peak,
            }
        )
    return rows


def plot(rows: list[dict], file: Path, title: str) -> None:
    pyplot = import_pyplot()
    if pyplot is None:
        return
    shown = [r for r in rows if "plain PyTorch" not in r["candidate"]]
    labels = [f"{r['what']}, d={r['width']}, {r['dtype']}: {r['candidate']}" for r in shown]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.28 * len(shown)), layout="constrained")
    axes.barh(labels, [r["ratio"] for r in shown])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("time, relative to the Transformer's")
    axes.set_title(title, fontsize=8)
    figure.savefig(file, dpi=150)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--widths", default="128,256,768", help="d, comma-separated (default: 128,256,768)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="comma-separated")
    parser.add_argument("--length", type=int, default=128, help="L (default: 128)")
    parser.add_argument("--batch", type=int, default=16, help="B (default: 16)")
    parser.add_argument("--steps", action="store_true", help="also measure training steps; needs fairseq")
    parser.add_argument("--layers", type=int, default=2, help="of the models of --steps (default: 2)")
    parser.add_argument("--vocabulary", type=int, default=8000, help="of the models of --steps (default: 8000)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    add_clock(parser)
    parser.add_argument("--rounds", type=int, default=21, help="at most this many of each (default: 21)")
    parser.add_argument("--seconds", type=float, default=30, help="per width, type and comparison (default: 30)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for CSV and chart (default: outputs)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    title = f"{describe(args.device)}, {args.clock} time, L={args.length}, B={args.batch}"
    print(title)
    rows = []
    comparisons = {"block": block_candidates, **({"training step": step_candidates} if args.steps else {})}
    for what, make in comparisons.items():
        for width in map(int, args.widths.split(",")):
            for dtype in args.dtypes.split(","):
                part = measure(args, what, width, dtype, make(args, width, getattr(torch, dtype)))
                print_table(part, COLUMNS)
                rows += part
                write_csv(rows, args.out / "benchmark_block.csv", COLUMNS)
    plot(rows, args.out / "benchmark_block.png", title)
    print(f"written: {args.out}/benchmark_block.csv, {args.out}/benchmark_block.png")


if __name__ == "__main__":
    main()
