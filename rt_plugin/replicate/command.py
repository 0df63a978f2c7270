"""Does recurrence help? Runs a written plan of pretrainings side by side, evaluates and reports it.

SCALE is smoke, laptop, laptop-causes, laptop-gate, laptop-mini, one-gpu, paper, or the path of a plan of your own
(see rt_plugin/replicate/plan.py).

    search     every arm at the same learning rates; where an arm's best rate is at the edge of the grid, the grid is
               extended for all arms
    final      every arm at its best rate, with seeds that the search has not seen, the same for all: equal seeds read
               the same batches with the same masks
    time       an update of every arm, side by side in one program, after the trainings
    evaluate   loss of the final encoders on the split `test` of the corpus, the masks the same for all; minimal pairs
               with --pairs; fine-tuning sweeps with --glue
    report     tables and figures

    OUT/search/, OUT/final/      a --save-dir for each pretraining
    OUT/evaluation/              what was measured on each final encoder
    OUT/glue/                    prepared GLUE data, a fine-tuning sweep for each arm, what needs no encoder
    OUT/results/                 CSV files, report.md, figures: what `rt-plugin replicate-report` makes the report from

The same command goes on where an earlier one was stopped: finished runs stay, those under way continue from their last
checkpoint. A run that diverged is a row that says so and is not run again; one that broke off is tried again. Where the
machine is another one, --continue-from takes over what a copy of OUT/results says.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rt_plugin._location import USER_DIR
from rt_plugin.console import commands, requirements
from rt_plugin.console.locks import only_user_of
from rt_plugin.console.processes import usable_cores
from rt_plugin.console.tables import markdown_table
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import data_folders
from rt_plugin.pretrain.launch import check_data
from rt_plugin.pretrain.recipes import RECIPES
from rt_plugin.replicate import evaluation, report
from rt_plugin.replicate.carried import carry
from rt_plugin.replicate.plan import SCALES, Plan, Run, load_plan
from rt_plugin.replicate.pool import Job, Pool
from rt_plugin.replicate.results import PLAN_FILE, read_results_plan, results_folder, write_runs
from rt_plugin.replicate.runs import adopt, check_folder, end_run, launch_command, read_curve, read_ending
from rt_plugin.replicate.search import at_edge, best_rates, has_ended, learning_rates, search_losses

STAGES = ("search", "final", "time", "evaluate", "report")
_DEFAULT_NICE = 10
_OF_TRAINING = ("recipe", "launcher", "options", "arms")  # parts of a plan that runs are trained by


class Replication:
    """A plan at work in a folder.

    Args:
        plan: the plan.
        out: the folder.
        data: the corpus, a folder or several joined by colons.
        pool: runs programs.
        keep_going: begin further runs after one that broke off.
    """

    def __init__(self, plan: Plan, out: Path, data: str, pool: Pool, keep_going: bool = False):
        self.plan, self.out, self.data, self.pool = plan, out, data, pool
        self.keep_going = keep_going
        self._unigram_bits: float | None = None

    def search(self) -> None:
        """Run the search, and report the best rates and those at an edge.

        Raises:
            UserError: a run broke off, or a folder holds another training.
        """
        while True:
            rates = learning_rates(self.plan, self.out)
            self._train(self.plan.search_runs(rates))
            if learning_rates(self.plan, self.out) == rates:
                break
            commands.report("an arm's best rate is at the edge of the grid: it is extended for all arms")
        losses = search_losses(self.plan, rates, self.out)
        for arm, rate in best_rates(losses).items():
            commands.report(f"{arm}: best learning rate {rate:g}, {losses[arm][rate]:.3f} bits")
        for arm in losses.keys() - best_rates(losses).keys():
            commands.report(f"WARNING: {arm}: diverged at every learning rate; it has no final runs")
        for arm, rate in at_edge(losses).items():
            commands.report(
                f"WARNING: {arm}: its best rate {rate:g} is at the EDGE of the grid, and the plan extends it no "
                "further; the optimum may lie beyond"
            )

    def final(self) -> None:
        """Train every arm at its best rate.

        Raises:
            UserError: the search has not ended, a run broke off, or a folder holds another training.
        """
        self._train(self.final_runs())

    def final_runs(self) -> list[Run]:
        """The final runs.

        Raises:
            UserError: the search, from which they follow, has not ended.
        """
        rates = learning_rates(self.plan, self.out)
        left = [run for run in self.plan.search_runs(rates) if not has_ended(run, self.out)]
        if left:
            raise UserError(
                f"{self.out}: {len(left)} runs of the search are left, {left[0].name} first: --stage search"
            )
        return self.plan.final_runs(best_rates(search_losses(self.plan, rates, self.out)))

    def time(self) -> None:
        """Time an update of every arm, unless that was done.

        Raises:
            UserError: the measurement broke off.
        """
        evaluation.time_updates(self.plan, self.data, self.out, self.pool)

    def evaluate(self, pairs: Sequence[Path], glue: Path | None) -> None:
        """Measure the final encoders that there are: on the test split; where given, on minimal pairs and GLUE.

        Raises:
            UserError: no final run has ended, or a measurement broke off.
        """
        runs = self.final_runs()
        if not runs:
            commands.report("no final runs, by the plan or as all arms diverged: nothing is evaluated")
            return
        ended = [run for run in runs if has_ended(run, self.out)]
        if not ended:
            raise UserError(f"{self.out}: no final run has ended, {runs[0].name} is the first; --stage final")
        if len(ended) < len(runs):
            commands.report(f"{len(runs) - len(ended)} of {len(runs)} final runs are left; the others are measured")
        good = [run for run in ended if not read_ending(run, self.out).failed]
        evaluation.held_out_losses(self.plan, good, self.data, self.out, self.pool)
        self.write()
        if pairs:
            evaluation.minimal_pairs(self.plan, good, pairs, self.out, self.pool)
        if glue is not None:
            evaluation.finetune(self.plan, good, glue, self.out, self.pool)

    def report(self) -> None:
        """Write tables and figures of what there is.

        Raises:
            UserError: nothing is there.
        """
        self.settle(self.all_runs())
        self.write()
        report.write_report(results_folder(self.out), results_folder(self.out))
        print(results_folder(self.out) / report.REPORT_FILE)

    def write(self) -> None:
        """Write the CSV files of all runs that have begun."""
        write_runs(self.plan, self.all_runs(), self.out, self.unigram_bits())

    def all_runs(self) -> list[Run]:
        """The runs of the plan as far as they are known: the final ones of the arms that have a best rate."""
        rates = learning_rates(self.plan, self.out)
        best = best_rates(search_losses(self.plan, rates, self.out))
        return [*self.plan.search_runs(rates), *self.plan.final_runs(best)]

    def unigram_bits(self) -> float:
        """Of the validation text: what a run that learned anything must be below."""
        if self._unigram_bits is None:
            from rt_plugin.replicate.losses import unigram_loss  # torch and fairseq take seconds to import

            self._unigram_bits = unigram_loss(self.data)
        return self._unigram_bits

    def settle(self, runs: Sequence[Run]) -> None:
        """Write down the ending of runs that ended without this program: adopted ones, or when it was killed."""
        for run in runs:
            check_folder(self.plan, run, Path(data_folders(self.data)[0]), self.out)
            curve = read_curve(run.folder(self.out))
            if read_ending(run, self.out) is None and curve and curve[-1].update >= run.updates:
                end_run(run, self.out, status=0)

    def _train(self, runs: Sequence[Run]) -> None:
        self.settle(runs)
        left = {run.name: run for run in runs if not has_ended(run, self.out)}
        commands.report(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before")
        self.write()
        broken: list[str] = []
        jobs = [
            Job(
                name,
                launch_command(self.plan, run, self.data, self.out),
                run.folder(self.out).with_name(f"{name}.log"),
            )
            for name, run in left.items()
        ]
        for number, ended in enumerate(self.pool.run(jobs, lambda: self.keep_going or not broken), start=1):
            run = left[ended.job.name]
            ending = end_run(run, self.out, ended.status, ended.last_line)
            self.write()
            curve = read_curve(run.folder(self.out))
            loss = f"{curve[-1].loss:.3f} bits" if curve else "no validation"
            commands.report(
                f"[{number}/{len(jobs)}] {run.stage} {run.name}: {loss}"
                + (f", {ending.failed.upper()}: {ending.why}" if ending.failed else "")
            )
            if not has_ended(run, self.out):
                broken.append(f"{ended.job.log}: {ending.why}")
        if broken:
            raise UserError(f"{len(broken)} runs broke off; the same command tries them again; see {broken[0]}")


def describe(plan: Plan) -> str:
    """All runs of a plan with what they take, by the plan's own figure."""
    batch = RECIPES[plan.recipe].batch_tokens
    if "--batch-tokens" in plan.launcher:
        batch = int(plan.launcher[plan.launcher.index("--batch-tokens") + 1])
    cost, rows, total = plan.source["cost"], [], 0.0
    runs = plan.search_runs(plan.search.learning_rates) + plan.final_runs(dict.fromkeys(plan.arms, float("nan")))
    for run in runs:
        hours = run.updates * batch / cost["tokens_per_second"] / 3600
        total += hours
        rate = f"{run.learning_rate:g}" if run.stage == "search" else "the best"
        options = " ".join([run.arm.model, *run.arm.options])
        tokens = f"{run.updates * batch / 1e6:,.1f}"
        rows.append(
            [run.stage, run.arm.name, options, rate, str(run.seed), f"{run.updates:,}", tokens, f"{hours:,.2f}"]
        )
    unit = cost["unit"]
    headings = ["stage", "arm", "model", "learning rate", "seed", "updates", "M tokens", f"{unit}-hours"]
    lines = [
        f"{plan.scale}: {plan.source['about']}",
        markdown_table(headings, rows),
        f"{len(runs)} pretrainings, about {total:,.1f} {unit}-hours ({cost['source']}); each rate that extends the "
        f"grid adds {len(plan.search.arms) * len(plan.search.seeds)}",
    ]
    if f := plan.finetuning:
        names = ", ".join(f.variants)
        lines.append(
            f"with --glue: {f.runs * len(f.variants)} fine-tunings, {f.runs} for each of {names}; not in these hours"
        )
    return "\n\n".join(lines)


def refuse_other_plan(plan: Plan, results: Path, remedy: str, parts: Sequence[str] = _OF_TRAINING) -> None:
    """Refuse a folder of results whose runs were trained otherwise; other rates, seeds and comparisons are welcome.

    Args:
        results: the folder.
        remedy: what to do, for the error.
        parts: of the plan, that must be the same.

    Raises:
        UserError: it is one.
    """
    before = read_results_plan(results)
    for name in parts:
        then, now = getattr(before, name), getattr(plan, name)
        if name == "arms":  # further ones are welcome
            now = {arm: now.get(arm) for arm in then}
        if then != now:
            raise UserError(f"{results}: was begun with a plan of another {name!r}; {remedy}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("replicate", __doc__, usage="%(prog)s SCALE --out FOLDER --data FOLDER [options]")
    parser.add_argument("scale", metavar="SCALE", help=f"{', '.join(SCALES)}, or the path of a plan")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for everything; see above")
    parser.add_argument("--data", metavar="FOLDER", help="a corpus of rt-plugin prepare-corpus with --valid and --test")
    parser.add_argument("--stage", choices=STAGES, help="only this one (default: all, one after the other)")
    parser.add_argument("--print-plan", action="store_true", help="print all runs with what they take; start nothing")
    parser.add_argument("--jobs", type=commands.positive, default=1, metavar="N", help="at a time (default: 1)")
    parser.add_argument(
        "--threads", type=commands.positive, metavar="N", help="of the CPU for each (default: cores / jobs)"
    )
    parser.add_argument("--nice", type=int, default=_DEFAULT_NICE, metavar="N", help="niceness (default: %(default)s)")
    parser.add_argument("--keep-going", action="store_true", help="begin further runs after one that broke off")
    parser.add_argument(
        "--adopt",
        nargs="+",
        type=Path,
        default=(),
        metavar="FOLDER",
        help="--save-dirs of rt-plugin pretrain, begun or finished elsewhere: each is linked to the run that it is of",
    )
    parser.add_argument(
        "--continue-from",
        type=Path,
        metavar="FOLDER",
        help="OUT/results of the same plan, brought here from another machine: the runs in it that have ended, and "
        "that OUT does not have, are taken over and not trained again",
    )
    parser.add_argument(
        "--pairs", nargs="+", type=Path, default=(), metavar="DATA", help="as for rt-plugin minimal-pairs, one or more"
    )
    parser.add_argument("--glue", type=Path, metavar="FOLDER", help="official GLUE files, as for prepare-glue")
    args = parser.parse_args(argv)
    args.threads = args.threads or max(1, usable_cores() // args.jobs)
    return args


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: an option, the plan or the data are wrong, or runs broke off.
    """
    plan = load_plan(args.scale)
    if args.print_plan:
        print(describe(plan))
        return
    for name in ("out", "data"):
        if getattr(args, name) is None:
            raise UserError(
                f"--{name} is missing: the folder {'for the results' if name == 'out' else 'of the corpus'}"
            )
    requirements.require("fairseq")  # the report, too, needs the loss of the unigram model
    check_data(args.data)
    stages = [args.stage] if args.stage else STAGES
    if "evaluate" in stages and plan.final.arms:
        evaluation.check_inputs(plan, args.data, args.pairs, args.glue)
    package = os.pathsep.join(filter(None, [str(USER_DIR.parent), os.environ.get("PYTHONPATH")]))
    pool = Pool(args.jobs, {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": package}, args.nice)
    replication = Replication(plan, args.out, args.data, pool, args.keep_going)
    with only_user_of(args.out, "another replication is at work there; wait for it, or choose another --out"):
        if (results_folder(args.out) / PLAN_FILE).is_file():
            refuse_other_plan(plan, results_folder(args.out), "choose another --out")
        if args.continue_from:
            refuse_other_plan(plan, args.continue_from, "give its plan, or other results", (*_OF_TRAINING, "mask_seed"))
            taken = carry(plan, replication.all_runs, args.continue_from, args.out)
            commands.report(f"{args.continue_from}: {len(taken)} runs taken over")
        if args.adopt:
            for folder, found in adopt(plan, replication.all_runs(), args.adopt, args.out):
                commands.report(f"{folder}: adopted as {found.stage} {found.name}")
        work: dict[str, Callable[[], None]] = {
            "search": replication.search,
            "final": replication.final,
            "time": replication.time,
            "evaluate": lambda: replication.evaluate(args.pairs, args.glue),
            "report": replication.report,
        }
        for stage in stages:
            work[stage]()


def main(argv: Sequence[str] | None = None) -> int:
    """The command `replicate`; returns the exit status."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    return commands.run("replicate", lambda: run(args), "stopped; the same command goes on from here")
