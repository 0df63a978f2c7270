"""Start-up, memory and speed of reading pretraining data, for synthetic data of any size.

    python scripts/benchmark_data.py --sentences 1 4 16 80 --out benchmark_data.json

Several processes read at once, as those of one node do. For each size: a first start, with nothing but the data there,
and a second. Private memory is what a process alone holds (USS, by /proc/self/smaps_rollup), beyond what Python, torch
and fairseq take. `--plugin` takes the plugin from another checkout, to compare; with `--world-size` the processes are
the first ones of so many.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import checkout

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = 32_000
MEAN_TOKENS = 37.5  # of a sentence; 80 million have 3 billion
DOCUMENT = 20  # sentences, in the mean
CHUNK = 1 << 20


def write_data(folder: Path, sentences: int) -> int:
    """A split `train` of random tokens, with documents and their blank lines; returns the number of tokens."""
    folder.mkdir(parents=True)
    (folder / "dict.txt").write_text("".join(f"w{i} 1\n" for i in range(WORDS)), encoding="utf-8")
    rng = np.random.default_rng(1)
    sizes = np.maximum(2, rng.gamma(2.0, MEAN_TOKENS / 2, sentences)).astype(np.int32)
    sizes[rng.random(sentences) < 1 / DOCUMENT] = 1
    ends = np.cumsum(sizes, dtype=np.int64)
    tokens = int(ends[-1])
    with (folder / "train.idx").open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + b"\x08" + sentences.to_bytes(8, "little"))
        file.write(sizes.data)
        file.write(np.concatenate([[0], 2 * ends[:-1]]).astype(np.int64).data)
    noise = rng.integers(4, WORDS, CHUNK).astype(np.uint16)
    with (folder / "train.bin").open("wb") as file:
        for first in range(0, tokens, CHUNK):
            file.write(noise[: tokens - first].data)
    data = np.memmap(folder / "train.bin", np.uint16, mode="r+")
    for first in range(0, sentences, CHUNK):
        data[ends[first : first + CHUNK] - 1] = 2  # </s>
    data.flush()
    return tokens


def memory() -> dict[str, int]:
    """Bytes of this process: private, shared, and the highest resident size so far."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {words[0].rstrip(":"): int(words[1]) << 10 for words in lines}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "private": sizes["Private_Clean"] + sizes["Private_Dirty"],
        "anonymous": sizes["Anonymous"],
        "shared": sizes["Shared_Clean"] + sizes["Shared_Dirty"],
        "peak": int(status["VmHWM"].split()[0]) << 10,
    }


def read(data: str, rank: int, world_size: int, seconds: float, tokens_per_sample: int, max_tokens: int) -> None:
    """One process: load, say so, and at each line of standard input go on."""
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
    from omegaconf import OmegaConf

    import rt_plugin  # noqa: F401  (registers the task)

    options = {"data": data, "tokens_per_sample": tokens_per_sample, "sample_break_mode": "complete_doc", "seed": 1}
    cfg = OmegaConf.merge(OmegaConf.structured(TASK_DATACLASS_REGISTRY["rt_masked_lm"]), options)
    task = TASK_REGISTRY["rt_masked_lm"].setup_task(cfg)
    before = say(memory())
    sys.stdin.readline()
    began = time.perf_counter()
    task.load_dataset("train", epoch=1, combine=True)
    iterator = task.get_batch_iterator(
        task.dataset("train"),
        max_tokens=max_tokens,
        max_positions=tokens_per_sample,
        ignore_invalid_inputs=True,
        required_batch_size_multiple=8,
        seed=1,
        num_shards=world_size,
        shard_id=rank,
        disable_iterator_cache=True,
    )
    batches = iterator.next_epoch_itr()
    next(batches)
    say(time.perf_counter() - began)
    sys.stdin.readline()
    now = memory()
    grown = {name: now[name] - before[name] for name in now}
    say({**grown, "blocks": len(task.dataset("train")), "batches": len(iterator.frozen_batches)})
    sys.stdin.readline()
    began, tokens = time.perf_counter(), 0
    while time.perf_counter() - began < seconds and batches.has_next():
        tokens += int(next(batches).get("ntokens", 0))
    say(tokens / (time.perf_counter() - began))


def say(value):
    print("\n" + json.dumps(value), flush=True)
    return value


def run(data: Path, arguments: argparse.Namespace) -> dict:
    """One start of all processes; their largest figures, and tokens a second of all together."""
    world_size = max(arguments.world_size, arguments.processes)
    here = [__file__, "--read", data, "--world-size", world_size, "--seconds", arguments.seconds]
    here += ["--tokens-per-sample", arguments.tokens_per_sample, "--max-tokens", arguments.max_tokens]
    environment = {**os.environ, "PYTHONPATH": str(arguments.plugin.resolve()), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("LOCAL_RANK", "RANK")}
    workers = [
        subprocess.Popen(
            [sys.executable, *map(str, here), "--rank", str(rank)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(arguments.processes)
    ]

    def answers():
        return [answer(worker) for worker in workers]

    def go_on():
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()

    answers()
    go_on()
    seconds = max(answers())
    go_on()
    grown = answers()
    go_on()
    speed = answers()
    for worker in workers:
        worker.stdin.close()
        if worker.wait():
            raise SystemExit("benchmark_data.py: a process failed")
    largest = {name: max(process[name] for process in grown) for name in grown[0]}
    return {"start_up_seconds": seconds, **largest, "tokens_per_second": sum(speed)}


def answer(worker: subprocess.Popen):
    for line in worker.stdout:
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue  # what fairseq prints
    raise SystemExit("benchmark_data.py: a process ended early; run it with --read to see why")


def main() -> None:
    parser = checkout.parser(__doc__)
    parser.add_argument(
        "--sentences", type=float, nargs="+", default=[1, 4], metavar="M", help="millions (default: 1 4)"
    )
    parser.add_argument("--processes", type=int, default=2, help="that read at once (default: 2)")
    parser.add_argument("--world-size", type=int, default=0, help="of the whole training (default: --processes)")
    parser.add_argument("--seconds", type=float, default=10, help="to read for, for tokens a second (default: 10)")
    parser.add_argument("--tokens-per-sample", type=int, default=512, help="default: 512")
    parser.add_argument("--max-tokens", type=int, default=16_384, help="of a batch (default: 16384)")
    parser.add_argument("--plugin", type=Path, default=REPOSITORY, help="checkout with rt_plugin/ (default: this one)")
    parser.add_argument("--folder", type=Path, help="for the data, 90 bytes a sentence (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        words = (arguments.rank, arguments.world_size, arguments.seconds)
        read(str(arguments.read), *words, arguments.tokens_per_sample, arguments.max_tokens)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    of = f" of {arguments.world_size}" if arguments.world_size else ""
    print(f"{arguments.processes} processes{of}; MiB of one of them, beyond Python, torch and fairseq")
    headings = "sentences | tokens | start | start-up, s | private | of it no file | shared | peak | on disk | tokens/s"
    print(f"| {headings} |\n| ---: | ---: | --- |{' ---: |' * 7}", flush=True)
    figures = []
    for millions in arguments.sentences:
        folder = Path(tempfile.mkdtemp(prefix="benchmark_data", dir=arguments.folder)) / "data"
        try:
            tokens = write_data(folder, int(millions * 1e6))
            for start in ("first", "second"):
                row = run(folder, arguments)
                kept = (
                    sum(f.stat().st_size for f in (folder / "blocks").glob("*")) if (folder / "blocks").exists() else 0
                )
                row = {"sentences": int(millions * 1e6), "tokens": tokens, "start": start, "kept": kept, **row}
                figures.append(row)
                sizes = [row[name] for name in ("private", "anonymous", "shared", "peak")] + [kept]
                cells = [f"{millions:g} M", f"{tokens / 1e6:,.0f} M", start, f"{row['start_up_seconds']:.2f}"]
                cells += [f"{size / 2**20:,.1f}" for size in sizes] + [f"{row['tokens_per_second']:,.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)
        finally:
            shutil.rmtree(folder.parent)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
