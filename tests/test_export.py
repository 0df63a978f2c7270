"""Passing a model on: the exported folder is small, says where it is from, and works like the original."""

import json
import shutil

import pytest
import torch

from conftest import TRAINING, run_command
from rt_plugin import export
from rt_plugin.model import RecurrentRobertaModel


@pytest.fixture(scope="module")
def trained(data_bin, tmp_path_factory):
    """A training as rt-pretrain leaves it, with options of the recurrence."""
    folder = tmp_path_factory.mktemp("trained")
    run_command("fairseq-train", data_bin, *TRAINING, "--recurrence-direction", "alternate", "--save-dir", folder)
    (folder / "command.txt").write_text(f"fairseq-train {data_bin} --save-dir {folder}\n")
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    notes = folder.parent / "notes.md"
    notes.write_text("## Licence\n\nMIT\n")
    assert export.main([str(trained), str(folder), "--notes", str(notes)]) == 0
    return folder


def test_exported_model_predicts_what_the_trained_one_does(trained, exported):
    texts = ("Paris is the capital of <mask>.", "He was <mask> in 1900.")
    before, after = (RecurrentRobertaModel.from_pretrained(str(folder)) for folder in (trained, exported))
    for text in texts:
        tokens = before.encode(text.replace("<mask>", "born"))
        torch.testing.assert_close(before.extract_features(tokens), after.extract_features(tokens), atol=2e-2, rtol=0)
        probabilities = [[p for _, p, _ in model.fill_mask(text)] for model in (before, after)]
        assert probabilities[1] == pytest.approx(probabilities[0], rel=0.05)


def test_exported_folder_is_small_complete_and_free_of_paths(trained, exported, data_bin):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "checkpoint_best.pt", "dict.txt", "sentencepiece.bpe.model", "text_normalization.json", "README.md"
    }  # fmt: skip
    size = (exported / "checkpoint_best.pt").stat().st_size
    state = torch.load(exported / "checkpoint_best.pt", weights_only=True)
    parameters = sum(value.numel() for value in state["model"].values())
    assert size < 2.1 * parameters + 100_000 < (trained / "checkpoint_best.pt").stat().st_size / 4
    assert {value.dtype for value in state["model"].values()} == {torch.float16}
    everything = (exported / "checkpoint_best.pt").read_bytes() + (exported / "README.md").read_bytes()
    for path in (trained, data_bin):
        assert str(path).encode() not in everything
    card = (exported / "README.md").read_text()
    for line in ("`recurrent_roberta_tiny`", "direction: alternate", "| updates | 8 |", "## Licence", "--save-dir"):
        assert line in card


def test_exported_model_validates_and_is_fine_tuned(trained, exported, data_bin, tmp_path):
    options = (
        "--user-dir",
        "rt_plugin",
        "--task",
        "rt_masked_lm",
        "--batch-size",
        "8",
        "--cpu",
        "--log-format",
        "json",
    )
    losses = []
    for folder in (trained, exported):
        result = run_command("fairseq-validate", data_bin, *options, "--path", folder / "checkpoint_best.pt")
        (line,) = (line for line in result.stdout.splitlines() if "| valid | {" in line)
        losses.append(float(json.loads(line[line.index("{") :])["valid_loss"]))
    assert losses[1] == pytest.approx(losses[0], abs=5e-3)
    start = ("--finetune-from-model", exported / "checkpoint_best.pt", "--recurrence-direction", "alternate")
    run_command("fairseq-train", data_bin, *TRAINING, *start, "--max-update", "2", "--save-dir", tmp_path)
    assert (tmp_path / "checkpoint_last.pt").is_file()


def test_what_cannot_be_exported_is_named(trained, tmp_path, capsys):
    def error(*arguments):
        assert export.main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err

    assert "no other.pt there; checkpoints in this folder: checkpoint_best.pt, checkpoint_last.pt" in error(
        trained, tmp_path / "out", "--checkpoint", "other.pt"
    )
    assert "is the folder of the training itself" in error(trained, trained)
    assert "nowhere.md: cannot be read" in error(trained, tmp_path / "out", "--notes", tmp_path / "nowhere.md")
    folder = shutil.copytree(trained, tmp_path / "large")
    state = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    state["model"]["encoder.lm_head.bias"][3] = 1e6
    (folder / "checkpoint_best.pt").unlink()
    torch.save(state, folder / "checkpoint_best.pt")
    assert "1 weights are not finite in float16 (encoder.lm_head.bias is the first)" in error(folder, tmp_path / "out")
    (folder / "checkpoint_best.pt").write_bytes(b"no checkpoint")
    assert "checkpoint_best.pt: not a fairseq checkpoint" in error(folder, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
