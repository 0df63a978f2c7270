"""Pretraining with a recipe: works out the options of fairseq-train for the devices that are there, starts it, reports.

    SAVE_DIR/checkpoint_*.pt, dict.txt, ...   the model folder; the same command again resumes
    SAVE_DIR/command.txt                      what was started
    SAVE_DIR/train.log, log.jsonl             all that fairseq-train said, and the numbers in it, one JSON object a line
    SAVE_DIR/train1.log, ...                  what it said on other nodes

Examples:
  rt-plugin pretrain runs/corpus --recipe mini --save-dir runs/mini --dry-run
  rt-plugin pretrain runs/corpus --recipe base --save-dir runs/base --model roberta
  rt-plugin pretrain runs/corpus --recipe mini --save-dir runs/mini -- --recurrence-direction alternate
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rt_plugin._location import USER_DIR
from rt_plugin.console import commands, requirements
from rt_plugin.console.files import continue_log, replacing
from rt_plugin.console.locks import handed_on
from rt_plugin.console.options import check_values
from rt_plugin.console.processes import usable_cores
from rt_plugin.console.progress import duration
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, data_folders
from rt_plugin.pretrain import fairseq
from rt_plugin.pretrain.recipes import RECIPES, Recipe
from rt_plugin.pretrain.revision import revision
from rt_plugin.pretrain.started import StoppedError, training_records

MODELS = ("recurrent_roberta", "roberta")
PRECISIONS = {"fp32": (), "fp16": ("--fp16",), "amp": ("--amp",), "bf16": ("--bf16",)}
_TOKENS_PER_DEVICE = {"cpu": 8_192, "gpu": 16_384}
_DRY_RUN_UPDATES = 3
_MOST_LOADERS = 8
_BUSY = "another training writes there (process {process}); wait for it, or stop it"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser(
        "pretrain",
        __doc__,
        usage="%(prog)s DATA --recipe RECIPE --save-dir FOLDER [options] [-- more options for fairseq-train]",
    )
    parser.add_argument("data", metavar="DATA", help="folder of prepare-corpus, or several joined by colons")
    parser.add_argument("--recipe", required=True, choices=RECIPES, help="size of the model and schedule")
    parser.add_argument("--save-dir", required=True, type=Path, help="where the model goes")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="check data and model, train three updates, estimate")
    parser.add_argument("--print-only", action="store_true", help="print the command and start nothing")
    recipe = parser.add_argument_group("instead of the recipe's value")
    for name in ("updates", "warmup_updates", "batch_tokens", "tokens_per_sample"):
        recipe.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    recipe.add_argument("--learning-rate", type=float, metavar="X")
    recipe.add_argument("--dropout", type=float, metavar="X")
    devices = parser.add_argument_group("devices")
    devices.add_argument("--cpu", action="store_true", help="train on the CPU though there is a GPU")
    devices.add_argument("--processes", type=int, metavar="N", help="on this node (default: one a GPU; one on a CPU)")
    devices.add_argument("--precision", choices=PRECISIONS, help="default: fp16 on a GPU, fp32 on a CPU")
    devices.add_argument(
        "--tokens-per-device",
        type=commands.positive,
        metavar="N",
        help="at most so many at a time, as memory allows (default: 16384 on a GPU, 8192 on a CPU)",
    )
    devices.add_argument("--nodes", type=int, default=1, metavar="N", help="run this command on each (default: 1)")
    devices.add_argument("--node-rank", type=int, default=0, metavar="N", help="of this node, from 0 on")
    devices.add_argument("--master-addr", default="localhost", metavar="HOST", help="the name of node 0")
    devices.add_argument("--master-port", type=int, metavar="PORT", help="free on node 0; needed with several nodes")
    reports = parser.add_argument_group("reports")
    reports.add_argument(
        "--save-interval", type=commands.positive, metavar="N", help="updates (default: a 100th of all, at least 100)"
    )
    reports.add_argument(
        "--log-interval", type=commands.positive, metavar="N", help="updates (default: 100, or a 20th of all)"
    )
    reports.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="write TensorBoard logs there")
    reports.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    ours, fairseq_options = commands.split_at_dashes(argv)
    args = parser.parse_args(ours)
    args.fairseq_options = fairseq_options
    return args


def choose_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe with the values of the command line.

    Raises:
        UserError: a value makes no sense.
    """
    names = ("updates", "warmup_updates", "batch_tokens", "tokens_per_sample", "learning_rate", "dropout")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        if not value > 0 and name not in ("dropout", "warmup_updates"):
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a number above 0")
    check_values({**given, "seed": args.seed})
    recipe = RECIPES[args.recipe]
    if "updates" in given and "warmup_updates" not in given:
        given["warmup_updates"] = recipe.warmup_updates * given["updates"] // recipe.updates
    return dataclasses.replace(recipe, **given)


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where training runs.

    Attributes:
        kind: "cpu" or "gpu".
        processes: on this node.
        nodes: with as many processes each.
    """

    kind: str
    processes: int
    nodes: int = 1

    @property
    def total(self) -> int:
        return self.processes * self.nodes


def find_devices(args: argparse.Namespace) -> Devices:
    """The devices of this node.

    Raises:
        UserError: more processes than GPUs are asked for, or a number makes no sense.
    """
    import torch

    gpus = 0 if args.cpu else torch.cuda.device_count()
    processes = max(1, gpus) if args.processes is None else args.processes
    for option, value in (("--processes", processes), ("--nodes", args.nodes)):
        if value < 1:
            raise UserError(f"{option} {value}: expected a whole number, at least 1")
    if not 0 <= args.node_rank < args.nodes:
        last = args.nodes - 1
        raise UserError(f"--node-rank {args.node_rank}: expected 0 to {last}, as --nodes {args.nodes} counts from 0")
    if gpus and processes > gpus:
        raise UserError(f"--processes {processes}: there are {gpus} GPUs here, and a process needs one; or add --cpu")
    if args.nodes > 1 and not args.master_port:
        raise UserError("--nodes: several nodes need --master-addr and --master-port, where they find each other")
    return Devices("gpu" if gpus else "cpu", processes, args.nodes)


def split_batch(batch_tokens: int, devices: int, tokens_per_device: int, tokens_per_sample: int) -> tuple[int, int]:
    """How a batch is shared out: (tokens a device and step, steps an update).

    Of the numbers of steps that fit, the smallest that divides the batch evenly, or else the smallest.

    Raises:
        UserError: a device cannot hold one sequence, or would have none.
    """
    if tokens_per_device < tokens_per_sample:
        raise UserError(
            f"--tokens-per-device {tokens_per_device}: below the {tokens_per_sample} tokens of one sequence; "
            "give more, or fewer --tokens-per-sample"
        )
    if batch_tokens < devices * tokens_per_sample:
        raise UserError(
            f"a batch of {batch_tokens} tokens is less than one sequence of {tokens_per_sample} tokens for each of "
            f"{devices} devices; use fewer --processes, or more --batch-tokens"
        )
    least = -(-batch_tokens // (devices * tokens_per_device))
    most = batch_tokens // (devices * tokens_per_sample)
    even = (steps for steps in range(least, min(2 * least, most) + 1) if batch_tokens % (devices * steps) == 0)
    steps = min(next(even, least), most)
    return batch_tokens // (devices * steps), steps


def check_data(data: str) -> None:
    """Refuse data that fairseq would stumble over after minutes, or in a later epoch.

    Raises:
        UserError: a folder, the dictionary or a split is missing or empty.
    """
    folders = [Path(name) for name in data_folders(data)]
    for number, folder in enumerate(folders):
        names = ["train.bin", "train.idx"]
        if number == 0:
            names += [DICTIONARY_FILE, "valid.bin", "valid.idx"]
        if not folder.is_dir():
            raise UserError(f"data folder {folder}: no such folder; give what rt-plugin prepare-corpus printed")
        if missing := [name for name in names if not (folder / name).is_file()]:
            options = " with --valid or --valid-documents" if missing[0].startswith("valid") else ""
            raise UserError(
                f"data folder {folder}: no {missing[0]} there; expected {', '.join(names)}, as "
                f"rt-plugin prepare-corpus{options} writes them"
            )
        if empty := [name for name in names if name.endswith(".bin") and not (folder / name).stat().st_size]:
            raise UserError(f"data folder {folder}: {empty[0]} is empty, no epoch can be trained on it; leave it out")


def fairseq_options(args: argparse.Namespace, recipe: Recipe, devices: Devices) -> list[str]:
    """The arguments of fairseq-train."""
    limit = args.tokens_per_device or _TOKENS_PER_DEVICE[devices.kind]
    max_tokens, steps = split_batch(recipe.batch_tokens, devices.total, limit, recipe.tokens_per_sample)
    save_interval = args.save_interval or min(recipe.updates, max(100, recipe.updates // 100))
    log_interval = args.log_interval or max(1, min(100, recipe.updates // 20))
    options = {
        "task": "rt_masked_lm",
        "criterion": "rt_masked_lm",
        "arch": f"{args.model}_{recipe.size}",
        "sample-break-mode": "complete_doc",
        "tokens-per-sample": recipe.tokens_per_sample,
        "max-positions": recipe.tokens_per_sample,
        "max-tokens": max_tokens,
        "update-freq": steps,
        "required-batch-size-multiple": 1,  # 8, the default, leaves up to half of a small batch empty
        "max-update": recipe.updates,
        "total-num-update": recipe.updates,
        "warmup-updates": recipe.warmup_updates,
        "lr-scheduler": "polynomial_decay",
        "lr": recipe.learning_rate,
        "optimizer": "adam",
        "adam-betas": str(recipe.adam_betas),
        "adam-eps": recipe.adam_eps,
        "weight-decay": recipe.weight_decay,
        "clip-norm": recipe.clip_norm,
        "dropout": recipe.dropout,
        "attention-dropout": recipe.dropout,
        "seed": args.seed,
        "save-dir": args.save_dir,
        "save-interval-updates": save_interval,
        "validate-interval-updates": save_interval,
        "keep-interval-updates": 2,  # the newest may turn out to be unreadable
        "log-format": "json",
        "log-interval": log_interval,
    }
    if args.tensorboard:
        options["tensorboard-logdir"] = args.tensorboard
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    precision = args.precision or {"gpu": "fp16", "cpu": "fp32"}[devices.kind]
    words += ["--no-epoch-checkpoints", *PRECISIONS[precision]]
    words += ["--cpu", "--num-workers", "0"] if devices.kind == "cpu" else ["--num-workers", str(_loaders(devices))]
    return [args.data, *words, *args.fairseq_options]


def _loaders(devices: Devices) -> int:
    """Processes that read batches for each process that trains: one alone keeps no GPU busy where models are small."""
    return max(1, min(_MOST_LOADERS, usable_cores() // devices.processes))


def launch_command(args: argparse.Namespace, devices: Devices, options: list[str]) -> list[str]:
    """The command: fairseq-train for one process, torchrun for several."""
    if devices.total == 1:
        # fairseq-train by itself takes all GPUs
        alone = () if devices.kind == "cpu" else ("--distributed-world-size", "1")
        return [*fairseq.command_line("train"), *options, *alone, "--user-dir", str(USER_DIR)]
    if devices.kind == "cpu":  # in front, so that another --ddp-backend behind the -- takes its place
        options = ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", *options]
    where = [f"--nproc-per-node={devices.processes}"]
    if devices.nodes == 1:
        where.append("--standalone")
    else:
        where += [f"--nnodes={devices.nodes}", f"--node-rank={args.node_rank}"]
        where += [f"--master-addr={args.master_addr}", f"--master-port={args.master_port}"]
    return ["torchrun", *where, "-m", "rt_plugin.pretrain.process", *options]


_OURS = "behind the -- is set by this program; use"
_WORKED_OUT = "is worked out from --processes, --nodes, --batch-tokens and --tokens-per-device; leave it out"
_REFUSED = {  # options of fairseq-train -> why
    "--save-dir": f"{_OURS} --save-dir before the --",
    **dict.fromkeys(("--arch", "-a"), f"{_OURS} --model and --recipe before the --"),
    "--lr": f"{_OURS} --learning-rate before the --",
    "--max-update": f"{_OURS} --updates",
    "--total-num-update": f"{_OURS} --updates",
    "--warmup-updates": f"{_OURS} --warmup-updates before the --",
    "--tokens-per-sample": f"{_OURS} --tokens-per-sample before the --",
    **dict.fromkeys(
        ("--batch-size", "--max-sentences"), f"{_OURS} --batch-tokens and --tokens-per-device before the --"
    ),
    **dict.fromkeys(("--fp16", "--bf16", "--amp"), f"{_OURS} --precision before the --"),
    "--cpu": f"{_OURS} --cpu before the --",
    "--seed": f"{_OURS} --seed before the --",
    "--log-format": f"{_OURS} nothing, progress is read from it",
    **dict.fromkeys(("--distributed-", "--device-id", "--update-freq", "--max-tokens"), _WORKED_OUT),
}


def refuse_wrong_launch(args: argparse.Namespace) -> None:
    """Refuse to be one of several processes, options that this program sets, and logs that nothing here can write.

    Raises:
        UserError: as said.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("LOCAL_RANK", 0)):
        raise UserError("started by torchrun, but this command starts the processes itself; run it without torchrun")
    commands.refuse_options(args.fairseq_options, _REFUSED)
    writers = ("tensorboard", "tensorboardX")  # without either, fairseq warns and trains on
    if args.tensorboard and not any(importlib.util.find_spec(name) for name in writers):
        raise UserError("--tensorboard needs the package tensorboardX, not found here; pip install tensorboardX")


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit status.

    Raises:
        UserError: an option or the data are wrong, or training stopped with an error.
    """
    refuse_wrong_launch(args)
    recipe, devices = choose_recipe(args), find_devices(args)
    if not args.print_only:
        requirements.require("fairseq")
        check_data(args.data)
    command = launch_command(args, devices, fairseq_options(args, recipe, devices))
    print(describe(recipe, devices, command), flush=True)
    if args.print_only:
        return 0
    warn_of_plain_recurrence(args, devices)
    try:
        if args.dry_run:
            dry_run(args, recipe, command)
            return 0
        with handed_on(args.save_dir, f".lock{args.node_rank}", _BUSY) as lock:
            if args.node_rank == 0:
                with replacing(args.save_dir / "command.txt") as file:
                    file.write(f"{shlex.join(command)}\n".encode())
            train(command, recipe, args.save_dir, args.node_rank, lock)
        return 0
    except StoppedError as stop:
        then = "the same command starts again" if args.dry_run else stop.then
        print(f"rt-plugin pretrain: {stop}; {then}", file=sys.stderr, flush=True)
        return commands.STOPPED
    except OSError as error:
        reason = error.strerror or error
        if args.dry_run:
            raise UserError(
                f"--dry-run: cannot write its temporary files ({reason}); make room for them, or name another folder "
                "with TMPDIR"
            ) from None
        raise UserError(f"--save-dir {args.save_dir}: cannot be written ({reason})") from None


def describe(recipe: Recipe, devices: Devices, command: list[str]) -> str:
    """The recipe, the batch as it comes out, and the command."""
    tokens, steps = (int(command[command.index(f"--{name}") + 1]) for name in ("max-tokens", "update-freq"))
    batch = f"{devices.total} {devices.kind.upper()} x {steps} steps x {tokens:,} = {devices.total * steps * tokens:,}"
    return (
        f"recipe: {recipe.source}\n"
        f"schedule: {recipe.updates:,} updates, {recipe.warmup_updates:,} of them warm-up to {recipe.learning_rate:g}\n"
        f"batch: {batch} tokens at most (the recipe's: {recipe.batch_tokens:,})\n$ {shlex.join(command)}"
    )


def warn_of_plain_recurrence(args: argparse.Namespace, devices: Devices) -> None:
    """Say in one line why a GPU is going to run the recurrence without the compiled operation."""
    words = (word for option in args.fairseq_options for word in option.split("=", 1))
    kind = dict(itertools.pairwise(words)).get("--recurrence-type", "swish-rnn")
    if devices.kind == "cpu" or args.model != "recurrent_roberta" or kind != "swish-rnn":
        return
    from rt_plugin import ops

    if reason := ops.native_backends()["cuda"]:
        line = f"the recurrence runs in plain PyTorch on the GPU, position after position, which is slow: {reason}"
        print(f"rt-plugin pretrain: warning: {line}", file=sys.stderr, flush=True)


def dry_run(args: argparse.Namespace, recipe: Recipe, command: list[str]) -> None:
    """Train a few updates on every process, save nothing, and tell how long the whole will take."""
    with tempfile.TemporaryDirectory() as folder:
        last = ("--max-update", str(_DRY_RUN_UPDATES), "--log-interval", "1", "--no-save", "--disable-validation")
        last += ("--tensorboard-logdir", folder) if "--tensorboard-logdir" in command else ()
        records = list(training_records([*command, "--save-dir", folder, *last], Path(folder) / "train.log"))
    if args.node_rank:
        print(f"dry run: node {args.node_rank} took part; node 0 reports")
        return
    speeds = [record["updates_per_second"] for record in records if record.get("updates_per_second")]
    if not speeds:
        raise UserError("the dry run ended without an update; are there fewer training data than one batch?")
    hours = recipe.updates / speeds[-1] / 3600
    tokens = records[-1].get("tokens_per_update", 0)
    print(
        f"dry run: {_DRY_RUN_UPDATES} updates of {tokens:,.0f} tokens, {speeds[-1]:.3g} updates/s; "
        f"{recipe.updates:,} updates will take about {duration(hours * 3600)}, without validation"
    )


def train(command: list[str], recipe: Recipe, save_dir: Path, node_rank: int, lock: int) -> None:
    """Run the command, which gets the open file `lock`; log and report what it says. The numbers come from node 0."""
    record, commit = None, revision()
    with continue_log(save_dir / "log.jsonl", keep_rest=False) as log:
        for record in training_records(command, save_dir / f"train{node_rank or ''}.log", lock):
            log.write(json.dumps({**record, "commit": commit}) + "\n")
            log.flush()
            print(progress_line(record, recipe.updates), flush=True)
    if record is None and node_rank == 0:
        print(f"{save_dir}: trained before, no update is left to make")


def progress_line(record: dict, updates: int) -> str:
    """One line for people: loss in bits, perplexity, speed, and the time left."""
    words = [f"{record['split']:5} update {record['update']:,}/{updates:,}", f"loss {record['loss']:.3f} bits"]
    if "perplexity" in record:
        words.append(f"perplexity {record['perplexity']:.1f}")
    if "mask_perplexity" in record:
        words[-1] += f" (of <mask> alone {record['mask_perplexity']:.1f})"
    if "accuracy" in record:
        words.append(f"accuracy {record['accuracy']:.1%}")
    if record["split"] != "valid" and record.get("tokens_per_second"):
        words.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if record["split"] == "train" and record.get("updates_per_second"):
        words.append(f"{duration((updates - record['update']) / record['updates_per_second'])} left")
    return "  ".join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("pretrain", lambda: run(args), "interrupted; the same command resumes")
