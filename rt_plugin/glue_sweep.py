"""Fine-tunes a pretrained model on GLUE: every task, learning rate and seed, one CSV row a run.

    OUT/results.csv                          see rt_plugin/glue_results.py; complete after every run
    OUT/<TASK>/lr<LR>-seed<SEED>/            a model folder: checkpoint, dictionary, tokenizer
        train.log, dev_metrics.jsonl         fairseq's log, which begins with the command; metrics in full precision
        result.json                          the row; a run that has one is not run again

Stopped or killed, the same command goes on: finished runs stay, a run that was under way continues from its last epoch.
The CSV then is the one of an undisturbed sweep, but for the seconds, which count the last attempt. The number of
--threads can change the last digits on a CPU: give it if --jobs may change in between.

The defaults are those of RoBERTa (Liu et al. 2019, arXiv 1907.11692, table 10: 10 epochs, batches of 32, 6 % warm-up,
linear decay, weight decay 0.1, Adam with 0.9, 0.98, 1e-6, no clipping; 5 seeds) for all tasks alike, with the learning
rates of the BERT miniatures (Turc et al. 2019, arXiv 1908.08962), which reach higher than RoBERTa's 1e-5, 2e-5, 3e-5
for large models. Batches hold rows of similar length, out of 50 random batches at a time: with random batches up to two
thirds of a batch of GLUE are padding. Options of fairseq-train after `--` replace any of them:
-- --weight-decay 0.01 --group-by-length 0.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import torch

from rt_plugin.tasks.glue_specs import TASKS, GlueTask

from . import commands, glue_cell, glue_results
from .checkpoint_options import model_options
from .errors import UserError
from .files import replacing
from .glue_data import find_task, read_glue_file

LEARNING_RATES = (3e-5, 5e-5, 1e-4, 3e-4)
SEEDS = (1, 2, 3, 4, 5)
EPOCHS = 10
BATCH_SIZE = 32
WARMUP_SHARE = 0.06
SORTED_BATCHES = 50
RESULT_FILE = "result.json"
COMMAND_FILE = "command.txt"
CSV_FILE = "results.csv"
KEEP = ("best", "all", "none")
_SECONDS_BETWEEN_PROGRESS = 60.0
# besides fairseq and torch, what a training would import later: torch._dynamo for the optimiser, two for the text
_IMPORTED_BEFORE_FORKING = [glue_cell.__name__, "torch._dynamo", "sacremoses", "sentencepiece"]


@dataclass(frozen=True)
class Cell:
    """One fine-tuning.

    Attributes:
        task, lr, seed: which one.
        folder: its --save-dir.
        command: fairseq-train and its arguments.
        epochs: that it shall run.
        rows: of the train set.
        labels: label name -> rows of the dev set.
    """

    task: GlueTask
    lr: float
    seed: int
    folder: Path
    command: list[str]
    epochs: int
    rows: int
    labels: dict[str, int]

    @property
    def name(self) -> str:
        return f"{self.task.name} lr {self.lr:g} seed {self.seed}"

    def work_left(self) -> int:
        """Rows that it has yet to see."""
        return self.rows * max(0, self.epochs - self.epochs_done())

    def epochs_done(self) -> int:
        return max((entry["epoch"] for entry in glue_results.read_dev_metrics(self.folder)), default=0)


def plan(args: argparse.Namespace) -> list[Cell]:
    """The cells of the command line, in the order of the CSV.

    Raises:
        UserError: data or checkpoint are missing, or a cell was begun with other options.
    """
    model = model_options(args.model / args.checkpoint)
    tasks = chosen_tasks(args.data, args.tasks)
    cells = [
        plan_cell(args, task, lr, seed, model)
        for task, lr, seed in itertools.product(tasks, sorted(set(args.lr)), sorted(set(args.seeds)))
    ]
    for cell in cells:
        _check_same_command(cell)
    return cells


def plan_cell(args: argparse.Namespace, task: GlueTask, lr: float, seed: int, model: list[str]) -> Cell:
    """One cell with its command; `model`: the options that name the architecture."""
    data = args.data / task.name
    folder = args.out / task.name / f"lr{lr:g}-seed{seed}"
    splits = read_glue_file(data)["splits"]
    rows = splits["train"]["rows"]
    command = [
        *("fairseq-train", str(data), "--user-dir", user_dir(), "--task", "rt_glue", "--criterion", "rt_glue", *model),
        *("--finetune-from-model", str(args.model / args.checkpoint), "--save-dir", str(folder), "--seed", str(seed)),
        *hyperparameters(lr, rows, args.epochs, args.batch_size),
        *("--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric"),
        *("--valid-subset", ",".join(split for split in splits if split.startswith("valid"))),
        *("--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "50", "--num-workers", "0"),
        *([] if args.gpus else ["--cpu"]),
        *args.fairseq_options,
    ]
    return Cell(task, lr, seed, folder, command, args.epochs, rows, splits["valid"]["labels"])


def chosen_tasks(data: Path, names: Sequence[str] | None) -> list[GlueTask]:
    """The named tasks, or all with a train and a dev set that DATA holds, in the order of the task table.

    Raises:
        UserError: DATA or the folder of a named task is missing, or no task is there.
    """
    wanted = [find_task(name) for name in names] if names else TASKS
    found = {task.name for task in wanted if _has_training_data(data / task.name)}
    if names and (missing := [task.name for task in wanted if task.name not in found]):
        raise UserError(
            f"{data / missing[0]}: no prepared train and dev set of {missing[0]} there; "
            "prepare them with scripts/prepare_glue.py"
        )
    if not found:
        raise UserError(f"{data}: no prepared task there; expected the OUT folder of scripts/prepare_glue.py")
    return [task for task in TASKS if task.name in found]


def _has_training_data(folder: Path) -> bool:
    prepared = read_glue_file(folder)
    return prepared is not None and {"train", "valid"} <= set(prepared.get("splits", ()))


def hyperparameters(lr: float, rows: int, epochs: int, batch_size: int) -> list[str]:
    """The options that the literature's recipe needs (see the head of this file)."""
    updates = -(-rows // batch_size) * epochs
    return [
        *("--lr", f"{lr:g}", "--batch-size", str(batch_size), "--required-batch-size-multiple", "1"),
        *("--group-by-length", str(SORTED_BATCHES * batch_size)),
        *("--max-epoch", str(epochs), "--lr-scheduler", "polynomial_decay"),
        *("--warmup-updates", str(round(WARMUP_SHARE * updates)), "--total-num-update", str(updates)),
        *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--adam-eps", "1e-6", "--weight-decay", "0.1"),
        *("--clip-norm", "0", "--dropout", "0.1", "--attention-dropout", "0.1"),
    ]


def user_dir() -> str:
    """The plugin's folder, as short as it can be written from here."""
    package = Path(__file__).parent
    with contextlib.suppress(ValueError):
        return str(package.relative_to(Path.cwd()))
    return str(package)


def _check_same_command(cell: Cell) -> None:
    path = cell.folder / COMMAND_FILE
    if not path.is_file() or path.read_text() == f"{shlex.join(cell.command)}\n":
        return
    before, now = _options(shlex.split(path.read_text())), _options(cell.command)
    raise UserError(
        f"{cell.folder}: was begun with {' '.join(sorted(before - now)) or 'fewer options'}, found now "
        f"{' '.join(sorted(now - before)) or 'fewer options'}; choose another OUT, or remove this folder"
    )


def _options(command: Sequence[str]) -> set[str]:
    """The options, each with what follows it."""
    return {f"{a} {b}" for a, b in itertools.pairwise([*command, ""]) if a.startswith("--")}


class Sweep:
    """Runs cells, some at a time.

    Args:
        name: of the model, for the CSV.
        out: the OUT folder.
        cells: see `plan`.
        slots: for each run that may be under way at a time, the GPU that CUDA shall see, or None for the CPU.
        threads: of the CPU, for each run.
        keep: which checkpoints of a finished run stay: "best", "all" or "none".
        keep_going: begin further runs after one that broke off with an error.
        report: takes lines of progress.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        cells: Sequence[Cell],
        slots: Sequence[str | None],
        threads: int,
        keep: str = "best",
        keep_going: bool = False,
        report: Callable[[str], None] = commands.report,
    ):
        self.name = name
        self.out = out
        self.cells = cells
        self.threads = threads
        self.keep = keep
        self.keep_going = keep_going
        self.report = report
        self._free = list(slots)
        self._running: dict[int, tuple[Cell, multiprocessing.Process, str | None, float]] = {}
        self._waiting = [cell for cell in cells if not (cell.folder / RESULT_FILE).is_file()]
        self._broken: list[Cell] = []
        self._work = self._work_left()
        self._began = time.monotonic()
        self._context = fork_server()

    def run(self) -> None:
        """Run what is not finished yet.

        Raises:
            UserError: runs broke off.
        """
        self.report(f"{len(self.cells)} runs, {len(self.cells) - len(self._waiting)} of them finished before")
        self._write_csv()
        try:
            while self._running or self._may_begin():
                while self._free and self._may_begin():
                    self._begin(self._waiting.pop(0))
                self._wait()
        finally:
            for _, process, _, _ in self._running.values():
                process.terminate()
                process.join()
        if self._broken:
            logs = ", ".join(str(cell.folder / glue_cell.LOG_FILE) for cell in self._broken)
            raise UserError(f"{len(self._broken)} runs broke off, {len(self._waiting)} were not begun; see {logs}")

    def _may_begin(self) -> bool:
        return bool(self._waiting) and (self.keep_going or not self._broken)

    def _begin(self, cell: Cell) -> None:
        with replacing(cell.folder / COMMAND_FILE) as file:
            file.write(f"{shlex.join(cell.command)}\n".encode())
        gpu = self._free.pop(0)
        process = self._context.Process(target=glue_cell.train, args=(cell.command, cell.folder, self.threads, gpu))
        process.start()
        self._running[process.sentinel] = (cell, process, gpu, time.monotonic())

    def _wait(self) -> None:
        ended = wait(list(self._running), timeout=_SECONDS_BETWEEN_PROGRESS)
        for sentinel in ended:
            cell, process, gpu, began = self._running.pop(sentinel)
            process.join()
            self._free.append(gpu)
            self._end(cell, process.exitcode, time.monotonic() - began)
        if not ended:
            under_way = (
                f"{cell.name}: epoch {cell.epochs_done()}/{cell.epochs}" for cell, *_ in self._running.values()
            )
            self.report(f"  {'; '.join(under_way)}{self._time_left()}")

    def _end(self, cell: Cell, status: int, seconds: float) -> None:
        if status not in (0, glue_cell.DIVERGED):
            self._broken.append(cell)
            self.report(f"{cell.name} broke off with status {status}: {_last_line(cell.folder / glue_cell.LOG_FILE)}")
            return
        row = self._row(cell, seconds, diverged=status == glue_cell.DIVERGED)
        with replacing(cell.folder / RESULT_FILE) as file:
            file.write(json.dumps(row, indent=2).encode())
        self._write_csv()
        self._remove_checkpoints(cell.folder)
        finished = len(self.cells) - len(self._waiting) - len(self._running) - len(self._broken)
        failed = ", failed" if row["failed"] else ""
        self.report(
            f"[{finished}/{len(self.cells)}] {cell.name}: score {row['best_score']:.4f} "
            f"in epoch {row['best_epoch']} of {row['epochs']}{failed}, {seconds:.0f} s{self._time_left()}"
        )

    def _row(self, cell: Cell, seconds: float, diverged: bool) -> dict:
        row = {"model": self.name, "task": cell.task.name, "lr": cell.lr, "seed": cell.seed}
        entries = glue_results.read_dev_metrics(cell.folder)
        return {
            **row,
            "seconds": round(seconds, 1),
            **glue_results.summarize(cell.task, entries, cell.labels, diverged),
        }

    def _write_csv(self) -> None:
        """All finished runs of the OUT folder, also those of other tasks, learning rates and seeds."""
        rows = [json.loads(path.read_text()) for path in self.out.glob(f"*/lr*-seed*/{RESULT_FILE}")]
        glue_results.write_csv(self.out / CSV_FILE, [{**row, "model": self.name} for row in rows])

    def _remove_checkpoints(self, folder: Path) -> None:
        for path in folder.glob("checkpoint*.pt") if self.keep != "all" else ():
            if self.keep == "none" or path.name != "checkpoint_best.pt":
                path.unlink()

    def _time_left(self) -> str:
        left = self._work_left()
        done = self._work - left
        if done <= 0 or left <= 0:
            return ""
        return f", about {(time.monotonic() - self._began) * left / done / 60:.1f} minutes left"

    def _work_left(self) -> int:
        return sum(cell.work_left() for cell in (*self._waiting, *(cell for cell, *_ in self._running.values())))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def fork_server() -> multiprocessing.context.BaseContext:
    """Start the process that the cells are forked from; it imports all that a training needs, and starts no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_BEFORE_FORKING)
    before = dict(os.environ)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else importing numpy starts threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin slow down the trainings beside them
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # before Python 3.12 the server has its own path
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    own = list(sys.argv[1:] if argv is None else argv)
    fairseq_options = []
    if "--" in own:
        fairseq_options = own[own.index("--") + 1 :]
        own = own[: own.index("--")]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s DATA OUT --model FOLDER [options] [-- options of fairseq-train]",
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="the OUT folder of prepare_glue.py")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the results of this model")
    parser.add_argument("--model", required=True, metavar="FOLDER", type=Path, help="the pretrained model's folder")
    parser.add_argument(
        "--checkpoint", default="checkpoint_best.pt", metavar="FILE", help="in it (default: %(default)s)"
    )
    parser.add_argument("--name", help="the model's name in the CSV (default: its architecture)")
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
    args.threads = args.threads or max(1, len(os.sched_getaffinity(0)) // args.jobs)
    return args


def visible_gpus() -> list[str]:
    """The GPUs that CUDA sees, by the names that CUDA_VISIBLE_DEVICES takes."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",") if names else [str(i) for i in range(torch.cuda.device_count())]


def sweep(args: argparse.Namespace) -> None:
    """Run what the command line asks for.

    Raises:
        UserError: see `plan` and `Sweep.run`; or another sweep is at work in OUT.
    """
    cells = plan(args)
    slots = [args.gpus[i % len(args.gpus)] if args.gpus else None for i in range(args.jobs)]
    name = args.name or model_options(args.model / args.checkpoint)[1]
    with _alone_in(args.out):
        Sweep(name, args.out, cells, slots, args.threads, args.keep, args.keep_going).run()
    print(args.out / CSV_FILE)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another sweep is at work there; wait for it, or choose another OUT") from None
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("finetune_glue.py", lambda: sweep(args), "stopped; the same command goes on from here")
