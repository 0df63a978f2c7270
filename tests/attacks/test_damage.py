"""Checkpoints that are damaged, cut off, none at all, or too large for what they hold: refused by name, in seconds."""

import copy
import random
import re
import resource
import time
import zipfile

import pytest
import torch
from fairseq import checkpoint_utils

from attack_cases import make_folder
from conftest import REPOSITORY
from rt_plugin.errors import UserError
from rt_plugin.export.command import FORMATS
from rt_plugin.export.command import main as export
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder import container
from rt_plugin.model_folder.checkpoint import read_checkpoint

CHECKPOINT = REPOSITORY / "examples" / "checkpoints" / "recurrent_roberta_mini" / "checkpoint_best.pt"


@pytest.fixture(scope="module")
def honest():
    return torch.load(CHECKPOINT, weights_only=True)


def readings(path):
    """Both doors: this package's own, and fairseq's."""
    yield lambda: read_checkpoint(path)
    yield lambda: checkpoint_utils.load_checkpoint_to_cpu(str(path))


@pytest.mark.parametrize("flips", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_bit_flips_are_found(flips, tmp_path):
    """Each loads the same weights as before (it fell between the records), or not at all."""
    content = CHECKPOINT.read_bytes()
    weights = torch.load(CHECKPOINT, weights_only=True)["model"]
    rng = random.Random(flips)
    refused = 0
    for number in range(flips):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{number}.pt"
        path.write_bytes(damaged)
        try:
            loaded = read_checkpoint(path)["model"]
        except UserError:
            refused += 1
        else:
            assert loaded.keys() == weights.keys()
            assert all(torch.equal(loaded[name], weights[name]) for name in weights)
        path.unlink()
    assert refused > flips * 0.9


def test_damage_is_named(tmp_path):
    damaged = bytearray(CHECKPOINT.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "checkpoint_best.pt"
    path.write_bytes(damaged)
    for read in readings(path):
        with pytest.raises(UserError, match=r"checkpoint_best\.pt is damaged: 1 of its \d+ records .*archive|data/"):
            read()


def test_the_first_process_of_a_machine_checks_for_all(tmp_path, monkeypatch):
    damaged = bytearray(CHECKPOINT.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "checkpoint_best.pt"
    path.write_bytes(damaged)
    monkeypatch.setenv("LOCAL_RANK", "1")
    read_checkpoint(path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(path)


def test_weights_that_are_not_finite_are_refused(honest, tmp_path):
    path = tmp_path / "checkpoint_best.pt"
    for value in (float("nan"), float("inf"), float("-inf")):
        state = {**honest, "model": {**honest["model"]}}
        name = next(name for name in state["model"] if "layers.0" in name)
        state["model"][name] = state["model"][name].clone()
        state["model"][name].view(-1)[3] = value
        torch.save(state, path)
        with pytest.raises(UserError, match=rf"checkpoint_best\.pt: 1 weights are not finite \({name}"):
            checkpoint_utils.load_checkpoint_to_cpu(str(path))


def test_a_type_that_is_not_read_is_named(tmp_path):
    """It was called cut off, with the advice to put another file in its place."""
    path = tmp_path / "checkpoint_best.pt"
    for new in (True, False):
        torch.save({"model": {}, "cfg": container.Path("x")}, path, _use_new_zipfile_serialization=new)
        for read in readings(path):
            with pytest.raises(
                UserError, match=r"checkpoint_best\.pt: not a fairseq checkpoint .*pathlib.*Path"
            ) as found:
                read()
            assert "cut off" not in str(found.value) and "ln -f" not in str(found.value)


def without(name):
    return lambda state: state.pop(name)


def with_other(**values):
    return lambda state: state.update(values)


def with_weights(**shapes):
    """Further ones, or fewer: None."""

    def change(state):
        state["model"] = {**state["model"], **{name: torch.ones(shape or 1) for name, shape in shapes.items()}}
        for name in [name for name, shape in shapes.items() if shape is None]:
            del state["model"][name]

    return change


BIAS, LAYERS = "encoder.lm_head.bias", "encoder.sentence_encoder.layers."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("optimizer_history"), "history"),
        (with_other(optimizer_history=[]), "history"),
        (with_other(optimizer_history=[{}]), "history"),
        (with_other(optimizer_history=["x"]), "history"),
        (without("extra_state"), "extra_state"),
        (with_other(extra_state=[3]), "extra_state"),
        (with_weights(**{BIAS: None}), r"Missing key.*\bbias"),
        (with_weights(**{"encoder.more": 2}), "Unexpected key.*encoder.more|encoder.more the first"),
        (with_weights(**{f"{LAYERS}x.y": 2}), rf"Unexpected key.*{LAYERS}x|{LAYERS}x\.y the first"),
    ],
)
def test_what_is_missing_or_too_much_is_named(change, words, honest, tmp_path, capsys):
    """By loading, and by exporting, whatever the format."""
    folder, out = make_folder(tmp_path / "model"), tmp_path / "out"
    state = dict(honest)
    change(state)
    torch.save(state, folder / "checkpoint_best.pt")
    with pytest.raises(UserError, match=rf"checkpoint_best\.pt: .*({words})") as caught:
        RecurrentRobertaModel.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)
    for form in FORMATS:
        capsys.readouterr()
        assert export([str(folder), str(out / form), "--format", form]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(rf"rt-plugin export: error: .*: .*({words})", line), line


def test_a_loss_that_is_no_number_is_left_out_of_the_card(honest, tmp_path):
    folder = make_folder(tmp_path / "model")
    state = {**honest, "extra_state": {**honest["extra_state"], "val_loss": "good"}}
    torch.save(state, folder / "checkpoint_best.pt")
    assert export([str(folder), str(tmp_path / "out")]) == 0
    assert "validation loss" not in (tmp_path / "out" / "README.md").read_text()


def test_bombs_are_refused_at_once(honest, tmp_path):
    path = tmp_path / "checkpoint_best.pt"
    began = time.monotonic()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    for read in readings(path):
        with pytest.raises(
            UserError, match=r"checkpoint_best\.pt: its records are packed, or larger than it is \(67,108"
        ):
            read()
    state = copy.copy(honest)
    state["model"] = {**honest["model"], "encoder.x": torch.zeros(1).expand(10**9, 10**3)}
    torch.save(state, path)
    for read in readings(path):
        with pytest.raises(UserError, match=r"its weight encoder\.x is larger"):
            read()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("packed", [False, True])
def test_three_gigabytes_that_are_said_to_be_there(packed, tmp_path):
    """A small file whose table of contents says 3 GB, packed or not: nothing of that size is read or made."""
    path = tmp_path / "checkpoint_best.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", bytes(1000))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2") + 24
    content[at : at + 4] = (3 * 10**9).to_bytes(4, "little")
    path.write_bytes(content)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in readings(path):
        with pytest.raises(UserError, match=r"its records are packed, or larger than it is \(3,000,000,000 bytes"):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200 * 1024  # KiB
