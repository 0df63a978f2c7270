"""Work out the blocks and batches of the next shard while this one trains: a process of its own, at low priority."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import weakref
from dataclasses import asdict
from pathlib import Path

from rt_plugin.blocks.batches import BatchOptions, load_batches
from rt_plugin.blocks.dataset import BlockDataset, BlockOptions, TokenFiles
from rt_plugin.blocks.stored import path_of
from rt_plugin.blocks.verified import check_split
from rt_plugin.console.processes import is_first_of_machine

logger = logging.getLogger(__name__)

_NICENESS = 10  # below the training, whose processor it shares


class Ahead:
    """At most one process that works ahead; it ends with its owner."""

    def __init__(self):
        self._process: subprocess.Popen | None = None

    def prepare(self, prefix: Path, folder: Path, blocks: BlockOptions, batches: BatchOptions) -> None:
        """Begin to work out what `load_batches` will ask for, unless it is there, or cannot be kept, or one is at work.

        A process and no thread: it would keep the interpreter, and with it the training, waiting.

        Args:
            prefix: the split's files, without the ending.
            folder: where the arrays are kept.
            blocks, batches: the options.
        """
        if self._process is not None and self._process.poll() is None:
            return
        if not is_first_of_machine() or not TokenFiles.are_there(prefix):  # one process of a node is enough
            return
        key = batches.key(blocks.key(TokenFiles(prefix)))
        if path_of(folder, f"{prefix.name}.batches", key).exists() or not _can_be_written(folder):
            return
        request = {"prefix": str(prefix), "folder": str(folder), "blocks": asdict(blocks), "batches": asdict(batches)}
        package = Path(__file__).resolve().parents[2]  # in an uninstalled checkout nothing else leads to it
        paths = filter(None, [str(package), os.environ.get("PYTHONPATH")])
        command = [sys.executable, "-m", "rt_plugin.blocks.ahead", json.dumps(request)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        weakref.finalize(self, _end, self._process)


def _can_be_written(folder: Path) -> bool:
    existing = next(f for f in (folder, *folder.parents) if f.exists())
    return os.access(existing, os.W_OK)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    process.wait()


def main(request: str) -> None:
    """Do what `Ahead.prepare` asks for. What fails here is said again, better, by the training that needs it."""
    os.nice(_NICENESS)
    asked = json.loads(request)
    with contextlib.suppress(Exception):
        check_split(Path(asked["prefix"]), Path(asked["folder"]))
        blocks = BlockDataset(
            Path(asked["prefix"]), BlockOptions(**asked["blocks"]), Path(asked["folder"]), bos=0, eos=0
        )
        load_batches(blocks, BatchOptions(**asked["batches"]))


if __name__ == "__main__":
    main(sys.argv[1])
