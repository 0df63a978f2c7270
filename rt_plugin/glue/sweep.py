"""The runs of a sweep at work: some at a time, each forked from a process that has imported all that it needs."""

import contextlib
import json
import math
import multiprocessing
import multiprocessing.forkserver
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from rt_plugin.console import commands
from rt_plugin.console.files import last_line, replacing
from rt_plugin.console.progress import Progress
from rt_plugin.errors import UserError
from rt_plugin.glue.plan import PlannedRun
from rt_plugin.glue.record import COMMAND_FILE
from rt_plugin.glue.results import CSV_FILE, LOG_FILE, RESULT_FILE, read_dev_metrics, summarize, write_csv
from rt_plugin.glue.run import DIVERGED, train
from rt_plugin.model_folder.files import BEST_CHECKPOINT

_SECONDS_BETWEEN_LINES = 60.0  # of progress in a log
_SECONDS_BETWEEN_LOOKS = 5.0  # at what the runs have done
# besides fairseq and torch, what a run would import later: for the optimiser, for the text, for the metrics
_IMPORTED_BEFORE_FORKING = [
    *(train.__module__, "torch._dynamo", "sacremoses", "sentencepiece", "sklearn.metrics", "scipy.stats")
]

_NOT_WATCHED = 255  # multiprocessing's exit status of a process whose fork server is gone


class _Process(NamedTuple):
    """A run under way: its process, the GPU that it sees, and when it began."""

    run: PlannedRun
    process: multiprocessing.Process
    gpu: str | None
    began: float


class Sweep:
    """Runs what a plan says, some at a time.

    Args:
        model: columns of the CSV that say which model it is.
        out: the OUT folder.
        runs: see `plan`.
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
        runs: Sequence[PlannedRun],
        slots: Sequence[str | None],
        threads: int,
        keep: str = "best",
        keep_going: bool = False,
        report: Callable[[str], None] = commands.report,
    ):
        self.model = model
        self.out = out
        self.runs = runs
        self.threads = threads
        self.keep = keep
        self.keep_going = keep_going
        self.report = report
        self._free = list(slots)
        self._running: dict[int, _Process] = {}
        self._waiting = [run for run in runs if not (run.folder / RESULT_FILE).is_file()]
        self._broken: list[PlannedRun] = []
        self._work = self._work_left()
        self._progress = Progress("sweep", self._work, "rows", report, _SECONDS_BETWEEN_LINES)
        self._context = fork_server()

    def run(self) -> None:
        """Run what is not finished yet.

        Raises:
            UserError: runs broke off, no run has a score, or the process that they are forked from was killed.
        """
        self.report(f"{len(self.runs)} runs, {len(self.runs) - len(self._waiting)} of them finished before")
        self._write_csv()
        try:
            with self._progress:
                while self._running or self._may_begin():
                    while self._free and self._may_begin():
                        self._begin(self._waiting.pop(0))
                    self._wait()
        finally:
            for started in self._running.values():
                started.process.terminate()
                started.process.join()
        self._raise_what_went_wrong()

    def _raise_what_went_wrong(self) -> None:
        if self._broken:
            logs = ", ".join(str(run.folder / LOG_FILE) for run in self._broken)
            raise UserError(f"{len(self._broken)} runs broke off, {len(self._waiting)} were not begun; see {logs}")
        rows = [json.loads((run.folder / RESULT_FILE).read_text()) for run in self.runs]
        if all(math.isnan(row["best_score"]) for row in rows):
            raise UserError(
                f"no run has a score ({len(rows)} diverged before the first dev set, or were undefined on it; "
                f"{self.out / CSV_FILE} has them as failed); use a lower --lr, and another OUT folder"
            )

    def _may_begin(self) -> bool:
        return bool(self._waiting) and (self.keep_going or not self._broken)

    def _begin(self, run: PlannedRun) -> None:
        with replacing(run.folder / COMMAND_FILE) as file:
            file.write(f"{shlex.join(run.command)}\n".encode())
        gpu = self._free.pop(0)
        process = self._context.Process(target=train, args=(run.command, run.folder, self.threads, gpu))
        try:
            process.start()
        except (EOFError, OSError):
            raise _server_was_killed() from None
        self._running[process.sentinel] = _Process(run, process, gpu, time.monotonic())

    def _wait(self) -> None:
        for sentinel in wait(list(self._running), timeout=_SECONDS_BETWEEN_LOOKS):
            run, process, gpu, began = self._running.pop(sentinel)
            process.join()
            if process.exitcode == _NOT_WATCHED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)  # it runs on; Process.terminate thinks it has ended
                raise _server_was_killed()
            self._free.append(gpu)
            self._end(run, process.exitcode, time.monotonic() - began)
        runs = [started.run for started in self._running.values()]
        under_way = "; ".join(f"{run.name}: epoch {run.epochs_done():.1f}/{run.epochs}" for run in runs)
        self._progress.reach(self._work - self._work_left(), under_way)

    def _end(self, run: PlannedRun, status: int, seconds: float) -> None:
        if status not in (0, DIVERGED):
            self._broken.append(run)
            self.report(
                f"{run.name} broke off with status {status}: {last_line(run.folder / LOG_FILE, 'it said nothing')}"
            )
            return
        row = self._row(run, seconds, diverged=status == DIVERGED)
        with replacing(run.folder / RESULT_FILE) as file:
            file.write(json.dumps(row, indent=2).encode())
        self._write_csv()
        self._remove_checkpoints(run.folder)
        self._progress.reach(self._work - self._work_left())
        self.report(self._line(run, row, seconds, status == DIVERGED))

    def _line(self, run: PlannedRun, row: dict, seconds: float, diverged: bool) -> str:
        finished = len(self.runs) - len(self._waiting) - len(self._running) - len(self._broken)
        scored = f"score {row['best_score']:.4f} in epoch {row['best_epoch']} of {row['epochs']}"
        words = [
            f"{run.name}: {'no score' if math.isnan(row['best_score']) else scored}",
            "diverged" if diverged else "failed" if row["failed"] else "",
            f"{seconds:.0f} s",
            self._progress.time_left(),
        ]
        return f"[{finished}/{len(self.runs)}] {', '.join(filter(None, words))}"

    def _row(self, run: PlannedRun, seconds: float, diverged: bool) -> dict:
        row = {"task": run.task.name, "lr": run.lr, "seed": run.seed}
        entries = read_dev_metrics(run.folder)
        return {
            **self.model,
            **row,
            "seconds": round(seconds, 1),
            **summarize(run.task, entries, run.labels, diverged),
        }

    def _write_csv(self) -> None:
        """All finished runs of the OUT folder, also those of other tasks, learning rates and seeds."""
        rows = [json.loads(path.read_text()) for path in self.out.glob(f"*/lr*-seed*/{RESULT_FILE}")]
        write_csv(self.out / CSV_FILE, [{**self.model, **row} for row in rows])

    def _remove_checkpoints(self, folder: Path) -> None:
        for path in folder.glob("checkpoint*.pt") if self.keep != "all" else ():
            if self.keep == "none" or path.name != BEST_CHECKPOINT:
                path.unlink()

    def _work_left(self) -> float:
        """In rows: a run sees those of its train set once an epoch."""
        running = (started.run for started in self._running.values())
        return sum(run.work_left() for run in (*self._waiting, *running))


def _server_was_killed() -> UserError:
    return UserError(
        "the process that the runs are forked from was killed (is the memory full?); the same command goes on with "
        "the runs that are not finished"
    )


def fork_server() -> multiprocessing.context.BaseContext:
    """Start the process that the runs are forked from; it imports all that a run needs, and starts no threads.

    It sees no GPU, nor does a run that is given none: fairseq counts them while it is imported, for which CUDA may have
    to be initialised, and that is of no use to processes that are forked from there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_BEFORE_FORKING)
    before = dict(os.environ)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else importing numpy starts threads
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # fairseq imports pyarrow where it is there
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin slow down the runs beside them
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # before Python 3.12 the server has its own path
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context
