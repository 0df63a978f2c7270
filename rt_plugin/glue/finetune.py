"""Fine-tunes a pretrained model on GLUE: every task, learning rate and seed, one CSV row a run.

    OUT/results.csv                          see rt_plugin/glue_results.py; complete after every run
    OUT/sweep.json                           what all runs have in common; a command that differs from it is refused
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
thirds of a batch of GLUE are padding. Options of fairseq-train after `--` replace these: -- --weight-decay 0.01
--group-by-length 0. Not those that this command has an option for, nor those that would change the number of updates,
from which the learning rate's schedule is worked out (--update-freq, --max-tokens and the like).
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

from rt_plugin._location import USER_DIR
from rt_plugin.console import commands
from rt_plugin.console.files import replacing, sha256
from rt_plugin.errors import UserError
from rt_plugin.glue import results as glue_results
from rt_plugin.glue import run as glue_cell
from rt_plugin.glue.prepare import find_task, read_glue_file
from rt_plugin.glue.specs import TASKS, GlueTask
from rt_plugin.model_folder.checkpoint import model_options
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import DICTIONARY_FILE, GLUE_FILE, TOKENIZER_FILE

LEARNING_RATES = (3e-5, 5e-5, 1e-4, 3e-4)
SEEDS = (1, 2, 3, 4, 5)
EPOCHS = 10
BATCH_SIZE = 32
WARMUP_SHARE = 0.06
SORTED_BATCHES = 50
RESULT_FILE = "result.json"
COMMAND_FILE = "command.txt"
CSV_FILE = "results.csv"
SWEEP_FILE = "sweep.json"
KEEP = ("best", "all", "none")
_CHECKSUM_DIGITS = 16
_SECONDS_BETWEEN_PROGRESS = 60.0
# options of fairseq-train that this command works out -> what sets them; None: nothing does
_WORKED_OUT = {
    "--batch-size": "--batch-size",
    "--max-sentences": "--batch-size",
    "--max-epoch": "--epochs",
    "--max-update": "--epochs",
    "--lr": "--lr",
    "--seed": "--seeds",
    "--save-dir": "OUT",
    "--finetune-from-model": "--model",
    "--update-freq": None,
    "--max-tokens": None,
    "--total-num-update": None,
}
# in which runs of one sweep differ, and between CPU and GPU
_OF_A_RUN = ("--lr", "--seed", "--save-dir", "--warmup-updates", "--total-num-update", "--valid-subset", "--cpu")
_FREE = ("--save-dir", "--cpu")
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
        UserError: data or checkpoint are missing or do not belong together, or an option cannot stand after `--`.
    """
    refuse_worked_out(args.fairseq_options)
    model = model_options(args.model / args.checkpoint)
    tasks = chosen_tasks(args.data, args.tasks)
    for task in tasks:
        check_tokenizer(args.data / task.name, args.model)
    return [
        plan_cell(args, task, lr, seed, model)
        for task, lr, seed in itertools.product(tasks, sorted(set(args.lr)), sorted(set(args.seeds)))
    ]


def refuse_worked_out(fairseq_options: Sequence[str]) -> None:
    """Refuse options, or abbreviations of them, that would contradict the schedule or the record of the sweep.

    Raises:
        UserError: there is one.
    """
    for word in fairseq_options:
        option = word.split("=")[0]
        found = next((name for name in _WORKED_OUT if option.startswith("--") and name.startswith(option)), None)
        if found is None:
            continue
        if own := _WORKED_OUT[found]:
            raise UserError(f"{option} after --: give {own} before -- instead")
        raise UserError(
            f"{option} after --: the number of updates is worked out from --epochs and --batch-size, and the learning "
            "rate's schedule from it; leave it out"
        )


def check_tokenizer(data: Path, model: Path) -> None:
    """Refuse a prepared task whose token ids mean other pieces than the model's.

    Raises:
        UserError: it is one.
    """
    pairs = {
        DICTIONARY_FILE: (data / "input0" / DICTIONARY_FILE, lambda path: load_dictionary(path).symbols),
        TOKENIZER_FILE: (data / TOKENIZER_FILE, Path.read_bytes),
    }
    for name, (there, read) in pairs.items():
        if there.is_file() and (model / name).is_file() and read(there) != read(model / name):
            raise UserError(
                f"{data}: was prepared with another {name} than that in {model}, so its token ids mean other pieces; "
                f"prepare it again, by scripts/prepare_glue.py with --model {model}"
            )


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
    package = USER_DIR
    with contextlib.suppress(ValueError):
        return str(package.relative_to(Path.cwd()))
    return str(package)


def describe_sweep(args: argparse.Namespace, cells: Sequence[Cell]) -> dict[str, str | int]:
    """What all runs of an OUT folder have in common: name of a property -> its value.

    Raises:
        UserError: a file cannot be read.
    """
    checkpoint = args.model / args.checkpoint
    folders = {cell.task.name: args.data / cell.task.name for cell in cells}
    return {
        "name": args.name or checkpoint.parent.resolve().name,
        "checkpoint": str(checkpoint),
        "checkpoint sha256": checksum(checkpoint),
        "epochs": args.epochs,
        "batch size": args.batch_size,
        "fairseq options": shlex.join(args.fairseq_options) or "none",
        **{
            f"{task} data sha256": checksum(folder / GLUE_FILE, folder / "input0" / DICTIONARY_FILE)
            for task, folder in folders.items()
        },
    }


def checksum(*paths: Path) -> str:
    """The first digits of the SHA-256 of files, one after the other.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        return sha256(*paths)[:_CHECKSUM_DIGITS]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def record_sweep(out: Path, description: dict[str, str | int], cells: Sequence[Cell]) -> None:
    """Write sweep.json, or add further tasks to it.

    Raises:
        UserError: the folder holds another sweep, by its sweep.json, or by its runs (earlier versions wrote no such
            file).
    """
    path = out / SWEEP_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected what finetune_glue.py wrote; remove the file") from None
    different = [name for name, value in description.items() if before.get(name, value) != value]
    if different:
        begun, found = (", ".join(f"{name} {d[name]}" for name in different) for d in (before, description))
        raise UserError(f"{out}: was begun with {begun}, found now {found}; choose another OUT folder")
    _check_runs(out, cells)
    with replacing(path) as file:
        file.write(json.dumps({**before, **description}, indent=2).encode())


def _check_runs(out: Path, cells: Sequence[Cell]) -> None:
    planned = {cell.folder: cell.command for cell in cells}
    for path in sorted(out.glob(f"*/lr*-seed*/{COMMAND_FILE}")):
        free = _FREE if path.parent in planned else _OF_A_RUN
        before = _options(shlex.split(path.read_text()), free)
        now = _options(planned.get(path.parent, cells[0].command), free)
        if before != now:
            raise UserError(
                f"{path.parent}: was begun with {' '.join(sorted(before - now)) or 'fewer options'}, found now "
                f"{' '.join(sorted(now - before)) or 'fewer options'}; choose another OUT folder"
            )


def _options(command: Sequence[str], left_out: Sequence[str]) -> set[str]:
    """The options, each with its value."""
    pairs = itertools.pairwise([*command, "--"])
    return {a if b.startswith("--") else f"{a} {b}" for a, b in pairs if a.startswith("--") and a not in left_out}


class Sweep:
    """Runs cells, some at a time.

    Args:
        model: columns of the CSV that say which model it is.
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
        model: dict[str, str],
        out: Path,
        cells: Sequence[Cell],
        slots: Sequence[str | None],
        threads: int,
        keep: str = "best",
        keep_going: bool = False,
        report: Callable[[str], None] = commands.report,
    ):
        self.model = model
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
        row = {"task": cell.task.name, "lr": cell.lr, "seed": cell.seed}
        entries = glue_results.read_dev_metrics(cell.folder)
        return {
            **self.model,
            **row,
            "seconds": round(seconds, 1),
            **glue_results.summarize(cell.task, entries, cell.labels, diverged),
        }

    def _write_csv(self) -> None:
        """All finished runs of the OUT folder, also those of other tasks, learning rates and seeds."""
        rows = [json.loads(path.read_text()) for path in self.out.glob(f"*/lr*-seed*/{RESULT_FILE}")]
        glue_results.write_csv(self.out / CSV_FILE, [{**row, **self.model} for row in rows])

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
    parser = commands.parser(
        "finetune-glue",
        __doc__,
        usage="%(prog)s DATA OUT --model FOLDER [options] [-- options of fairseq-train]",
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="the OUT folder of prepare_glue.py")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the results of this model")
    parser.add_argument("--model", required=True, metavar="FOLDER", type=Path, help="the pretrained model's folder")
    parser.add_argument(
        "--checkpoint", default="checkpoint_best.pt", metavar="FILE", help="in it (default: %(default)s)"
    )
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
    args.threads = args.threads or max(1, len(os.sched_getaffinity(0)) // args.jobs)
    return args


def visible_gpus() -> list[str]:
    """The GPUs that CUDA sees, by the names that CUDA_VISIBLE_DEVICES takes."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",") if names else [str(i) for i in range(torch.cuda.device_count())]


def sweep(args: argparse.Namespace) -> None:
    """Run what the command line asks for.

    Raises:
        UserError: see `plan`, `record_sweep` and `Sweep.run`; or OUT is no folder, or another sweep is at work there.
    """
    cells = plan(args)
    slots = [args.gpus[i % len(args.gpus)] if args.gpus else None for i in range(args.jobs)]
    with _alone_in(args.out):
        description = describe_sweep(args, cells)
        record_sweep(args.out, description, cells)
        model = {"model": description["name"], "checkpoint": description["checkpoint sha256"]}
        Sweep(model, args.out, cells, slots, args.threads, args.keep, args.keep_going).run()
    print(args.out / CSV_FILE)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give a folder as OUT") from None
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another sweep is at work there; wait for it, or choose another OUT") from None
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("finetune-glue", lambda: sweep(args), "stopped; the same command goes on from here")
