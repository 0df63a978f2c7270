"""Repairs of checkpoint files: written whole or not at all, and named where they cannot be read."""

import functools
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from rt_plugin.console.files import replacing, temporary_name
from rt_plugin.errors import UserError
from rt_plugin.model_folder.checkpoint import check_history, checkpoint_names, read_checkpoint, starting_checkpoint
from rt_plugin.repairs.messages import first_line
from rt_plugin.repairs.registry import Patches, repair

logger = logging.getLogger(__name__)


@repair(
    patches=["fairseq.checkpoint_utils.load_checkpoint_to_cpu"],
    until="never: fairseq trusts every checkpoint",
)
def checked_checkpoints(patches: Patches) -> None:
    """A checkpoint runs the code that its configuration names, one that is cut off or is none ends in a torch
    traceback, and one that is damaged loads. All that fairseq loads comes through this package's own reading; the line
    names the file and those beside it.
    """
    load_to_cpu = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load_to_cpu)
    def load_checked_checkpoint(path, arg_overrides=None, load_on_all_ranks=False):
        try:
            state = read_checkpoint(path, mapped=False)
            check_history(state, path)
        except UserError as error:
            others = [name for name in checkpoint_names(Path(path).parent) if name != Path(path).name]
            beside = f" (in the same folder: {', '.join(others)})" if others and Path(path).is_file() else ""
            raise UserError(f"{error}{beside}") from None
        if state["cfg"] is not None:
            if state["cfg"].get("task"):
                state["cfg"]["task"].setdefault("data", str(Path(path).resolve().parent))
            state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
            overwrite_args_by_name(state["cfg"], arg_overrides or {})
        upgrade = checkpoint_utils._upgrade_state_dict
        return upgrade(state)

    patches.set(checkpoint_utils, "load_checkpoint_to_cpu", load_checked_checkpoint)


@repair(
    patches=["fairseq.checkpoint_utils.load_checkpoint"],
    threads=["facebookresearch/fairseq#4590"],
    until="never: fairseq would have to know who reads its errors",
)
def other_model_in_the_folder(patches: Patches) -> None:
    """A checkpoint of another architecture, in `--save-dir` or given to start from, ends in a traceback; the line names
    the file and the first difference.
    """
    load_checkpoint = checkpoint_utils.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_checkpoint_of_this_model(cfg, trainer, **kwargs):
        try:
            return load_checkpoint(cfg, trainer, **kwargs)
        except Exception as error:
            if "Cannot load model parameters" not in str(error):
                raise
            raise UserError(
                f"{str(error).split(';')[0]}: its model differs from the one asked for "
                f"({first_line(error.__context__)}); use the architecture and options of that checkpoint, "
                "or another --save-dir"
            ) from error

    patches.set(checkpoint_utils, "load_checkpoint", load_checkpoint_of_this_model)


@repair(
    patches=["fairseq.checkpoint_utils.load_checkpoint"],
    until="never: fairseq would have to know who reads its errors",
)
def other_precision_in_the_folder(patches: Patches) -> None:
    """A training that goes on in another precision, or with another `--optimizer`, ends in a traceback that names
    classes; the line names the file and the options.
    """
    load_checkpoint = checkpoint_utils.load_checkpoint

    @functools.wraps(load_checkpoint)
    def load_checkpoint_of_this_precision(cfg, trainer, **kwargs):
        try:
            return load_checkpoint(cfg, trainer, **kwargs)
        except AssertionError as error:
            if not str(error).startswith("Optimizer does not match"):
                raise
            path = starting_checkpoint(cfg.save_dir, cfg.restore_file)
            raise UserError(
                f"{path}: saved in another precision or with another --optimizer ({str(error).split('. ')[-1]}); give "
                "the same --fp16, --bf16 or --amp (rt-plugin pretrain: --precision) and --optimizer, or add "
                "--reset-optimizer"
            ) from error

    patches.set(checkpoint_utils, "load_checkpoint", load_checkpoint_of_this_precision)


@repair(
    patches=["fairseq.checkpoint_utils.verify_checkpoint_directory"],
    until="fairseq looks at the folder without a name that everybody knows",
)
def save_folder_without_dummy(patches: Patches) -> None:
    """To see whether `--save-dir` can be written, fairseq empties and removes the file `dummy` there, and what a link
    of that name points to is emptied. A file without a name takes its place.
    """

    def verify_checkpoint_directory(save_dir: str) -> None:
        try:
            os.makedirs(save_dir, exist_ok=True)
            with tempfile.TemporaryFile(dir=save_dir):
                pass
        except OSError as error:
            raise UserError(
                f"--save-dir {save_dir}: cannot be written ({error.strerror}); give another folder"
            ) from None

    patches.set(checkpoint_utils, "verify_checkpoint_directory", verify_checkpoint_directory)


@repair(
    patches=["fairseq.file_io.PathManager.copy"],
    threads=["facebookresearch/metaseq#53"],
    until="fairseq copies a checkpoint beside its target and then renames it",
)
def atomic_checkpoint_copies(patches: Patches) -> None:
    """fairseq writes a checkpoint once and copies it over its other names (best, last) in place: a kill or a full disk
    in between leaves them cut off. A hard link, or a complete copy where links are not possible, takes their place.
    """

    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        temporary = temporary_name(dst_path)
        try:
            try:
                os.link(src_path, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(src_path, temporary)
            os.replace(temporary, dst_path)
        except OSError as error:
            raise _cannot_write(dst_path, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    patches.set(PathManager, "copy", staticmethod(copy))


@repair(
    patches=["fairseq.checkpoint_utils.torch_persistent_save"],
    threads=["facebookresearch/metaseq#53"],
    until="fairseq begins every attempt with an empty file, and removes the last",
)
def atomic_checkpoint_writes(patches: Patches) -> None:
    """fairseq retries a failed write into the same file handle without emptying it, and leaves the .tmp file behind.
    Every name changes in one step: the old file stays until the new one is complete.
    """
    save = checkpoint_utils.torch_persistent_save

    @functools.wraps(save)
    def save_completely(obj, filename, async_write=False):
        if async_write:
            return save(obj, filename, async_write=True)
        for attempts_left in (2, 1, 0):
            try:
                with replacing(filename) as file:
                    return torch.save(obj, file)
            except (OSError, RuntimeError) as error:
                if not attempts_left:
                    raise _cannot_write(filename, error) from error
                logger.warning("writing %s failed (%s), trying again", filename, first_line(error))
                time.sleep(1)

    patches.set(checkpoint_utils, "torch_persistent_save", save_completely)


def _cannot_write(path: str, error: Exception) -> UserError:
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    return UserError(
        f"checkpoint {path} cannot be written ({first_line(error)}; {free / 2**20:,.0f} MiB free there); the "
        "checkpoints saved before are unharmed: make room and run the same command again, it resumes"
    )
