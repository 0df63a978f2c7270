"""Repairs for newer libraries: each works, and the very same thing breaks without it."""

import argparse
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fairseq import utils
from fairseq.data import TokenBlockDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from hydra._internal.utils import get_args_parser

from conftest import ENVIRONMENT
from repair_cases import with_and_without
from rt_plugin._location import USER_DIR
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


@dataclass
class Options(FairseqDataclass):
    size: int | None = field(default=None, metadata={"help": "how large"})  # what Optional[int] is on Python 3.14


def test_optional_types():
    def parse():
        parser = argparse.ArgumentParser()
        gen_parser_from_dataclass(parser, Options())
        assert parser.parse_args(["--size", "3"]).size == 3

    assert "int | None" in str(with_and_without("optional_types", parse))


def test_optional_types_while_fairseq_is_imported():
    """After the whole import it would be too late on Python 3.14."""
    code = """
import importlib, sys, rt_plugin
sys.modules.pop("fairseq", None)
seen = []
class Watch:
    def find_spec(name, path=None, target=None):
        if name == "fairseq.tasks":
            seen.append(sys.modules["fairseq.dataclass.utils"].interpret_dc_type(int | None))
sys.meta_path.insert(0, Watch)
import fairseq
assert seen[0] is int, seen
"""
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True, timeout=120)


def check_help(self, action):
    """As Python 3.14 does."""
    try:
        "%" in (action.help or "")  # noqa: B015
    except TypeError as error:
        raise ValueError("badly formed help string") from error


def test_help_of_hydra(monkeypatch):
    if sys.version_info < (3, 14):
        monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check_help, raising=False)
        add = argparse.ArgumentParser.add_argument

        def add_argument(self, *args, **kwargs):
            action = add(self, *args, **kwargs)
            self._check_help(action)
            return action

        monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)

    def parse():
        assert get_args_parser().parse_args(["--config-name", "here"]).config_name == "here"

    assert "badly formed help string" in str(with_and_without("help_of_hydra", parse))


def test_warnings_for_fairseq():
    def warn():
        warnings.warn("hydra.experimental.compose() is no longer experimental. Use hydra.compose()", stacklevel=1)

    with registry.without("numpy_compat_long"):
        pass  # makes all repairs again: pytest sets the filters anew for every test
    warnings.filterwarnings("error", message="another")
    warn()
    with registry.without("warnings_for_fairseq"), pytest.warns(UserWarning, match="experimental"):
        warn()


def test_user_dir_by_name(tmp_path, monkeypatch):
    """As where fairseq and the plugin share a folder, from another one."""
    (tmp_path / "rt_plugin").symlink_to(USER_DIR)
    for name in ("fairseq", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "fairseq" / "utils.py"))
    monkeypatch.chdir(tmp_path / "elsewhere")

    def import_it():
        utils.import_user_module(argparse.Namespace(user_dir="rt_plugin"))

    assert "not globally unique" in str(with_and_without("user_dir_by_name", import_it))
