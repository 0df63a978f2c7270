"""Repairs for newer libraries than fairseq knows: torch, numpy, hydra."""

import argparse
import functools
import types
import warnings

import numpy as np
import torch

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
