"""Measure the recurrent block against the feed-forward block that it replaces, and a training step of both models.

    python scripts/benchmark_block.py [--device cpu|cuda] [--widths 128,256,768] [--dtypes float32] [--steps]

The feed-forward block is two projections of width 4 d with GELU between, without dropout: as many parameters as
RecurrentFFN. Forward and backward together, interleaved, medians; see benchmark_op.py for what is warmed.
--steps adds whole training steps (forward, backward, AdamW) of recurrent_roberta and fairseq's own roberta of the same
width, heads and number of layers, on random tokens of which 15 % are predicted; it needs fairseq. --models chooses
among

    roberta                  fairseq's; its GELU runs in float32 whatever the type
    roberta-same-gelu        the same with torch's GELU in the type of the model
    recurrent-k1, -k2        recurrent_roberta with step size 1 and 2
    recurrent-none           its control without a recurrence
    roberta-compiled, recurrent-k1-compiled   the encoder by torch.compile, as with --compile-encoder
    transformers, transformers-compiled   RobertaForMaskedLM, eager and by torch.compile, where transformers is there

With --padded, sentences end up to a sixteenth before their row does.

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

import checkout

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rt_plugin.modules import RecurrentFFN

COLUMNS = (
    *("what", "layers", "width", "length", "batch", "dtype", "candidate"),
    *("median_ms", "low_ms", "high_ms", "ratio", "tokens_per_s", "saved_mib", "peak_mib", "machine"),
)
PADDING = 1  # fairseq's and RoBERTa's id


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


def random_tokens(args) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, which of them are predicted), (B, L) each."""
    torch.manual_seed(0)
    tokens = torch.randint(5, args.vocabulary, (args.batch, args.length), device=args.device)
    masked = torch.rand(tokens.shape, device=args.device) < 0.15
    if args.padded:
        ends = torch.randint(args.length * 15 // 16, args.length, (args.batch, 1), device=args.device)
        padded = torch.arange(args.length, device=args.device) >= ends
        tokens.masked_fill_(padded, PADDING)
        masked &= ~padded
    return tokens, masked


def fairseq_loss(args, width: int, name: str, tokens, masked):
    """(model, what gives its loss on the predicted tokens)."""
    import rt_plugin  # noqa: F401  (registers recurrent_roberta)

    options = {
        "recurrent-k1": {"recurrence_step_size": 1},
        "recurrent-k2": {"recurrence_step_size": 2},
        "recurrent-none": {"recurrence_type": "none"},
    }
    plain = name.removesuffix("-compiled")
    arch = "recurrent_roberta" if plain in options else "roberta"
    model = _model(arch, width, args, **options.get(plain, {}))
    if plain != name:
        model.encoder.sentence_encoder.compile(dynamic=True)
    if name == "roberta-same-gelu":
        for layer in model.encoder.sentence_encoder.layers:
            layer.activation_fn = F.gelu
    targets = tokens[masked]
    return model, lambda: F.cross_entropy(model(tokens, masked_tokens=masked)[0].float(), targets)


def transformers_loss(args, width: int, name: str, tokens, masked):
    """The same of RobertaForMaskedLM."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=args.vocabulary,
        hidden_size=width,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        max_position_embeddings=args.length + 2,
        attn_implementation="sdpa",
    )
    model = RobertaForMaskedLM(config)
    run = torch.compile(model) if name == "transformers-compiled" else model
    inputs = {"input_ids": tokens, "labels": tokens.masked_fill(~masked, -100)}
    if args.padded:
        inputs["attention_mask"] = (tokens != PADDING).long()
    return model, lambda: run(**inputs).loss


STEP_MODELS = {
    **dict.fromkeys(("roberta", "roberta-same-gelu", "recurrent-k1", "recurrent-k2", "recurrent-none"), fairseq_loss),
    **dict.fromkeys(("roberta-compiled", "recurrent-k1-compiled"), fairseq_loss),
    **dict.fromkeys(("transformers", "transformers-compiled"), transformers_loss),
}


def step_candidates(args, width: int, dtype: torch.dtype) -> dict:
    """Training steps in `dtype` throughout, as fairseq's --fp16 and --bf16 run the model."""
    tokens, masked = random_tokens(args)

    def candidate(name: str):
        model, loss = STEP_MODELS[name](args, width, name, tokens, masked)
        model.to(args.device, dtype).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=args.device == "cuda")

        def step():
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    found = {}
    for name in args.models.split(","):
        try:
            found[name] = candidate(name)
        except ImportError as error:
            print(f"left out: {name} (training step): {str(error).splitlines()[0]}")
    return found


def measure(args, what: str, width: int, dtype_name: str, candidates: dict, machine: str) -> list[dict]:
    """One row per candidate; `ratio` is to the first one, and empty where that fails."""
    first = next(iter(candidates), None)
    candidates = drop_failing(candidates, what)
    watch = Stopwatch(args.device, args.clock, head_start=what == "block")
    times = interleaved(candidates, watch, args.seconds, args.rounds)
    base = statistics.median(times[first]) if first in times else None
    rows = []
    for name, samples in times.items():
        median = statistics.median(samples)
        saved, peak = memory_mib(candidates[name], args.device)
        rows.append(
            {
                "what": what,
                "layers": args.layers if what.startswith("training") else 1,
                "width": width,
                "length": args.length,
                "batch": args.batch,
                "dtype": dtype_name,
                "candidate": name,
                "median_ms": round(median, 2),
                "low_ms": round(min(samples), 2),
                "high_ms": round(max(samples), 2),
                "ratio": round(median / base, 3) if base else "",
                "tokens_per_s": round(args.length * args.batch / median * 1e3),
                "saved_mib": saved,
                "peak_mib": peak,
                "machine": machine,
            }
        )
    return rows


def plot(rows: list[dict], file: Path, title: str) -> None:
    pyplot = import_pyplot()
    if pyplot is None:
        return
    shown = [r for r in rows if "plain PyTorch" not in r["candidate"] and r["ratio"]]
    labels = [f"{r['what']}, d={r['width']}, {r['dtype']}: {r['candidate']}" for r in shown]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.28 * len(shown)), layout="constrained")
    axes.barh(labels, [r["ratio"] for r in shown])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("time, relative to the Transformer's")
    axes.set_title(title, fontsize=8)
    figure.savefig(file, dpi=150)


def parse(arguments=None) -> argparse.Namespace:
    parser = checkout.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--widths", default="128,256,768", help="d, comma-separated (default: 128,256,768)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="comma-separated")
    parser.add_argument("--length", type=int, default=128, help="L (default: 128)")
    parser.add_argument("--batch", type=int, default=16, help="B (default: 16)")
    parser.add_argument("--steps", action="store_true", help="also measure training steps; needs fairseq")
    parser.add_argument("--no-blocks", action="store_true", help="with --steps: no measurement of the blocks alone")
    default = "roberta,recurrent-k1,recurrent-k2"
    parser.add_argument("--models", default=default, help=f"of --steps, comma-separated (default: {default})")
    parser.add_argument("--padded", action="store_true", help="rows of --steps end in padding")
    parser.add_argument("--layers", type=int, default=2, help="of the models of --steps (default: 2)")
    parser.add_argument("--vocabulary", type=int, default=8000, help="of the models of --steps (default: 8000)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    add_clock(parser)
    parser.add_argument("--rounds", type=int, default=21, help="at most this many of each (default: 21)")
    parser.add_argument("--seconds", type=float, default=30, help="per width, type and comparison (default: 30)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for CSV and chart (default: outputs)")
    args = parser.parse_args(arguments)
    if unknown := set(args.models.split(",")) - set(STEP_MODELS):
        parser.error(f"--models {','.join(sorted(unknown))}: expected some of {', '.join(STEP_MODELS)}")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    title = f"{describe(args.device)}, {args.clock} time, L={args.length}, B={args.batch}"
    print(title)
    rows = []
    step = "training step, padded" if args.padded else "training step"
    comparisons = {} if args.no_blocks else {"block": block_candidates}
    comparisons |= {step: step_candidates} if args.steps else {}
    for what, make in comparisons.items():
        for width in map(int, args.widths.split(",")):
            for dtype in args.dtypes.split(","):
                part = measure(args, what, width, dtype, make(args, width, getattr(torch, dtype)), title)
                print_table(part, COLUMNS)
                rows += part
                write_csv(rows, args.out / "benchmark_block.csv", COLUMNS)
    plot(rows, args.out / "benchmark_block.png", title)
    print(f"written: {args.out}/benchmark_block.csv, {args.out}/benchmark_block.png")


if __name__ == "__main__":
    main()
