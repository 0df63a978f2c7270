"""Repairs of a training that is started again: a finished one stays so, clock and TensorBoard are of all attempts."""

import functools
import logging
import math
import os
import sys
import time
from secrets import token_hex
from types import SimpleNamespace

from fairseq import checkpoint_utils
from fairseq.logging import metrics, progress_bar
from fairseq.trainer import Trainer

from rt_plugin.repairs.registry import Patches, repair
from rt_plugin.repairs.stopping import OWED_VALIDATION

logger = logging.getLogger(__name__)

_PATIENCE = "patience"  # in a checkpoint: what was counted


@repair(
    patches=["fairseq.checkpoint_utils.load_checkpoint"],
    until="fairseq looks at --max-update before an update, too",
)
def finished_training(patches: Patches) -> None:
    """A finished training that is started again makes one more update, and saves it as last and best: fairseq looks at
    `--max-update` and `--stop-time-hours` after an update alone, at `--patience` after a validation.
    """
    load_checkpoint = checkpoint_utils.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_unless_finished(cfg, trainer, **kwargs):
        extra_state, epoch_itr = load_checkpoint(cfg, trainer, **kwargs)
        owes_validation = bool(extra_state and extra_state.get(OWED_VALIDATION))
        if (why := _finished(trainer)) and not owes_validation:
            logger.info("nothing to do: %s", why)
            epoch_itr = SimpleNamespace(next_epoch_idx=math.nan)  # no epoch is left: all that is asked of it by then
        return extra_state, epoch_itr

    patches.set(checkpoint_utils, "load_checkpoint", load_unless_finished)


def _finished(trainer: Trainer) -> str | None:
    limits, updates = trainer.cfg.optimization, trainer.get_num_updates()
    hours = trainer.cumulative_training_time() / 3600
    if 0 < limits.max_update <= updates:
        return f"{updates:,} updates are made, and --max-update is {limits.max_update:,}"
    patience, validations = trainer.cfg.checkpoint.patience, _patience_count().get("num_runs", 0)
    if 0 < patience <= validations:
        return f"{validations} validations in a row were no better than the best, and --patience is {patience}"
    if updates and 0 < limits.stop_time_hours < hours:
        return f"{hours:.1f} hours are used, and --stop-time-hours is {limits.stop_time_hours:g}"
    return None


@repair(
    patches=["fairseq.trainer.Trainer.load_checkpoint"],
    until="fairseq sets the meter to the time that its checkpoint tells",
)
def clock_of_all_attempts(patches: Patches) -> None:
    """`wall` in the log begins at 0 with every resume, and stays there in an epoch that was begun before: the clock is
    read back stopped. It goes on from the time that the checkpoint tells.
    """
    load_checkpoint = Trainer.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_checkpoint_and_clock(
        self,
        filename,
        reset_optimizer=False,
        reset_lr_scheduler=False,
        optimizer_overrides=None,
        reset_meters=False,
    ):
        extra_state = load_checkpoint(
            self, filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters
        )
        clock = metrics.get_meter("default", "wall")
        if extra_state is not None and clock is not None and not reset_meters:
            clock.start()
            clock.start_time -= float(extra_state.get("previous_training_time", 0))  # a tensor from several processes
        return extra_state

    patches.set(Trainer, "load_checkpoint", load_checkpoint_and_clock)


@repair(
    patches=["fairseq.trainer.Trainer.save_checkpoint", "fairseq.trainer.Trainer.load_checkpoint"],
    threads=["facebookresearch/fairseq#3531"],
    until="fairseq keeps what it counts for --patience in its checkpoints",
)
def patience_of_all_attempts(patches: Patches) -> None:
    """`--patience` begins to count anew with every attempt, so that a training that it has ended trains on when it is
    started again, and one that is stopped often never ends. The count goes on from the checkpoint.
    """
    save_checkpoint, load_checkpoint = Trainer.save_checkpoint, Trainer.load_checkpoint

    @functools.wraps(save_checkpoint)
    def save_checkpoint_and_count(self, filename, extra_state):
        return save_checkpoint(self, filename, {**extra_state, _PATIENCE: dict(_patience_count())})

    @functools.wraps(load_checkpoint)
    def load_checkpoint_and_count(self, filename, *args, reset_meters=False, **kwargs):
        extra_state = load_checkpoint(self, filename, *args, reset_meters=reset_meters, **kwargs)
        _patience_count().clear()  # of another training in this process
        if extra_state is not None and not reset_meters:
            _patience_count().update(extra_state.get(_PATIENCE, {}))
        return extra_state

    patches.set(Trainer, "save_checkpoint", save_checkpoint_and_count)
    patches.set(Trainer, "load_checkpoint", load_checkpoint_and_count)


def _patience_count() -> dict:
    """What fairseq counts, in attributes of a function: the best loss, and how many validations were no better."""
    modules = (sys.modules.get(name) for name in ("fairseq_cli.train", "__main__"))
    return next((vars(m.should_stop_early) for m in modules if hasattr(m, "should_stop_early")), {})


@repair(
    patches=["fairseq.logging.progress_bar.TensorboardProgressBarWrapper._log_to_tensorboard"],
    until="tensorboardX writes what is waiting when it is told to flush, and fairseq says where an attempt begins",
)
def tensorboard_of_all_attempts(patches: Patches) -> None:
    """With `--tensorboard-logdir` a training that is killed loses its newest points, since tensorboardX flushes without
    waiting for its queue, and one that is resumed has those since the checkpoint twice. Every point is on disk when the
    training goes on, and a resumed training tells TensorBoard which points of the attempt before it replaces.
    """
    log = progress_bar.TensorboardProgressBarWrapper._log_to_tensorboard

    @functools.wraps(log)
    def log_from_here_on(self, stats, tag=None, step=None):
        writers, key = progress_bar._tensorboard_writers, tag or ""
        if key not in writers and progress_bar.SummaryWriter is not None:
            start = stats["num_updates"] if step is None else step
            writers[key] = _writer(os.path.join(self.tensorboard_logdir, key), int(start))
            writers[key].add_text("sys.argv", " ".join(sys.argv))
        log(self, stats, tag, step)

    patches.set(progress_bar.TensorboardProgressBarWrapper, "_log_to_tensorboard", log_from_here_on)


def _writer(folder: str, start: int):
    """What writes the points from update `start` on, which take the place of those that are there."""
    if progress_bar.SummaryWriter.__module__.partition(".")[0] == "tensorboardX":
        return _Points(folder, start)
    return progress_bar.SummaryWriter(folder, purge_step=start)


class _Points:
    """Of tensorboardX's SummaryWriter what fairseq uses, without its queue: what is flushed is on disk.

    Args:
        folder: made if needed.
        start: TensorBoard forgets what older files of the folder have from this update on.
    """

    def __init__(self, folder: str, start: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        os.makedirs(folder, exist_ok=True)
        # tensorboardX names files by the second, and TensorBoard reads them in the order of their names; what comes
        # last keeps anybody from putting a link there before
        self._file = EventsWriter(os.path.join(folder, "events"), f".{time.time_ns() % 10**9:09d}.{token_hex(8)}")
        self._event = Event
        self._write(step=start, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **event) -> None:
        self._file.write_event(self._event(wall_time=time.time(), **event))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        from tensorboardX.summary import scalar

        self._write(step=int(step), summary=scalar(name, value))

    def add_text(self, name: str, text: str) -> None:
        from tensorboardX.summary import text as summary

        self._write(summary=summary(name, text))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
