"""Programs side by side: so many at a time, at low priority, ended together with this one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rt_plugin.console.files import appending, last_line

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_END = 30


@dataclass(frozen=True)
class Job:
    """A program, and the file that what it says is appended to."""

    name: str
    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Ended:
    """A job that has ended: its exit status, and the last line that it said."""

    job: Job
    status: int
    last_line: str


class Pool:
    """Runs jobs.

    Args:
        slots: how many at a time.
        environment: variables for all of them, besides those of this process.
        nice: added to their niceness; 0: as this process.
    """

    def __init__(self, slots: int, environment: Mapping[str, str], nice: int = 0):
        self.slots = slots
        self.environment = {**os.environ, **environment}
        self.nice = nice
        self._prefix = ["nice", "-n", str(nice)] if nice and shutil.which("nice") else []
        self._running: dict[subprocess.Popen, Job] = {}

    def run(self, jobs: Sequence[Job], go_on: Callable[[], bool] = lambda: True) -> Iterator[Ended]:
        """Run jobs in order and yield each as it ends; further ones are begun while `go_on()`.

        Left early, by an exception too, it stops those under way and waits until they have ended.
        """
        waiting = list(jobs)
        try:
            while self._running or (waiting and go_on()):
                while waiting and len(self._running) < self.slots and go_on():
                    self._start(waiting.pop(0))
                yield from self._ended()
        finally:
            self._stop()

    def _start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with appending(job.log) as log:
            process = subprocess.Popen(
                [*self._prefix, *job.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # Ctrl-C in a terminal reaches them through `_stop`, once
            )
        self._running[process] = job

    def _ended(self) -> list[Ended]:
        while not (over := [process for process in self._running if process.poll() is not None]):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        jobs = [(process.returncode, self._running.pop(process)) for process in over]
        return [Ended(job, status, last_line(job.log, "it said nothing")) for status, job in jobs]

    def _stop(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def verb(name: str) -> list[str]:
    """The program `rt-plugin NAME`."""
    return [sys.executable, "-m", "rt_plugin", name]
