"""One fine-tuning of a sweep: fairseq's own training command, in a process of its own.

A sweep forks these processes from a server that has imported all of this and has started no threads: a run then starts
at once, and has fairseq's state (which it keeps in function attributes) for itself.
"""

import logging
import os
import shlex
import sys
from pathlib import Path

import torch
from fairseq_cli.train import cli_main

from rt_plugin.console.commands import show_trace
from rt_plugin.console.files import appending
from rt_plugin.console.locks import in_turn
from rt_plugin.console.processes import end_with_parent
from rt_plugin.errors import DivergenceError, UserError
from rt_plugin.glue.results import LOG_FILE

DIVERGED = 3  # exit status: the loss or the gradients are no finite numbers


def train(command: list[str], folder: Path, threads: int, gpu: str | None) -> None:
    """Run a fairseq-train command; its output is appended to `folder`/train.log. Ends the process if it fails.

    Args:
        command: "fairseq-train" and its arguments.
        folder: the --save-dir, made if needed.
        threads: of the CPU.
        gpu: the one that CUDA shall see, as CUDA_VISIBLE_DEVICES names it; None for those that it saw before: in a fork
            of `rt_plugin.glue.sweep.fork_server` none.
    """
    end_with_parent()  # a sweep that is killed cannot stop its runs
    folder.mkdir(parents=True, exist_ok=True)
    _redirect_output(folder / LOG_FILE)
    with in_turn(folder / ".lock"):  # the same run of a sweep that was killed just now may still be at it
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        torch.set_num_threads(threads)
        print(f"$ {shlex.join(command)}", flush=True)
        sys.argv = command
        try:
            cli_main()
        except UserError as error:
            show_trace()
            print(f"rt_plugin: error: {error}", file=sys.stderr, flush=True)
            sys.exit(DIVERGED if isinstance(error, DivergenceError) else 1)


def _redirect_output(log: Path) -> None:
    """Everything that this process prints, from Python or not, goes to the end of the log."""
    with appending(log) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # fairseq's own settings, which the import of fairseq_cli makes only in a process that has none yet
    form = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
    logging.basicConfig(format=form, datefmt="%Y-%m-%d %H:%M:%S", level="INFO", stream=sys.stdout, force=True)
