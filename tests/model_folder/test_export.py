"""Passing a model on: the exported folder is small, says where it is from, and works like the original."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ENVIRONMENT, TRAINING, run_command
from model_folders import write_model_folder
from rt_plugin.console.checksums import read_checksums
from rt_plugin.export import command as export
from rt_plugin.glue import predict as glue_predict
from rt_plugin.model import RecurrentRobertaModel


@pytest.fixture(scope="module")
def trained(data_bin, tmp_path_factory):
    """A training as rt-plugin pretrain leaves it, with options of the recurrence."""
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


def test_a_command_that_is_no_command_is_left_out(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "model")
    (folder / "command.txt").write_text("fairseq-train 'data")
    assert export.main([str(folder), str(tmp_path / "out")]) == 0
    assert "## Training" not in (tmp_path / "out" / "README.md").read_text()


def test_exported_folder_is_small_complete_and_free_of_paths(trained, exported, data_bin):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "checkpoint_best.pt", "dict.txt", "sentencepiece.bpe.model", "text_normalization.json", "README.md",
        "SHA256SUMS",
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


def test_tied_embedding_is_counted_and_written_once(trained, exported, tmp_path):
    """Whether or not the two names share memory in the checkpoint: one that was saved on a GPU holds two copies."""
    parameters = sum(p.numel() for p in RecurrentRobertaModel.from_pretrained(str(exported)).model.parameters())
    copies = shutil.copytree(trained, tmp_path / "copies")
    state = torch.load(copies / "checkpoint_best.pt", weights_only=True)
    state["model"] = {name: value.clone() for name, value in state["model"].items()}
    (copies / "checkpoint_best.pt").unlink()
    torch.save(state, copies / "checkpoint_best.pt")
    assert export.main([str(copies), str(tmp_path / "out")]) == 0
    for folder in (exported, tmp_path / "out"):
        assert f"| parameters | {parameters:,} |" in (folder / "README.md").read_text()
        assert (folder / "checkpoint_best.pt").stat().st_size < 2 * parameters + 100_000


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


@pytest.fixture(scope="module")
def fine_tuned(glue_dir, pretrained, tmp_path_factory):
    """A QNLI classifier and what was exported of it."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    run_command(
        *("fairseq-train", glue_dir / "out" / "QNLI", "--user-dir", "rt_plugin", "--task", "rt_glue"),
        *("--criterion", "rt_glue", "--arch", "recurrent_roberta_tiny", "--optimizer", "adam", "--lr", "1e-3"),
        *("--finetune-from-model", pretrained / "checkpoint_best.pt", "--max-update", "2", "--batch-size", "8"),
        *("--cpu", "--num-workers", "0", "--no-epoch-checkpoints", "--save-dir", folder / "model"),
        *("--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric"),
    )
    assert export.main([str(folder / "model"), str(folder / "exported")]) == 0
    return folder / "model", folder / "exported"


def test_exported_classifier_predicts_and_validates(fine_tuned, glue_dir, tmp_path, capsys):
    for folder in fine_tuned:
        model = RecurrentRobertaModel.from_pretrained(str(folder))
        assert model.task.label_names == ["entailment", "not_entailment"]
        arguments = ("rows", folder, glue_dir / "QNLI" / "dev.tsv", tmp_path / f"{folder.name}.tsv", "--cpu")
        assert glue_predict.main([*map(str, arguments), "--split", "valid"]) == 0
    before, after = (
        [float(line.split("\t")[2]) for line in (tmp_path / f"{folder.name}.tsv").read_text().splitlines()[1:]]
        for folder in fine_tuned
    )
    assert len(before) == 30 and after == pytest.approx(before, abs=1e-2)
    accuracy = capsys.readouterr().out.split("accuracy ")[-1].strip()
    result = run_command(
        *("fairseq-validate", glue_dir / "out" / "QNLI", "--user-dir", "rt_plugin", "--task", "rt_glue", "--cpu"),
        *("--path", fine_tuned[1] / "checkpoint_best.pt", "--batch-size", "8", "--log-format", "json"),
    )
    (line,) = (line for line in result.stdout.splitlines() if "| valid | {" in line)
    assert float(json.loads(line[line.index("{") :])["valid_accuracy"]) == pytest.approx(float(accuracy), abs=1e-3)


def test_model_card_names_the_metric_of_the_best_checkpoint(fine_tuned, exported):
    entry = json.loads((fine_tuned[0] / "dev_metrics.jsonl").read_text().splitlines()[-1])
    card = (fine_tuned[1] / "README.md").read_text()
    assert f"| validation score | {entry['score']:.3f} (in training) |" in card and "loss" not in card
    loss = torch.load(exported / "checkpoint_best.pt", weights_only=True)["extra_state"]["val_loss"]
    assert (
        f"| validation loss | {loss:.3f} (in training; bits a masked token) |" in (exported / "README.md").read_text()
    )


def test_only_errors_of_writing_are_told_as_such(trained, tmp_path, monkeypatch, capsys):
    def fail(*unused):
        raise error

    words, error = [str(trained), str(tmp_path / "out")], RuntimeError("other shapes")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="other shapes"):
        patch.setattr("rt_plugin.export.card.write", fail)
        export.main(words)
    error = OSError("locked")
    monkeypatch.setattr(export, "write_checksums", fail)
    assert export.main(words) == 1
    assert f"{tmp_path}/out: cannot be written (locked); give another" in capsys.readouterr().err


def test_full_disk_is_named(trained, tmp_path):
    """A file size limit stands in for it."""
    result = subprocess.run(
        [sys.executable, "-m", "rt_plugin", "export", trained, tmp_path],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"{tmp_path}: cannot be written (File too large)" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("checkpoint*"))


def test_what_cannot_be_exported_is_named(trained, tmp_path, capsys):
    def error(*arguments):
        assert export.main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err

    assert "no other.pt there; checkpoints in this folder: checkpoint_best.pt, checkpoint_last.pt" in error(
        trained, tmp_path / "out", "--checkpoint", "other.pt"
    )
    assert "is the folder of the training itself" in error(trained, trained)
    (tmp_path / "file").write_text("mine")
    assert "file: is a file; give the folder to write" in error(trained, tmp_path / "file")
    assert "file/out: cannot be written (Not a directory)" in error(trained, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"
    assert "nowhere.md: cannot be read" in error(trained, tmp_path / "out", "--notes", tmp_path / "nowhere.md")
    folder = shutil.copytree(trained, tmp_path / "large")
    state = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    state["model"]["encoder.lm_head.bias"][3] = 1e6
    (folder / "checkpoint_best.pt").unlink()
    torch.save(state, folder / "checkpoint_best.pt")
    assert "1 weights are not finite in float16 (encoder.lm_head.bias is the first)" in error(folder, tmp_path / "out")
    state["model"]["encoder.lm_head.bias"][3] = 0
    state["model"]["encoder.of_another_model"] = torch.zeros(3)
    torch.save(state, folder / "checkpoint_best.pt")
    for form in ("fairseq", "safetensors"):
        assert "encoder.of_another_model" in error(folder, tmp_path / "out", "--format", form)
    (folder / "checkpoint_best.pt").write_bytes(b"no checkpoint")
    assert "checkpoint_best.pt: not a fairseq checkpoint" in error(folder, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("form", ["fairseq", "safetensors", "huggingface"])
def test_files_of_the_model_before_do_not_stay(form, tmp_path):
    """A classifier with a normalisation, then a masked LM without one, into the same folder."""
    before = write_model_folder(tmp_path / "before", "forward", labels=("entailment", "not_entailment"))
    after = write_model_folder(tmp_path / "after", "forward")
    (after / "text_normalization.json").unlink()
    for model, out in ((before, "used"), (after, "used"), (after, "new")):
        assert export.main([str(model), str(tmp_path / out), "--format", form]) == 0
    used, new = ({path.name for path in (tmp_path / out).iterdir()} for out in ("used", "new"))
    assert used == new and not new & {"text_normalization.json", "glue.json", "label_dict.txt"}
    assert read_checksums(tmp_path / "used").keys() == new - {"README.md", "SHA256SUMS"}
    assert (tmp_path / "used" / "dict.txt").read_bytes() == (after / "dict.txt").read_bytes()
