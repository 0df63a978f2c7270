"""Fine-tunes a pretrained model on GLUE: every task, learning rate and seed, one CSV row a run.

    OUT/results.csv                          see rt_plugin/glue/results.py; complete after every run
    OUT/sweep.json                           what all runs have in common; a command that differs from it is refused
    OUT/<TASK>/lr<LR>-seed<SEED>/            a model folder: checkpoint, dictionary, tokenizer
        train.log, dev_metrics.jsonl         fairseq's log, which begins with the command; metrics in full precision
        result.json                          the row; a run that has one is not run again

Stopped or killed, the same command goes on: finished runs stay, a run that was under way goes on where it saved.
The CSV then is the one of an undisturbed sweep, but for the seconds, which count the last attempt. The number of
--threads can change the last digits on a CPU: give it if --jobs may change in between.

The defaults are those of RoBERTa (Liu et al. 2019, arXiv 1907.11692, table 10: 10 epochs, batches of 32, 6 % warm-up,
linear decay, weight decay 0.1, Adam with 0.9, 0.98, 1e-6, no clipping; 5 seeds) for all tasks alike, with the learning
rates of the BERT miniatures (Turc et al. 2019, arXiv 1908.08962), which reach higher than RoBERTa's 1e-5, 2e-5, 3e-5
for large models. Batches hold rows of similar length, out of 50 random batches at a time: with random batches up to two
thirds of a batch of GLUE are padding. Options of fairseq-train after `--` replace these: -- --weight-decay 0.01
--group-by-length 0. Not those that this command has an option for, nor those that would change the number of updates,
from which the learning rate's schedule is worked out (--update-freq, --max-tokens and the like).
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rt_plugin.console import commands
from rt_plugin.console.locks import only_user_of
from rt_plugin.console.processes import usable_cores
from rt_plugin.glue.results import CSV_FILE
from rt_plugin.model_folder.files import BEST_CHECKPOINT

LEARNING_RATES = (3e-5, 5e-5, 1e-4, 3e-4)
SEEDS = (1, 2, 3, 4, 5)
EPOCHS = 10
BATCH_SIZE = 32
KEEP = ("best", "all", "none")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    own, fairseq_options = commands.split_at_dashes(argv)
    parser = commands.parser(
        "finetune-glue",
        __doc__,
        usage="%(prog)s DATA OUT --model FOLDER [options] [-- options of fairseq-train]",
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="the OUT folder of rt-plugin prepare-glue")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the results of this model")
    parser.add_argument("--model", required=True, metavar="FOLDER", type=Path, help="the pretrained model's folder")
    parser.add_argument("--checkpoint", default=BEST_CHECKPOINT, metavar="FILE", help="in it (default: %(default)s)")
    parser.add_argument("--name", help="the model's name in the CSV (default: that of its folder)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: every task that DATA holds")
    parser.add_argument("--lr", nargs="+", type=float, default=LEARNING_RATES, help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="SEED", help="default: %(default)s")
    parser.add_argument("--epochs", type=commands.positive, default=EPOCHS, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=commands.positive, default=BATCH_SIZE, metavar="ROWS", help="default: %(default)s"
    )
    parser.add_argument("--jobs", type=commands.positive, metavar="N", help="runs at a time (default: one a GPU, or 1)")
    parser.add_argument("--gpus", nargs="*", metavar="ID", help="GPUs to use (default: all; none given: the CPU)")
    parser.add_argument(
        "--threads", type=commands.positive, metavar="N", help="of the CPU for each run (default: cores / jobs)"
    )
    parser.add_argument(
        "--keep", choices=KEEP, default="best", help="checkpoints of a finished run (default: %(default)s)"
    )
    parser.add_argument("--keep-going", action="store_true", help="begin further runs after one that broke off")
    args = parser.parse_args(own)
    args.fairseq_options = fairseq_options
    if args.gpus is None:
        args.gpus = visible_gpus()
    args.jobs = args.jobs or max(1, len(args.gpus))
    args.threads = args.threads or max(1, usable_cores() // args.jobs)
    return args


def visible_gpus() -> list[str]:
    """The GPUs that CUDA sees, by the names that CUDA_VISIBLE_DEVICES takes."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names:
        return names.split(",")
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def sweep(args: argparse.Namespace) -> None:
    """Run what the command line asks for.

    Raises:
        UserError: see `plan`, `record_sweep` and `Sweep.run`; or OUT is no folder, or another sweep is at work there.
    """
    from rt_plugin.glue.plan import plan
    from rt_plugin.glue.record import describe_sweep, record_sweep
    from rt_plugin.glue.sweep import Sweep

    runs = plan(args)
    slots = [args.gpus[i % len(args.gpus)] if args.gpus else None for i in range(args.jobs)]
    with only_user_of(args.out, "another sweep is at work there; wait for it, or choose another OUT"):
        description = describe_sweep(args, runs)
        record_sweep(args.out, description, runs)
        model = {"model": description["name"], "checkpoint": description["checkpoint sha256"]}
        Sweep(model, args.out, runs, slots, args.threads, args.keep, args.keep_going).run()
    print(args.out / CSV_FILE)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("finetune-glue", lambda: sweep(args), "stopped; the same command goes on from here")
