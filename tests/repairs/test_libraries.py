"""Repairs for newer libraries: each works, and the very same thing breaks without it."""

import argparse
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from fairseq.data import TokenBlockDataset

from repair_cases import with_and_without
from rt_plugin.repairs import registry


def test_checkpoint_types(tmp_path):
    path = tmp_path / "checkpoint.pt"
    state = {"args": argparse.Namespace(a=1), "best": [np.float64(1.5), np.float32(2), np.int64(3), np.bool_(True)]}
    torch.save(state, path)

    def load():
        assert torch.load(path, weights_only=True) == state

    assert "Unsupported global" in str(with_and_without("checkpoint_types", load))


def test_checkpoint_types_are_no_more_than_needed(tmp_path):
    torch.save({"command": os.system}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        torch.load(tmp_path / "checkpoint.pt", weights_only=True)


def test_numpy_compat_long():
    sentences = [torch.tensor([5, 6, 2]), torch.tensor([7, 2])]
    error = with_and_without(
        "numpy_compat_long",
        lambda: TokenBlockDataset(sentences, [3, 2], block_size=8, pad=1, eos=2, break_mode="eos")[1],
    )
    assert "compat" in str(error)


def test_warnings_for_fairseq():
    def warn():
        warnings.warn("hydra.experimental.compose() is no longer experimental. Use hydra.compose()", stacklevel=1)

    with registry.without("numpy_compat_long"):
        pass  # makes all repairs again: pytest sets the filters anew for every test
    warnings.filterwarnings("error", message="another")
    warn()
    with registry.without("warnings_for_fairseq"), pytest.warns(UserWarning, match="experimental"):
        warn()
