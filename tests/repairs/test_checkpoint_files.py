"""Checkpoint files: whole or not at all, and named where they cannot be read."""

import argparse
import os
import shutil
import time

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from conftest import TRAINING, run_command, user_error
from repair_cases import with_and_without
from rt_plugin import UserError


def test_checked_checkpoints(tmp_path):
    whole, half = tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint_best.pt"
    torch.save({"model": torch.zeros(5000)}, whole)
    half.write_bytes(whole.read_bytes()[:9000])

    def load():
        with pytest.raises(UserError, match=r"checkpoint_best\.pt cannot be read \(9,000 bytes; .*checkpoint_last\.pt"):
            checkpoint_utils.load_checkpoint_to_cpu(str(half))

    assert not isinstance(with_and_without("checked_checkpoints", load), UserError)


def test_atomic_checkpoint_copies(tmp_path, monkeypatch):
    """A copy that fails half-way leaves the file of that name as it was."""
    source, target = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"
    source.write_bytes(b"new" * 1000)

    def no_links(*_):
        raise OSError("no hard links here")

    def copy_half(src, dst, **_):
        with open(dst, "wb") as file:
            file.write(b"new")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(shutil, "copyfile", copy_half)

    def copy():
        target.write_bytes(b"old")
        with pytest.raises(OSError if target.read_bytes() == b"" else Exception):
            PathManager.copy(str(source), str(target), overwrite=True)
        assert target.read_bytes() == b"old"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint1.pt", "checkpoint_last.pt"]

    assert isinstance(with_and_without("atomic_checkpoint_copies", copy), AssertionError)


@pytest.mark.parametrize("links", [True, False])
def test_checkpoint_copies_are_complete(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    for content in (b"first", b"second"):
        checkpoint_utils.torch_persistent_save({"x": content}, str(source))
        for _ in range(2):  # twice: both names are one file then
            assert PathManager.copy(str(source), str(target), overwrite=True)
        assert torch.load(target, weights_only=True) == {"x": content}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]


def test_atomic_checkpoint_writes(tmp_path, monkeypatch):
    """A first attempt that fails half-way must not spoil the second one, nor leave a .tmp file when all fail."""
    monkeypatch.setattr(checkpoint_utils.time, "sleep", lambda seconds: None)
    path, save, failures = tmp_path / "checkpoint_last.pt", torch.save, []

    def save_half_at_first(obj, file, **kwargs):
        if not failures:
            failures.append(1)
            file.write(b"x" * 1000)
            raise OSError(28, "No space left on device")
        save(obj, file, **kwargs)

    def write():
        failures.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "save", save_half_at_first)
            checkpoint_utils.torch_persistent_save({"x": 1}, str(path))
        assert path.read_bytes()[:2] == b"PK"
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_last.pt"]

    assert isinstance(with_and_without("atomic_checkpoint_writes", write), AssertionError)


def test_full_disk_leaves_the_checkpoint_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    path = tmp_path / "checkpoint_last.pt"
    path.write_bytes(b"old")

    def full(obj, file, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left on device.*saved before are unharmed"):
        checkpoint_utils.torch_persistent_save({"x": 1}, str(path))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_last.pt"]


def test_other_architecture_in_the_same_folder_is_named(pretrained, data_bin):
    arguments = (data_bin, *TRAINING, "--save-dir", pretrained, "--max-update", "9", "--encoder-embed-dim", "64")
    assert "its model differs from the one asked for" in user_error(run_command("fairseq-train", *arguments, ok=False))


def test_other_model_in_the_folder(tmp_path):
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path)))

    class Trainer(argparse.Namespace):
        def load_checkpoint(self, path, *args, **kwargs):
            try:
                raise RuntimeError("size mismatch for a.weight")
            except RuntimeError:
                raise Exception(f"Cannot load model parameters from checkpoint {path}; please ensure") from None

    def load():
        with pytest.raises(
            UserError, match=r"checkpoint_last\.pt: its model differs .*\(size mismatch for a\.weight\)"
        ):
            checkpoint_utils.load_checkpoint(cfg, Trainer(checkpoint_suffix="", task=None))

    assert "please ensure" in str(with_and_without("other_model_in_the_folder", load))


def test_other_precision_in_the_folder(train_here):
    folder = train_here("--max-update", "1")

    def go_on():
        with pytest.raises(UserError, match=r"checkpoint_last\.pt: .*precision .*\(FairseqAdam vs .*FP16Optimizer\)"):
            train_here("--max-update", "2", "--bf16", save_dir=folder)

    assert "Optimizer does not match" in str(with_and_without("other_precision_in_the_folder", go_on))
    train_here("--max-update", "2", "--bf16", "--reset-optimizer", save_dir=folder)


def test_save_folder_without_dummy(tmp_path):
    """fairseq writes `dummy` and removes it: through a link, and over a file of that name."""
    precious, dummy = tmp_path / "precious", tmp_path / "dummy"

    def check():
        precious.write_text("kept")
        dummy.unlink(missing_ok=True)
        dummy.symlink_to(precious)
        checkpoint_utils.verify_checkpoint_directory(str(tmp_path))
        assert precious.read_text() == "kept" and dummy.is_symlink()

    assert isinstance(with_and_without("save_folder_without_dummy", check), AssertionError)
    checkpoint_utils.verify_checkpoint_directory(str(tmp_path / "new"))
    assert not [*(tmp_path / "new").iterdir()]
    with pytest.raises(UserError, match=r"--save-dir .*precious.folder: cannot be written \(Not a directory"):
        checkpoint_utils.verify_checkpoint_directory(str(precious / "folder"))
