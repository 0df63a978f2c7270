"""fairseq's commands in forks of a process that has imported fairseq, which takes a command of its own some seconds.

What runs is the very script of the environment's bin folder, with arguments, folder, output and exit code of its own.
Only fairseq and torch are imported already, as if the command's first lines had done it; rt_plugin is not. From Python
3.14 on the command is `rt-plugin fairseq ...`, and both are.
"""

import gc
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = ("fairseq-train", "fairseq-validate", "fairseq-preprocess")
PLUGIN_FIRST = sys.version_info >= (3, 14)  # fairseq cannot be imported otherwise, as users are told


def command_words(name: str, *arguments) -> list[str]:
    """One of the environment's commands; fairseq's own so that it works on this Python."""
    folder = Path(sys.executable).parent
    start = [folder / name]
    if PLUGIN_FIRST and name.startswith("fairseq-"):
        start = [folder / "rt-plugin", "fairseq", name.removeprefix("fairseq-")]
    return [*map(str, (*start, *arguments))]


class Forks:
    """Runs commands. The process that forks starts with the first and ends with this one.

    Args:
        environment: of all commands.
    """

    def __init__(self, environment: dict[str, str]):
        self._environment = environment
        self._connection: socket.socket | None = None

    def run(self, *commands: list[str], cwd: Path, timeout: float) -> list[subprocess.CompletedProcess]:
        """Run all of them at the same time, each as `subprocess.run` with captured text.

        Args:
            commands: words of each; the first is the path of a Python script.

        Raises:
            subprocess.TimeoutExpired: one took longer than `timeout` seconds; all were killed.
        """
        if self._connection is None:
            self._start()
        with tempfile.TemporaryDirectory() as folder:
            outputs = [[str(Path(folder, f"{kind}{i}")) for kind in "oe"] for i, _ in enumerate(commands)]
            requests = [
                {"words": words, "cwd": str(cwd), "outputs": files}
                for words, files in zip(commands, outputs, strict=True)
            ]
            self._connection.sendall(json.dumps(requests).encode() + b"\n")
            processes = self._receive(None)
            try:
                codes = self._receive(timeout)
            except TimeoutError:
                for process in processes:
                    os.kill(process, signal.SIGKILL)
                self._receive(None)
                raise subprocess.TimeoutExpired(commands[0], timeout) from None
            return [
                subprocess.CompletedProcess(words, code, *(Path(path).read_text() for path in files))
                for words, code, files in zip(commands, codes, outputs, strict=True)
            ]

    def _start(self) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], env=self._environment, pass_fds=[theirs.fileno()]
            )

    def _receive(self, timeout: float | None) -> list[int]:
        self._connection.settimeout(timeout)
        line = b""
        while not line.endswith(b"\n"):
            piece = self._connection.recv(100)
            if not piece:
                raise RuntimeError("the process that forks commands has ended")
            line += piece
        return json.loads(line)


def next_request(connection: socket.socket) -> dict | None:
    """Fork for every request; returns it in the child, and None in the parent when there are no more."""
    for line in connection.makefile("rb"):
        processes = []
        for request in json.loads(line):
            processes.append(os.fork())
            if processes[-1] == 0:
                return request
        connection.sendall(json.dumps(processes).encode() + b"\n")
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        connection.sendall(json.dumps(codes).encode() + b"\n")
    return None


def become(request: dict) -> str:
    """Give this process the folder, files and arguments of a command; returns the script to run."""
    os.chdir(request["cwd"])
    for number, path in ((0, os.devnull), *enumerate(request["outputs"], start=1)):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.argv[:] = request["words"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    return sys.argv[0]


if __name__ == "__main__":
    if PLUGIN_FIRST:
        sys.argv[0] = "fairseq-train"  # as the verb does, for errors are shown by the command's name
        import rt_plugin  # noqa: F401
    import fairseq  # noqa: F401  (before the fork)
    import torch._dynamo  # noqa: F401  (which torch imports when the first optimizer is made: a second for each child)

    # some of fairseq's modules set the logging up, which its commands do before they import them
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    gc.collect()
    gc.freeze()  # or each child's collections would copy what it shares
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        request = next_request(connection)
    if request is not None:
        runpy.run_path(become(request), run_name="__main__")
