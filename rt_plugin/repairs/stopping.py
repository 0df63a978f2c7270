"""SIGTERM and SIGUSR1, which schedulers send before they take a machine away, end a training that has saved itself.

A signal only leaves a note. All processes of a training learn of it in the sums that they exchange in every step
anyway, so that they stop after the same update: before the next batch, or in a validation, which is then owed.
"""

import atexit
import contextlib
import functools
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import NoReturn

import torch
from fairseq import checkpoint_utils
from fairseq.data import iterators
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from torch.utils.data._utils import signal_handling

from rt_plugin.console.commands import STOPPED, STOPPING_SIGNALS
from rt_plugin.console.processes import handed_down
from rt_plugin.model_folder.files import LAST_CHECKPOINT
from rt_plugin.repairs.registry import Patches, repair

logger = logging.getLogger(__name__)

LEAVING = "a training is being left"  # in what is handed down to workers
OWED_VALIDATION = "validation_owed"  # in a checkpoint that a validation was due of when training stopped


class Stopped(SystemExit):
    """The end of a training that was asked to stop; with status 0, of one that turns out to be finished."""


class _Training:
    """What this process knows of the training that it makes, and of the wish to stop it."""

    def __init__(self):
        self.signal: str | None = None  # the one that came to this process
        self.agreed = False  # a signal came to one of several processes, and all know
        self.trainer = lambda: None
        self.batches = None  # fairseq's iterator of the epoch under way
        self.saved_update: int | None = None
        self.owes_validation = False
        self.leaving = multiprocessing.RawValue("b", 0)  # 1 at the end of this process; shared with workers

    def shall_stop(self) -> bool:
        trainer = self.trainer()
        alone = trainer is None or trainer.data_parallel_world_size == 1
        return self.signal is not None if alone else self.agreed


_training: _Training | None = None  # None: nothing is trained here, or nobody listens
_to_the_end = contextlib.ExitStack()  # keeps a context that nobody else holds: it would be left at once


@repair(
    patches=[
        "fairseq.distributed.utils.call_main",
        "fairseq.checkpoint_utils.load_checkpoint",
        "fairseq.checkpoint_utils.save_checkpoint",
        "fairseq.trainer.Trainer._aggregate_logging_outputs",
        "fairseq.trainer.Trainer.get_train_iterator",
        "fairseq.trainer.Trainer.begin_valid_epoch",
        "fairseq.trainer.Trainer.valid_step",
        "fairseq.trainer.Trainer.save_checkpoint",
        "fairseq.data.iterators.GroupedIterator",
    ],
    until="fairseq saves when it is told to end",
)
def stopping_when_asked(patches: Patches) -> None:
    """SIGTERM and SIGUSR1 end a training at once: what was trained since the last checkpoint is lost. It ends after the
    update, or the step of validation, that is under way, saves, and exits with status 75; resumed, it goes on as if it
    had not been stopped.
    """
    _listen(patches)
    _agree(patches)
    _stop_between_updates(patches)
    _stop_in_validation(patches)


def _listen(patches: Patches) -> None:
    call_main, load_checkpoint = distributed_utils.call_main, checkpoint_utils.load_checkpoint

    @functools.wraps(call_main)
    def call_main_and_listen(cfg, main, **kwargs):
        if os.path.basename(main.__code__.co_filename) != "train.py":
            return call_main(cfg, main, **kwargs)
        with _listening() as training:
            try:
                return call_main(cfg, main, **kwargs)
            except torch.multiprocessing.ProcessExitedException as error:  # of processes that fairseq has started
                if error.exit_code == STOPPED or (training.signal and error.exit_code < 0):
                    raise Stopped(STOPPED) from None
                raise

    @functools.wraps(load_checkpoint)
    def load_checkpoint_and_listen(cfg, trainer, **kwargs):
        if _training is None:  # fairseq-hydra-train, or a process that fairseq has started: it listens to its end
            _to_the_end.enter_context(_listening())
        training = _training
        training.trainer = weakref.ref(trainer)
        extra_state, batches = load_checkpoint(cfg, trainer, **kwargs)
        if trainer.cfg.dataset.num_workers:
            _start_fork_server()
        training.saved_update = trainer.get_num_updates()
        training.owes_validation = bool(extra_state and trainer.get_num_updates() and extra_state.get(OWED_VALIDATION))
        return extra_state, batches

    patches.set(distributed_utils, "call_main", call_main_and_listen)
    patches.set(checkpoint_utils, "load_checkpoint", load_checkpoint_and_listen)


@contextlib.contextmanager
def _listening() -> Iterator[_Training]:
    global _training
    before, _training = _training, _Training()
    atexit.register(setattr, _training.leaving, "value", 1)  # before multiprocessing ends what is left of its processes
    handed_down[LEAVING] = _training.leaving
    try:
        with _handling(_note):
            yield _training
    finally:
        _training = before
        handed_down[LEAVING] = before.leaving if before else None


@contextlib.contextmanager
def _handling(handler) -> Iterator[None]:
    """Let a handler have the signals that stop a training, in the thread that may say so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in STOPPING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_fork_server() -> None:
    """Where workers come from a server (the default from Python 3.14 on), let it ignore the signals.

    So do its workers then, which need seconds to import what they work with, until they know what to do.
    """
    if (
        multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    ) == "forkserver":
        with _handling(signal.SIG_IGN):
            multiprocessing.forkserver.ensure_running()


def _note(number: int, frame) -> None:
    _training.signal = signal.Signals(number).name
    if _training.trainer() is None:  # this process trains nothing itself: fairseq has started others
        for process in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _agree(patches: Patches) -> None:
    aggregate = Trainer._aggregate_logging_outputs

    @functools.wraps(aggregate)
    def aggregate_with_signals(self, logging_outputs, *extra_stats_to_sum, ignore=False):
        if _training is None:
            return aggregate(self, logging_outputs, *extra_stats_to_sum, ignore=ignore)
        came = float(_training.signal is not None)
        logs, (*stats, signals) = aggregate(self, logging_outputs, *extra_stats_to_sum, came, ignore=ignore)
        _training.agreed = _training.agreed or bool(signals > 0)
        return logs, stats

    patches.set(Trainer, "_aggregate_logging_outputs", aggregate_with_signals)


def _stop_between_updates(patches: Patches) -> None:
    class GroupedIterator(iterators.GroupedIterator):
        """fairseq's, of the batches of one update each, which training asks for the next update's."""

        def __next__(self):
            if _training is not None and self.has_next():
                if _training.owes_validation:
                    _validate_and_save()
                if _training.shall_stop():
                    _save_and_stop()
            return super().__next__()

    patches.set(iterators, "GroupedIterator", GroupedIterator)
    get_train_iterator = Trainer.get_train_iterator

    @functools.wraps(get_train_iterator)
    def get_known_train_iterator(self, *args, **kwargs):
        batches = get_train_iterator(self, *args, **kwargs)
        if _training is not None:
            _training.batches = batches
        return batches

    patches.set(Trainer, "get_train_iterator", get_known_train_iterator)
    save_checkpoint = checkpoint_utils.save_checkpoint

    @functools.wraps(save_checkpoint)
    def save_known_checkpoint(cfg, trainer, epoch_itr, val_loss):
        saved = save_checkpoint(cfg, trainer, epoch_itr, val_loss)
        if _training is not None:
            _training.saved_update = trainer.get_num_updates()
        return saved

    patches.set(checkpoint_utils, "save_checkpoint", save_known_checkpoint)


def _stop_in_validation(patches: Patches) -> None:
    begin_valid_epoch, valid_step = Trainer.begin_valid_epoch, Trainer.valid_step
    save_checkpoint = Trainer.save_checkpoint

    @functools.wraps(begin_valid_epoch)
    def begin_valid_epoch_if_wanted(self, epoch):
        _stop_owing_validation()
        begin_valid_epoch(self, epoch)

    @functools.wraps(valid_step)
    def valid_step_if_wanted(self, *args, **kwargs):
        log = valid_step(self, *args, **kwargs)
        _stop_owing_validation()
        return log

    @functools.wraps(save_checkpoint)
    def save_checkpoint_with_what_is_owed(self, filename, extra_state):
        owed = {OWED_VALIDATION: True} if _training is not None and _training.owes_validation else {}
        return save_checkpoint(self, filename, {**extra_state, **owed})

    patches.set(Trainer, "begin_valid_epoch", begin_valid_epoch_if_wanted)
    patches.set(Trainer, "valid_step", valid_step_if_wanted)
    patches.set(Trainer, "save_checkpoint", save_checkpoint_with_what_is_owed)


def _stop_owing_validation() -> None:
    """Stop within an epoch. At its end a validation is made whole: what comes after it cannot be made up for."""
    batches = _training.batches if _training is not None and _training.trainer() is not None else None
    if batches is not None and _training.shall_stop() and not batches.end_of_epoch():
        _training.owes_validation = True
        _save_and_stop()


def _validate_and_save() -> None:
    """What an earlier attempt left out when it was stopped; it is due by the same options as then, or not at all."""
    trainer = _training.trainer()
    _training.owes_validation = False
    train = next(m for name in ("fairseq_cli.train", "__main__") if hasattr(m := sys.modules.get(name), "validate"))
    subsets = trainer.cfg.dataset.valid_subset.split(",")
    _, finished = train.validate_and_save(trainer.cfg, trainer, trainer.task, _training.batches, subsets, False)
    if finished:
        raise Stopped(0)


def _save_and_stop() -> NoReturn:
    """Called by all processes of a training at the same place."""
    trainer, options = _training.trainer(), _training.trainer().cfg.checkpoint
    update = trainer.get_num_updates()
    if _training.saved_update != update:
        checkpoint_utils.save_checkpoint(options, trainer, _training.batches, None)
    if trainer.data_parallel_world_size > 1:  # nobody ends, and is missed, while another one is writing
        everybody = torch.zeros(1, device=trainer.device)
        distributed_utils.all_reduce(everybody, group=trainer.data_parallel_process_group).item()
    if trainer.is_data_parallel_master or os.environ.get("LOCAL_RANK") == "0":
        why = f"by {_training.signal}" if _training.signal else "as another process was told to"
        saved = not (options.no_save or options.no_last_checkpoints)
        kept, then = "saved" if saved else "nothing is saved", _how_to_resume(options, saved)
        # a warning, since the first process alone logs more
        logger.warning("stopped %s after update %d, %s; %s", why, update, kept, then)
    raise Stopped(STOPPED)


def _how_to_resume(options: CheckpointConfig, saved: bool) -> str:
    """What to do next; with some options the same command would do again what was done at the start."""
    resets = ("dataloader", "lr_scheduler", "meters", "optimizer")
    again = [f"--reset-{name.replace('_', '-')}" for name in resets if getattr(options, f"reset_{name}")]
    if options.restore_file != LAST_CHECKPOINT:
        again.insert(0, "--restore-file")
    return f"leave {', '.join(again)} out to resume" if saved and again else "the same command resumes"


@repair(
    patches=["torch.utils.data._utils.signal_handling._set_worker_signal_handlers"],
    until="torch's workers leave signals to the process that they read for",
)
def workers_that_are_told_to_stop(patches: Patches) -> None:
    """A signal to all processes of a job ends the workers that read data, and the training stops with an error before
    it has saved. They end with the training.
    """
    set_handlers = signal_handling._set_worker_signal_handlers

    def set_handlers_of_training():
        set_handlers()
        if handed_down.get(LEAVING) is not None:
            for number in STOPPING_SIGNALS:
                signal.signal(number, _end_with_training)
            _end_with_training()  # it may have been told before it could listen

    patches.set(signal_handling, "_set_worker_signal_handlers", set_handlers_of_training)


def _end_with_training(*_) -> None:
    if handed_down[LEAVING].value:
        os._exit(0)
