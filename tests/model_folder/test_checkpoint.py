"""The checkpoints of a model folder: reading one, and which one a training starts from."""

import argparse
import inspect
import os
import pickle
import re

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from omegaconf import OmegaConf

from model_folders import write_model_folder
from rt_plugin import hub
from rt_plugin.errors import UserError
from rt_plugin.model_folder.checkpoint import (
    checkpoint_names,
    checkpoint_path,
    checkpoint_positions,
    find_checkpoint,
    read_checkpoint,
    starting_checkpoint,
    stored_options,
)


class RunsCode:
    """What a pickle of bad will holds."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_checkpoint_cannot_run_code(tmp_path):
    path, trace = tmp_path / "checkpoint_best.pt", tmp_path / "trace"
    torch.save({"model": {}, "cfg": RunsCode(f"touch {trace}")}, path)
    with pytest.raises(UserError, match=r"checkpoint_best\.pt: not a fairseq checkpoint \(UnpicklingError\)"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"model": RunsCode(f"touch {trace}")}))
    with pytest.raises(UserError, match="not a fairseq checkpoint"):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("format_of_today", [True, False])
def test_weights_are_read_in_both_formats_of_torch(format_of_today, tmp_path):
    weights = {"encoder.sentence_encoder.embed_positions.weight": torch.arange(20.0).reshape(10, 2)}
    state = {"model": weights, "cfg": {"model": argparse.Namespace(arch="roberta")}}
    path = tmp_path / "checkpoint_best.pt"
    torch.save(state, path, _use_new_zipfile_serialization=format_of_today)
    for name, weight in read_checkpoint(path)["model"].items():
        assert torch.equal(weight, weights[name])
    assert stored_options(path) == {"arch": "roberta"}
    assert checkpoint_positions(path, pad=1) == 8


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt: no such checkpoint"):
        read_checkpoint(tmp_path / "nowhere.pt")
    path = tmp_path / "other.pt"
    for content in ([1, 2], {"weights": 1}, {"model": 3}):
        torch.save(content, path)
        with pytest.raises(UserError, match=r"other\.pt: not a fairseq checkpoint"):
            read_checkpoint(path)
    torch.save({"model": {}, "args": argparse.Namespace(arch="roberta"), "cfg": None}, path)
    assert stored_options(path) == {"arch": "roberta"}  # as an old fairseq stored it
    torch.save({"model": {}, "args": None, "cfg": None}, path)
    with pytest.raises(UserError, match=r"other\.pt: holds no options of its model; expected a checkpoint saved by"):
        stored_options(path)
    assert checkpoint_positions(path, pad=1) is None and checkpoint_positions(tmp_path / "nowhere.pt", pad=1) is None


def test_checkpoints_of_a_folder(tmp_path):
    for name in ("checkpoint_last.pt", "checkpoint_best.pt", "crash.pt", "dict.txt"):
        (tmp_path / name).touch()
    assert checkpoint_names(tmp_path) == ["checkpoint_best.pt", "checkpoint_last.pt"]
    assert find_checkpoint(tmp_path, "checkpoint_last.pt") == tmp_path / "checkpoint_last.pt"
    there = "no checkpoint9.pt there; checkpoints in this folder: checkpoint_best.pt, checkpoint_last.pt"
    with pytest.raises(UserError, match=there):
        find_checkpoint(tmp_path, "checkpoint9.pt")


@pytest.mark.parametrize("name", ["../other/checkpoint_best.pt", "{0}/other/checkpoint_best.pt"])
def test_a_checkpoint_in_another_folder_is_none_of_this_one(name, tmp_path):
    """It was found, and that of this folder was loaded."""
    for folder in ("model", "other"):
        write_model_folder(tmp_path / folder, "forward")
    name = name.format(tmp_path)
    message = f"checkpoint {name}: found a path, expected the name of a file in {tmp_path}/model; give the folder that"
    with pytest.raises(UserError, match=re.escape(message)):
        hub.from_pretrained(str(tmp_path / "model"), name)
    with pytest.raises(UserError, match="found a path"):
        checkpoint_path(tmp_path / "model", name)


class RecordingTrainer:
    """Notes what fairseq asks its trainer to load, and ends there."""

    checkpoint_suffix = ""

    def load_checkpoint(self, path, *_, **__):
        raise InterruptedError(path)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"restore_file": "other.pt"},
        {"finetune_from_model": "other.pt"},
        {"continue_once": "other.pt"},
        {"continue_once": "third.pt", "finetune_from_model": "other.pt"},
    ],
    ids=lambda options: "-".join(options),
)
def test_a_training_starts_from_what_fairseq_loads(options, resumed, tmp_path):
    for name in ("other.pt", "third.pt", *(["checkpoint_last.pt"] if resumed else [])):
        torch.save({"model": {}}, tmp_path / name)
    paths = {name: str(tmp_path / value) for name, value in options.items()}
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path), **paths))
    with pytest.raises(InterruptedError) as loaded:
        inspect.unwrap(checkpoint_utils.load_checkpoint)(cfg, RecordingTrainer())
    start = starting_checkpoint(cfg.save_dir, cfg.restore_file, cfg.finetune_from_model, cfg.continue_once)
    assert start == str(loaded.value)


def test_a_start_that_is_not_there(tmp_path):
    assert starting_checkpoint(str(tmp_path)) is None
    for option in ("restore_file", "finetune_from_model", "continue_once"):
        name = "--" + option.replace("_", "-")
        with pytest.raises(UserError, match=rf"{name} .*nowhere\.pt: no such file; give the path of a checkpoint"):
            starting_checkpoint(str(tmp_path), **{option: str(tmp_path / "nowhere.pt")})
