"""The runs of a sweep at work: some at a time, each forked from a process that has imported all that it needs."""

import json
import multiprocessing
import multiprocessing.forkserver
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from rt_plugin.console import commands
from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.glue.plan import PlannedRun
from rt_plugin.glue.record import COMMAND_FILE
from rt_plugin.glue.results import CSV_FILE, RESULT_FILE, read_dev_metrics, summarize, write_csv
from rt_plugin.glue.run import DIVERGED, LOG_FILE, train
from rt_plugin.model_folder.files import BEST_CHECKPOINT

_SECONDS_BETWEEN_PROGRESS = 60.0
# besides fairseq and torch, what a training would import later: torch._dynamo for the optimiser, two for the text
_IMPORTED_BEFORE_FORKING = [train.__module__, "torch._dynamo", "sacremoses", "sentencepiece"]


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
        self._running: dict[int, tuple[PlannedRun, multiprocessing.Process, str | None, float]] = {}
        self._waiting = [run for run in runs if not (run.folder / RESULT_FILE).is_file()]
        self._broken: list[PlannedRun] = []
        self._work = self._work_left()
        self._began = time.monotonic()
        self._context = fork_server()

    def run(self) -> None:
        """Run what is not finished yet.

        Raises:
            UserError: runs broke off.
        """
        self.report(f"{len(self.runs)} runs, {len(self.runs) - len(self._waiting)} of them finished before")
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
            logs = ", ".join(str(run.folder / LOG_FILE) for run in self._broken)
            raise UserError(f"{len(self._broken)} runs broke off, {len(self._waiting)} were not begun; see {logs}")

    def _may_begin(self) -> bool:
        return bool(self._waiting) and (self.keep_going or not self._broken)

    def _begin(self, run: PlannedRun) -> None:
        with replacing(run.folder / COMMAND_FILE) as file:
            file.write(f"{shlex.join(run.command)}\n".encode())
        gpu = self._free.pop(0)
        process = self._context.Process(target=train, args=(run.command, run.folder, self.threads, gpu))
        process.start()
        self._running[process.sentinel] = (run, process, gpu, time.monotonic())

    def _wait(self) -> None:
        ended = wait(list(self._running), timeout=_SECONDS_BETWEEN_PROGRESS)
        for sentinel in ended:
            run, process, gpu, began = self._running.pop(sentinel)
            process.join()
            self._free.append(gpu)
            self._end(run, process.exitcode, time.monotonic() - began)
        if not ended:
            under_way = (f"{run.name}: epoch {run.epochs_done()}/{run.epochs}" for run, *_ in self._running.values())
            self.report(f"  {'; '.join(under_way)}{self._time_left()}")

    def _end(self, run: PlannedRun, status: int, seconds: float) -> None:
        if status not in (0, DIVERGED):
            self._broken.append(run)
            self.report(f"{run.name} broke off with status {status}: {_last_line(run.folder / LOG_FILE)}")
            return
        row = self._row(run, seconds, diverged=status == DIVERGED)
        with replacing(run.folder / RESULT_FILE) as file:
            file.write(json.dumps(row, indent=2).encode())
        self._write_csv()
        self._remove_checkpoints(run.folder)
        finished = len(self.runs) - len(self._waiting) - len(self._running) - len(self._broken)
        failed = ", failed" if row["failed"] else ""
        self.report(
            f"[{finished}/{len(self.runs)}] {run.name}: score {row['best_score']:.4f} "
            f"in epoch {row['best_epoch']} of {row['epochs']}{failed}, {seconds:.0f} s{self._time_left()}"
        )

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
        write_csv(self.out / CSV_FILE, [{**row, **self.model} for row in rows])

    def _remove_checkpoints(self, folder: Path) -> None:
        for path in folder.glob("checkpoint*.pt") if self.keep != "all" else ():
            if self.keep == "none" or path.name != BEST_CHECKPOINT:
                path.unlink()

    def _time_left(self) -> str:
        left = self._work_left()
        done = self._work - left
        if done <= 0 or left <= 0:
            return ""
        return f", about {(time.monotonic() - self._began) * left / done / 60:.1f} minutes left"

    def _work_left(self) -> int:
        return sum(run.work_left() for run in (*self._waiting, *(run for run, *_ in self._running.values())))


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def fork_server() -> multiprocessing.context.BaseContext:
    """Start the process that the runs are forked from; it imports all that a training needs, and starts no threads."""
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
