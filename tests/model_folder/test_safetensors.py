"""A model without pickle: read by all that reads a checkpoint, and what is wrong with it is named."""

import csv
import json
import shutil
import struct
import sys

import pytest
import torch
from fairseq import checkpoint_utils, hub_utils

from conftest import run_command
from rt_plugin import UserError, hub
from rt_plugin.__main__ import main
from rt_plugin.model_folder.checkpoint import find_checkpoint, model_options, read_checkpoint

NAMES = {"model.safetensors", "rt_plugin.json", "dict.txt", "sentencepiece.bpe.model", "text_normalization.json"}
TEXT = "Paris is the <mask> of France."


@pytest.fixture(scope="module")
def exported(pretrained, tmp_path_factory):
    """A pretrained model in both formats, in float32: (fairseq's, safetensors)."""
    folder = tmp_path_factory.mktemp("exported")
    for form in ("fairseq", "safetensors"):
        arguments = (pretrained, folder / form, "--format", form, "--precision", "float32", "--licence", "mit")
        assert main(["export", *map(str, arguments)]) == 0
    return folder / "fairseq", folder / "safetensors"


def test_the_folder_holds_no_pickle(exported):
    folder = exported[1]
    assert {path.name for path in folder.iterdir()} - {"SHA256SUMS"} == {*NAMES, "README.md"}
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} <= {"F32", "I64"}
    stored = json.loads((folder / "rt_plugin.json").read_text())
    assert stored["tied"] == {"encoder.lm_head.weight": "encoder.sentence_encoder.embed_tokens.weight"}
    assert stored["model"]["arch"] == "recurrent_roberta_tiny" and stored["model"]["recurrence_step_size"] == 1


def test_it_is_the_same_checkpoint(exported):
    before, after = (read_checkpoint(find_checkpoint(folder, "checkpoint_best.pt")) for folder in exported)
    assert before["model"].keys() == after["model"].keys()
    assert all(before["model"][name].equal(weight) for name, weight in after["model"].items())
    assert vars(before["cfg"]["model"]) == vars(after["cfg"]["model"])
    for name in ("extra_state", "optimizer_history"):
        assert json.loads(json.dumps(before[name])) == after[name]
    assert model_options(exported[0] / "checkpoint_best.pt") == model_options(exported[1] / "model.safetensors")


def test_the_hub_and_fairseq_load_it(exported):
    before, after = (hub.from_pretrained(str(folder)) for folder in exported)
    assert before.fill_mask(TEXT) == after.fill_mask(TEXT)
    loaded = hub_utils.from_pretrained(str(exported[1]), "model.safetensors")["models"][0]
    (again,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(exported[1] / "model.safetensors")])
    for model in (loaded, again):
        assert all(weight.equal(model.state_dict()[name]) for name, weight in after.model.state_dict().items())


def test_commands_read_it(exported, data_bin, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("Paris is old.\nIt is.\n")
    scores = []
    for folder in exported:
        assert main(["score", str(tmp_path / "text.txt"), "--model", str(folder)]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1] and scores[0].count("\n") == 3
    assert (
        main(
            [
                "held-out",
                str(exported[1]),
                "--data",
                str(data_bin),
                "--out",
                str(tmp_path / "h"),
                "--split",
                "valid",
                "--no-plots",
            ]
        )
        == 0
    )
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"sentence_good": "It is.", "sentence_bad": "It are.", "UID": "agreement"}\n')
    assert main(["minimal-pairs", str(exported[1]), str(pairs), "--out", str(tmp_path / "p")]) == 0
    card = ("export", exported[1], tmp_path / "again", "--format", "safetensors", "--minimal-pairs", tmp_path / "p")
    assert main([*map(str, card)]) == 0
    assert "| mean over paradigms | 1 |" in (tmp_path / "again" / "README.md").read_text()


def test_it_is_validated_and_trained_on(exported, data_bin, train_here, tmp_path):
    losses = []
    for path in (exported[0] / "checkpoint_best.pt", exported[1] / "model.safetensors"):
        result = run_command(
            *("fairseq-validate", data_bin, "--user-dir", "rt_plugin", "--task", "rt_masked_lm", "--cpu"),
            *("--batch-size", "8", "--path", path, "--log-format", "json"),
        )
        (line,) = (line for line in result.stdout.splitlines() if "| valid | {" in line)
        losses.append(json.loads(line[line.index("{") :])["valid_loss"])
    assert losses[0] == losses[1]
    weights = []
    for path in (exported[0] / "checkpoint_best.pt", exported[1] / "model.safetensors"):
        for option in ("--finetune-from-model", "--restore-file"):
            extra = ["--reset-optimizer", "--reset-dataloader", "--reset-meters"] if option == "--restore-file" else []
            folder = train_here(option, path, *extra, "--max-update", "2" if not extra else "10")
            weights.append(read_checkpoint(folder / "checkpoint_last.pt")["model"])
    for one, other in zip(weights[:2], weights[2:], strict=True):
        assert all(weight.equal(other[name]) for name, weight in one.items())


def test_a_sweep_starts_from_it(exported, glue_dir, tmp_path, monkeypatch):
    """rt-plugin finetune-glue, and with it the task rt_glue: the same numbers as from fairseq's file."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = (
        "--tasks",
        "QNLI",
        "--lr",
        "1e-3",
        "--seeds",
        "3",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--threads",
        "1",
    )
    rows = []
    for folder in exported:
        command = ("finetune-glue", glue_dir / "out", tmp_path / folder.name, "--model", folder, *options)
        assert main([*map(str, command)]) == 0
        with (tmp_path / folder.name / "results.csv").open(newline="") as file:
            rows.append([{**row, "model": "", "seconds": "", "checkpoint": ""} for row in csv.DictReader(file)])
    assert len(rows[0]) == 1 and rows[0] == rows[1]


def test_a_classifier_of_it(exported, glue_dir, tmp_path):
    """Fine-tuned, passed on as safetensors: predict-glue, classify, fairseq-validate, and the start of another task."""
    start = ("--finetune-from-model", exported[1] / "model.safetensors", "--arch", "recurrent_roberta_tiny")
    training = (
        *("--user-dir", "rt_plugin", "--task", "rt_glue", "--criterion", "rt_glue", "--optimizer", "adam"),
        *("--lr", "1e-3", "--max-update", "2", "--batch-size", "8", "--cpu", "--num-workers", "0"),
        *("--no-epoch-checkpoints", "--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric"),
    )
    before, after, data = tmp_path / "before", tmp_path / "after", glue_dir / "out" / "QNLI"
    run_command("fairseq-train", data, *training, *start, "--save-dir", before)
    assert main(["export", str(before), str(after), "--format", "safetensors", "--precision", "float32"]) == 0
    assert not (after / "checkpoint_best.pt").exists()
    predictions, accuracies = [], []
    for folder, name in ((before, "checkpoint_best.pt"), (after, "model.safetensors")):
        out = tmp_path / f"{folder.name}.tsv"
        rows = ("predict-glue", "rows", folder, glue_dir / "QNLI" / "dev.tsv", out, "--cpu", "--split", "valid")
        assert main([*map(str, rows)]) == 0
        predictions.append(out.read_text())
        options = ("--task", "rt_glue", "--cpu", "--batch-size", "8", "--log-format", "json")
        result = run_command("fairseq-validate", data, "--user-dir", "rt_plugin", *options, "--path", folder / name)
        (line,) = (line for line in result.stdout.splitlines() if "| valid | {" in line)
        accuracies.append(json.loads(line[line.index("{") :])["valid_accuracy"])
    assert predictions[0] == predictions[1] and accuracies[0] == accuracies[1]
    loaded = [hub.from_pretrained(str(folder)) for folder in (before, after)]
    assert loaded[0].classify("Who won?", "They won.") == loaded[1].classify("Who won?", "They won.")
    again = ("--finetune-from-model", after / "model.safetensors", "--arch", "recurrent_roberta_tiny")
    result = run_command(
        "fairseq-train", glue_dir / "out" / "STS-B", *training, *again, "--save-dir", tmp_path / "other"
    )
    assert "was fine-tuned on QNLI: its head is left out" in result.stdout + result.stderr


def test_exported_back(exported, tmp_path):
    assert main(["export", str(exported[1]), str(tmp_path / "back"), "--precision", "float32"]) == 0
    before, after = (read_checkpoint(folder / "checkpoint_best.pt") for folder in (exported[0], tmp_path / "back"))
    assert all(before["model"][name].equal(weight) for name, weight in after["model"].items())


def test_one_format_a_folder(exported, tmp_path, capsys):
    out = shutil.copytree(exported[1], tmp_path / "out")
    assert main(["export", str(exported[0]), str(out)]) == 1
    assert "holds model.safetensors, the format safetensors; give another folder" in capsys.readouterr().err


def changed(**values):
    def change(folder):
        path = folder / "rt_plugin.json"
        stored = json.loads(path.read_text())
        for name, value in values.items():
            group, _, option = name.partition("__")
            stored.__setitem__(group, value) if not option else stored[group].__setitem__(option, value)
        path.write_text(json.dumps(stored))

    return change


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"model\.safetensors cannot be read \(.* bytes; .*\): it is cut off or damaged"),
        (lambda folder: (folder / "rt_plugin.json").unlink(), r"rt_plugin\.json: no such file"),
        (written("rt_plugin.json", "{"), r"rt_plugin\.json: cannot be read"),
        (written("rt_plugin.json", '{"format": NaN}'), r"cannot be read \(NaN is no number of JSON\)"),
        (written("rt_plugin.json", "[]"), r"not a configuration of rt-plugin export"),
        (changed(version=2), r"version 2, expected 1; use the version of rt-plugin that wrote it"),
        (changed(tied={"a": "b"}), r"says that a is b, which cannot be"),
        (changed(tied={"a": ["b"]}), r"says that a is \['b'\], which cannot be"),
        (changed(tied=[]), r'"tied" is no table of names'),
        (changed(model__encoder_layers="2"), r"option encoder_layers is '2', which it cannot be"),
        (changed(model__encoder_layers=99), r"says encoder_layers 99, but its weights have at most 2"),
        (changed(model__arch="lightconv_lm"), r"the architecture 'lightconv_lm', which is not let in"),
        (changed(optimizer_history=3), r'"optimizer_history" is no list of updates'),
        (changed(extra_state=[3]), r'"extra_state" is no table'),
        (changed(task__nothing={"a": [1]}), ""),
    ],
)
def test_what_is_wrong_is_named(damage, message, exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported[1], folder)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    damage(folder)
    if not message:
        assert hub.from_pretrained(str(folder)).fill_mask(TEXT)
        return
    with pytest.raises(UserError, match=message):
        hub.from_pretrained(str(folder))


def test_without_the_package(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"needs the package safetensors: pip install safetensors"):
        hub.from_pretrained(str(exported[1]))
    assert hub.from_pretrained(str(exported[0])).fill_mask(TEXT)


def test_half_precision_and_other_types(pretrained, tmp_path):
    for precision in ("float16", "bfloat16"):
        out = tmp_path / precision
        assert main(["export", str(pretrained), str(out), "--format", "safetensors", "--precision", precision]) == 0
        weights = read_checkpoint(out / "model.safetensors")["model"]
        assert {w.dtype for w in weights.values() if w.is_floating_point()} == {getattr(torch, precision)}
