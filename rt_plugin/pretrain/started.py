"""The training that the launcher starts: its records as they come, the signals that it is told, its end."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rt_plugin._location import USER_DIR
from rt_plugin.console import commands
from rt_plugin.console.files import continue_log, last_line
from rt_plugin.console.locks import note_holder
from rt_plugin.console.processes import children_of, signalled_with_parent
from rt_plugin.errors import UserError
from rt_plugin.pretrain.log import read_log

_AGAIN = "the same command resumes"
# as repairs/stopping.py logs it
_STOPPED = re.compile(rf"\| (stopped .* after update \d+, .*); ({_AGAIN}|leave .* out to resume)")
_ERROR_PREFIXES = ("rt_plugin: error: ", "fairseq-train: error: ", "process.py: error: ")


class StoppedError(Exception):
    """A training has ended because a signal told it to; says when, and what is saved.

    Attributes:
        then: how to go on.
    """

    def __init__(self, message: str, then: str):
        super().__init__(message)
        self.then = then


def training_records(command: list[str], log: Path, lock: int | None = None) -> Iterator[dict]:
    """Run a training command; yields its records as they come, and keeps all it says in `log`.

    Raises:
        UserError: it failed.
        StoppedError: it was told to stop.
    """
    error, stop, begun = None, None, False
    with continue_log(log, keep_rest=True) as file, _started(command, lock) as process:
        for line in process.stdout:
            file.write(line)
            file.flush()
            error = next((line.partition(p)[2].strip() for p in _ERROR_PREFIXES if p in line), error)
            stop = _STOPPED.search(line) or stop
            records = read_log([line])
            begun = begun or bool(records)
            yield from records
        status = process.wait()
    if status and not error and (stop or (process.was_told and not begun)):
        raise StoppedError(*(stop.groups() if stop else ("stopped before an update was logged", _AGAIN)))
    if status:
        where = f"; all it said is in {log}" if lock is not None else ""  # a dry run's is deleted
        raise UserError(error or f"{command[0]} ended with status {status}: {_last_words(log)}{where}")


def _last_words(log: Path) -> str:
    """The last line that speaks of an error, or else the last one."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    error = next((line.strip() for line in reversed(lines) if "Error" in line), None)
    return (error or last_line(log, "it said nothing"))[:300]


class _Process(subprocess.Popen):
    """A training, or torchrun with one. SIGTERM and SIGUSR1 to this program are told to it, within `passing_on`."""

    was_told = False

    @contextmanager
    def passing_on(self) -> Iterator[None]:
        handlers = {number: signal.signal(number, self._tell) for number in commands.STOPPING_SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _tell(self, number: int, frame) -> None:
        self.was_told = True
        trainings = children_of(self.pid) if Path(self.args[0]).name == "torchrun" else []
        for training in trainings or [self.pid]:  # torchrun itself would give them 30 seconds and no more
            with suppress(ProcessLookupError):
                os.kill(training, signal.SIGTERM)


@contextmanager
def _started(command: list[str], lock: int | None) -> Iterator[_Process]:
    """The running command, which ends with this program, with all its processes."""
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise UserError(f"{command[0]} is not installed beside {sys.executable}; install fairseq (docs/install.md)")
    package = str(USER_DIR.parent)  # a checkout that is not installed is found, too
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    process = _Process(
        [program, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
        preexec_fn=_prepare(signalled_with_parent(signal.SIGTERM)),
        pass_fds=() if lock is None else (lock,),
    )
    if lock is not None:
        note_holder(lock, process.pid)
    try:
        with process.passing_on():
            yield process
    finally:
        _end(process)


def _prepare(ask: Callable[[], None] | None) -> Callable[[], None]:
    """What the new process does first: torchrun would die of a SIGUSR1 to all processes of a job."""

    def prepare() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if ask is not None:
            ask()

    return prepare


def _end(process: subprocess.Popen) -> None:
    """End it, if it still runs: it saves first. Ctrl-C, once more, does not wait for that."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
