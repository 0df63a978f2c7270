"""Repairs for newer libraries than fairseq knows: Python's own, torch, numpy, hydra."""

import argparse
import functools
import inspect
import types
import typing
import warnings
from pathlib import Path

import numpy as np
import torch

from rt_plugin._location import USER_DIR
from rt_plugin.repairs.registry import Patches, repair


@repair(
    patches=["torch.serialization.add_safe_globals"],
    threads=["facebookresearch/fairseq#5603", "facebookresearch/fairseq#5610"],
    until="fairseq stores plain types only, or declares its own as safe",
)
def checkpoint_types(patches: Patches) -> None:
    """torch 2.6 and later read checkpoints with `weights_only` on and refuse what fairseq stores beside the weights:
    argparse.Namespace in the configuration, numpy numbers in best scores. Exactly these types are declared safe; the
    check stays on.
    """
    before = torch.serialization.get_safe_globals()
    scalar = np.float64(0).__reduce__()[0]  # its module is numpy._core since numpy 2, numpy.core before
    number_types = {type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.bool_)}
    torch.serialization.add_safe_globals(
        [argparse.Namespace, np.dtype, *number_types, scalar, (scalar, "numpy.core.multiarray.scalar")]
    )

    def restore():
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)

    patches.note("torch.serialization.add_safe_globals", restore)


@repair(patches=["numpy.compat"], until="fairseq's TokenBlockDataset does without `np.compat.long`")
def numpy_compat_long(patches: Patches) -> None:
    """`--sample-break-mode eos` asks for `np.compat.long`, and numpy 2 has no `np.compat`."""
    if not hasattr(np, "compat"):
        patches.set(np, "compat", types.SimpleNamespace(long=int))


@repair(patches=["fairseq.utils.import_user_module"], until="fairseq compares folders, and not how they are spelled")
def user_dir_by_name(patches: Patches) -> None:
    """`--user-dir rt_plugin`, which fairseq finds beside its own folder and calls `fairseq/../rt_plugin`, ends in
    `ImportError: ... not globally unique` where the plugin has been imported before, as Python 3.14 needs it.
    """
    from fairseq import utils

    import_user_module = utils.import_user_module

    @functools.wraps(import_user_module)
    def import_other_user_module(args):
        folder = getattr(args, "user_dir", None)
        if not folder or _found(folder, Path(utils.__file__).parent).resolve() != USER_DIR.resolve():
            import_user_module(args)

    patches.set(utils, "import_user_module", import_other_user_module)


def _found(folder: str, fairseq: Path) -> Path:
    """The folder that fairseq, which lies in `fairseq`, takes for a `--user-dir`: the first that is there."""
    places = (Path(folder).absolute(), fairseq / folder, fairseq / ".." / folder)
    return next((place for place in places if place.exists()), places[0])


@repair(
    patches=["fairseq.dataclass.utils.interpret_dc_type"],
    until="fairseq asks typing for what a type is made of",
)
def optional_types(patches: Patches) -> None:
    """Python 3.14 writes `Optional[int]` as `int | None`, fairseq looks for the old text, and its import ends in
    `TypeError: int | None is not callable`. Made while fairseq is imported: the plugin has to be imported first there.
    """
    import fairseq.dataclass.utils as module

    original = inspect.unwrap(module.interpret_dc_type)
    module.interpret_dc_type = original  # else taking this back would bring back what its import has got
    patches.set(module, "interpret_dc_type", _without_none(original))


def read_optional_types(module: types.ModuleType) -> None:
    """Make `optional_types` in fairseq.dataclass.utils, which is being imported."""
    module.interpret_dc_type = _without_none(module.interpret_dc_type)


def _without_none(interpret_dc_type):
    @functools.wraps(interpret_dc_type)
    def wrapper(field_type):
        if isinstance(field_type, types.UnionType):
            others = [one for one in typing.get_args(field_type) if one is not types.NoneType]
            return functools.reduce(lambda a, b: a | b, others)
        return interpret_dc_type(field_type)

    return wrapper


@repair(
    patches=["hydra._internal.utils.argparse"],
    threads=["facebookresearch/hydra#3121"],
    until="hydra-core, which fairseq-fixed holds at 1.3.2, describes its options by text",
)
def help_of_hydra(patches: Patches) -> None:
    """`fairseq-hydra-train` ends in `ValueError: badly formed help string` from Python 3.14 on: argparse looks at every
    help text at once, and one of hydra's is an object that becomes text later.
    """
    import hydra._internal.utils as module

    class Parser(argparse.ArgumentParser):
        def _check_help(self, action):
            """hydra prints its help itself."""

    patches.set(module, "argparse", types.SimpleNamespace(**{**vars(argparse), "ArgumentParser": Parser}))


@repair(patches=["warnings.filters"], until="fairseq calls hydra and torch as they ask for")
def warnings_for_fairseq(patches: Patches) -> None:
    """Every fairseq command prints a screen of deprecation warnings of hydra and torch that only fairseq could act
    on.
    """
    before = list(warnings.filters)
    for message in (
        r"hydra\.experimental",
        r"\s*The version_base parameter is not specified",
        r"In 'config': Usage of deprecated keyword",
        r"\s*'config' is validated against ConfigStore schema",
        r"\s*The strict flag in the compose API is deprecated",
        r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated",
        r"'pin_memory' argument is set as true but no accelerator is found",
        r"`broadcast_buffers` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)
    patches.note("warnings.filters", functools.partial(setattr, warnings, "filters", before))
