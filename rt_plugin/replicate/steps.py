"""How long an update of each arm of a plan takes: all of them trained side by side, in one process.

    OUT (CSV)   a row an arm: the median of the rounds in seconds, the fastest and the slowest, how many rounds, tokens
                of an update, the device

Round after round every arm makes one update, by fairseq's own trainer with the plan's options, all on the same batch;
what else the machine does strikes all of them alike. Beside the trainings of a plan the figures would be theirs: stop
them first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rt_plugin._location import USER_DIR
from rt_plugin.console import commands, requirements
from rt_plugin.console.progress import Progress
from rt_plugin.errors import UserError
from rt_plugin.pretrain import launch
from rt_plugin.replicate.plan import Arm, Plan, Run, load_plan
from rt_plugin.replicate.results import STEPS_COLUMNS, write_csv
from rt_plugin.replicate.runs import launch_options

if TYPE_CHECKING:
    from fairseq.trainer import Trainer

_WARM_UP = 3  # rounds that are not counted
_LEAST_ROUNDS = 3


class Timed:
    """An arm in training.

    Args:
        plan: whose arm it is.
        arm: the arm.
        data: the corpus.
    """

    def __init__(self, plan: Plan, arm: Arm, data: str):
        self.arm = arm
        self.trainer = _trainer(plan, arm, data)
        self.seconds: list[float] = []

    def update(self, batches: list[dict]) -> float:
        """Train on the batches of one update; returns the seconds it took."""
        _wait_for_device(self.trainer)
        began = time.perf_counter()
        self.trainer.train_step(batches, raise_oom=True)
        _wait_for_device(self.trainer)
        return time.perf_counter() - began


def _trainer(plan: Plan, arm: Arm, data: str) -> Trainer:
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer

    s = plan.search
    run = Run("time", arm, s.learning_rates[0], s.seeds[0], s.updates, s.warmup_updates)
    args = launch.parse_arguments(launch_options(plan, run, data, Path("unused")))
    devices = launch.Devices(launch.find_devices(args).kind, processes=1)
    words = launch.fairseq_options(args, launch.choose_recipe(args), devices)
    words += ["--distributed-world-size", "1", "--user-dir", str(USER_DIR)]
    parsed = options.parse_args_and_arch(options.get_training_parser(), words)
    cfg = convert_namespace_to_omegaconf(parsed)
    task = tasks.setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def _wait_for_device(trainer: Trainer) -> None:
    if trainer.cuda:
        import torch

        torch.cuda.synchronize()


def measure(plan: Plan, data: str, rounds: int, seconds: float) -> list[dict]:
    """Time an update of every arm.

    Args:
        plan: the plan.
        data: the corpus.
        rounds: at most so many updates of each arm are counted.
        seconds: no further round begins after so long, once there are three.

    Returns:
        A row of `STEPS_COLUMNS` for each arm.

    Raises:
        UserError: an arm cannot be built, or all together do not fit into the device's memory.
    """
    import torch

    try:
        arms = [Timed(plan, arm, data) for arm in plan.arms.values()]
        tokens = _run_rounds(arms, rounds, seconds)
    except torch.OutOfMemoryError as error:
        raise UserError(f"the {len(plan.arms)} arms do not fit into memory together: {error}") from None
    device = torch.cuda.get_device_name() if arms[0].trainer.cuda else f"CPU, threads: {torch.get_num_threads()}"
    return [
        {
            "arm": timed.arm.name,
            "seconds": round(statistics.median(timed.seconds), 6),
            "low": round(min(timed.seconds), 6),
            "high": round(max(timed.seconds), 6),
            "rounds": len(timed.seconds),
            "tokens": round(statistics.fmean(tokens)),
            "device": device,
        }
        for timed in arms
    ]


def _run_rounds(arms: Sequence[Timed], rounds: int, seconds: float) -> list[int]:
    """Let the arms take turns; returns the tokens of each update that was counted."""
    batches, tokens = _updates(arms[0].trainer), []
    with Progress("updates", _WARM_UP + rounds, "rounds") as progress:
        for number in range(_WARM_UP + rounds):
            if number == _WARM_UP:
                began = time.monotonic()
            elif number >= _WARM_UP + _LEAST_ROUNDS and time.monotonic() - began > seconds:
                break
            update = next(batches)
            taken = [timed.update(update) for timed in arms]
            if number >= _WARM_UP:
                tokens.append(sum(batch["ntokens"] for batch in update))
                for timed, value in zip(arms, taken, strict=True):
                    timed.seconds.append(value)
            progress.advance(1)
    return tokens


def _updates(trainer: Trainer) -> Iterator[list[dict]]:
    """The batches of one update after the other, epoch after epoch."""
    from fairseq.data.iterators import GroupedIterator

    epochs = trainer.get_train_iterator(epoch=1)
    while True:
        yield from GroupedIterator(epochs.next_epoch_itr(shuffle=True), trainer.cfg.optimization.update_freq[0])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("time-updates", __doc__)
    parser.add_argument("plan", metavar="PLAN", help="a scale of rt-plugin replicate, or the path of a plan")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="a corpus of rt-plugin prepare-corpus")
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="the CSV file")
    parser.add_argument("--rounds", type=commands.positive, default=50, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=120, metavar="S", help="begin no round after so long (default: %(default)s)"
    )
    parser.add_argument("--threads", type=commands.positive, metavar="N", help="of the CPU (default: torch's)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: see `measure`; or the plan, the data or an option are wrong.
    """
    plan = load_plan(args.plan)
    requirements.require("fairseq")
    launch.check_data(args.data)
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    rows = measure(plan, args.data, args.rounds, args.seconds)
    write_csv(args.out, STEPS_COLUMNS, rows)
    for row in rows:
        ratio = row["seconds"] / rows[0]["seconds"]
        print(f"{row['arm']}: {1000 * row['seconds']:.1f} ms an update, {ratio:.2f} times {rows[0]['arm']}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command `time-updates`; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("time-updates", lambda: run(args))
