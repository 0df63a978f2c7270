"""Repairs of training and validation with several processes, on a CPU above all."""

import functools
import os
import sys
from multiprocessing import context
from multiprocessing.reduction import ForkingPickler

import torch
from fairseq import utils
from fairseq.distributed import utils as distributed_utils
from fairseq.models import distributed_fairseq_model
from fairseq.trainer import Trainer

from rt_plugin.console.processes import plugin_first
from rt_plugin.repairs.registry import Patches, repair
from rt_plugin.repairs.stopping import Stopped


@repair(
    patches=["fairseq.distributed.utils.distributed_main"],
    threads=["pytorch/pytorch#190489"],
    until="torch closes its process groups before the interpreter ends",
)
def process_groups_left_open(patches: Patches) -> None:
    """Several processes on a CPU have trained and saved, and now and then one ends with SIGABRT, so that torchrun
    reports a failure: fairseq leaves torch's process group to the end of the interpreter, when a thread of gloo may
    still be running. Not closed after an error: the other processes may be waiting for this one.
    """
    distributed_main = distributed_utils.distributed_main

    @functools.wraps(distributed_main)
    def distributed_main_to_the_end(*args, **kwargs):
        try:
            distributed_main(*args, **kwargs)
        except Stopped:
            close()
            raise
        close()

    def close():
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            vars(distributed_utils.get_global_group).pop("_global_group", None)

    patches.set(distributed_utils, "distributed_main", distributed_main_to_the_end)


@repair(
    patches=["fairseq.distributed.utils.call_main"],
    until="fairseq counts no GPUs where `--cpu` is given",
)
def one_process_on_a_cpu(patches: Patches) -> None:
    """`--cpu` on a machine with several GPUs starts a process for each, which NCCL cannot connect: by default the world
    size is the number of GPUs. It is 1, unless it is given or a launcher has started several processes.

    fairseq-hydra-train calls call_main before it imports the plugin: there it has to be given.
    """
    call_main = distributed_utils.call_main

    @functools.wraps(call_main)
    def call_main_once(cfg, main, **kwargs):
        if cfg.common.cpu and _world_size_is_default(cfg.distributed_training):
            cfg.distributed_training.distributed_world_size = 1
        return call_main(cfg, main, **kwargs)

    patches.set(distributed_utils, "call_main", call_main_once)


def _world_size_is_default(cfg) -> bool:
    """Whether nobody chose how many processes train; `cfg`: fairseq's distributed_training group."""
    names = ("--distributed-world-size", "distributed_training.distributed_world_size")  # the second is hydra's
    given = any(word.lstrip("+").partition("=")[0] in names for word in sys.argv[1:])
    launched = os.environ.get("WORLD_SIZE", "1") != "1"
    is_count = cfg.distributed_world_size == torch.cuda.device_count()
    return is_count and not given and not launched and cfg.distributed_init_method is None


@repair(
    patches=["multiprocessing.reduction.ForkingPickler.register"],
    until="fairseq itself needs no repairs on today's Python",
)
def plugin_in_new_processes(patches: Patches) -> None:
    """A worker that starts from nothing (spawn, or forkserver, the default from Python 3.14 on) and is given one of
    fairseq's data sets imports fairseq without the plugin: unrepaired, and on Python 3.14 not at all. Every process
    imports the plugin first.
    """
    kinds = (context.Process, context.SpawnProcess, context.ForkServerProcess)
    for kind in kinds:
        ForkingPickler.register(kind, plugin_first)

    def restore():
        for kind in kinds:
            del ForkingPickler._extra_reducers[kind]

    patches.note("multiprocessing.reduction.ForkingPickler.register", restore)


@repair(
    patches=["fairseq.distributed.utils._broadcast_object_slow"],
    until="fairseq sends objects with torch's broadcast_object_list",
)
def broadcast_between_processes(patches: Patches) -> None:
    """Resuming with several processes fails: the checkpoint's configuration is sent from the first process to the
    others as a file of `torch.save`, which torch 2.6 and later refuse to read. torch's own way is used.
    """
    broadcast = distributed_utils._broadcast_object_slow

    @functools.wraps(broadcast)
    def broadcast_object(obj, src_rank, group, dist_device):
        if not isinstance(group, torch.distributed.ProcessGroup):  # XLA's groups
            return broadcast(obj, src_rank, group, dist_device)
        objects = [obj]
        source = torch.distributed.get_global_rank(group, src_rank)
        torch.distributed.broadcast_object_list(objects, source, group, dist_device)
        return objects[0]

    patches.set(distributed_utils, "_broadcast_object_slow", broadcast_object)


@repair(
    patches=["fairseq.distributed.utils.all_gather_list"],
    threads=["facebookresearch/fairseq#2879"],
    until="fairseq gathers objects with torch's all_gather_object",
)
def logs_of_several_processes(patches: Patches) -> None:
    """`fairseq-validate` with several processes gathers their logs in a CUDA buffer of 16 KB for each
    (`--all-gather-list-size`): on a CPU there is none, and a hundred batches do not fit. torch's own way has neither
    limit.
    """
    all_gather_list = distributed_utils.all_gather_list

    @functools.wraps(all_gather_list)
    def gather(data, group=None, max_size=16384):
        group = distributed_utils.get_global_group() if group is None else group
        if not isinstance(group, torch.distributed.ProcessGroup):  # XLA's groups
            return all_gather_list(data, group, max_size)
        gathered = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(gathered, utils.move_to_cpu(data), group)
        return gathered

    patches.set(distributed_utils, "all_gather_list", gather)


@repair(
    patches=["fairseq.models.distributed_fairseq_model.DistributedDataParallel"],
    threads=["facebookresearch/fairseq#2879"],
    until="fairseq passes no `device_ids` for a model on the CPU",
)
def ddp_on_cpu(patches: Patches) -> None:
    """`--ddp-backend pytorch_ddp` passes `device_ids`, which torch refuses for a model on the CPU."""

    class DistributedDataParallel(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, module, device_ids=None, output_device=None, **kwargs):
            if next(module.parameters()).device.type == "cpu":
                device_ids = output_device = None
            super().__init__(module, device_ids=device_ids, output_device=output_device, **kwargs)

    patches.set(distributed_fairseq_model, "DistributedDataParallel", DistributedDataParallel)


@repair(
    patches=["fairseq.trainer.Trainer.__init__"],
    threads=["facebookresearch/fairseq#962", "facebookresearch/fairseq#1119"],
    until="fairseq's RoBERTa has no language model's head while it is fine-tuned",
)
def weights_without_gradients(patches: Patches) -> None:
    """Fine-tuning by several processes ends at the second update with `Expected to have finished reduction in the prior
    iteration`: torch's DDP waits for gradients of the language model's head. For rt_glue it looks which weights have
    some, as `--find-unused-parameters` says.
    """
    init_trainer = Trainer.__init__

    @functools.wraps(init_trainer)
    def init_trainer_for_fine_tuning(self, cfg, *args, **kwargs):
        if getattr(cfg.task, "_name", None) == "rt_glue":
            cfg.distributed_training.find_unused_parameters = True  # which legacy_ddp does not read
        init_trainer(self, cfg, *args, **kwargs)

    patches.set(Trainer, "__init__", init_trainer_for_fine_tuning)
