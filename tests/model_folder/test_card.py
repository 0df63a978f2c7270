"""The model card: a head that the Hugging Face hub reads, and nothing in it that is not so."""

import argparse
import json
import re
import shlex
import shutil
import textwrap

import pytest
import yaml

from conftest import REPOSITORY
from model_folders import write_model_folder
from rt_plugin import hub
from rt_plugin.__main__ import main
from rt_plugin.console.files import sha256
from rt_plugin.export.card import EXAMPLES
from rt_plugin.pretrain.launch import Devices, launch_command

SHIPPED = sorted((REPOSITORY / "examples" / "checkpoints").glob("*roberta*"))


def read(folder):
    """(head, body) of a card."""
    empty, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert not empty
    return yaml.safe_load(head), body


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_cards_say_what_is_so(folder):
    head, body = read(folder)
    assert head["license"] == "cc-by-sa-3.0" and head["language"] == "en" and head["pipeline_tag"] == "fill-mask"
    assert head["library_name"] == "fairseq" and all(isinstance(tag, str) for tag in head["tags"])
    assert [one["text"].count(head["mask_token"]) for one in head["widget"]] == [1, 1]
    for name in ("Training", "Minimal pairs", "Limits", "Data and licence", "Checksums", "Use"):
        assert f"\n## {name}\n" in body
    assert "| validation loss |" in body and "\n    fairseq-train " in body
    listed = dict(reversed(line.split()) for line in re.findall(r"^    ([0-9a-f]{64}  \S+)$", body, re.MULTILINE))
    assert {"checkpoint_best.pt", "dict.txt", "sentencepiece.bpe.model"} <= listed.keys()
    assert all(sha256(folder / name) == digest for name, digest in listed.items())
    filled = dict(re.findall(r"^\| (.*`<mask>`.*) \| (.*) \|$", body, re.MULTILINE))
    assert len(filled) == len(EXAMPLES) == 10
    model = hub.from_pretrained(str(folder))
    for (sentence, said), best in zip(filled.items(), model.fill_mask(list(EXAMPLES), 3), strict=True):
        first = re.match(r"(.*?) \((\d\.\d\d)\)", said)
        assert sentence.replace("`", "") in EXAMPLES
        assert (first[1] if first[1] != "\u2423" else "") == best[0][2].strip()
        assert float(first[2]) == pytest.approx(best[0][1], abs=0.006)


TASKS_OF_USE = {
    "QNLI": {"labels": ("entailment", "not_entailment"), "pooling": "pair"},
    "STS-B": {"labels": (), "pooling": "apart"},
    "own": {"labels": (), "pooling": "mean"},
    "SST-2": {"labels": ("0", "1")},
}
OWN = {"task": "own", "description": {"texts": ["a"], "label": "b", "score_range": [1, 3]}, "splits": {}}


@pytest.mark.parametrize(
    ("form", "task"),
    [
        *(("fairseq", task) for task in TASKS_OF_USE),
        *(("huggingface", task) for task in TASKS_OF_USE),
        ("onnx", "QNLI"),
    ],
)
def test_what_the_card_says_on_use_runs(form, task, tmp_path, monkeypatch, modules_cache):
    """For one text and two, for classes and scores; what the last line gives is what the model gives."""
    model = write_model_folder(tmp_path / "model", "forward", **TASKS_OF_USE[task])
    (model / "glue.json").write_text(json.dumps(OWN if task == "own" else {"task": task, "splits": {}}))
    monkeypatch.chdir(tmp_path)
    assert main(["export", "model", "out", "--format", form]) == 0
    lines = re.search(r"## Use\n\n((?:    .*\n)+)", read(tmp_path / "out")[1])[1]
    *begin, last = textwrap.dedent(lines).splitlines()
    names = {}
    exec("\n".join(begin), names)
    found = number(eval(last, names))
    texts = ("It is a sentence.", "It is another one.")[: 2 if task in ("QNLI", "STS-B") else 1]
    logits = hub.from_pretrained("model").predict(hub.CLASSIFICATION_HEAD, texts, return_logits=True)[0]
    expected = logits[-1] if len(logits) == 1 or form == "onnx" else logits.softmax(dim=0).max()
    assert found == pytest.approx(expected.item(), abs=0.01)  # weights of 16 bits
    if len(logits) == 1 and form != "onnx":
        assert last.endswith("  # 0 to 1 stands for " + ("0 to 5" if task == "STS-B" else "1 to 3"))


def number(found):
    """The probability, or the last output, in what one text or pair gives."""
    found = found[0] if isinstance(found, list) else found
    if isinstance(found, dict):
        return found["score"]
    return found[1] if isinstance(found, tuple) else float(found[0][-1])


def test_what_the_options_add(pretrained, tmp_path):
    manifest = {"inputs": {"train": [{"path": "/somewhere/books.txt", "bytes": 12345, "sha256": "ab" * 32}]}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "own.txt").write_text("It is a <mask>.\n<mask> | <mask>\n")
    (tmp_path / "notes.md").write_text("## Notes\n\nMine.\n")
    options = ("--data", tmp_path / "data", "--examples", tmp_path / "own.txt", "--notes", tmp_path / "notes.md")
    assert main(["export", *map(str, (pretrained, tmp_path / "out", *options, "--licence", "mit"))]) == 0
    head, body = read(tmp_path / "out")
    assert head["license"] == "mit" and head["widget"][1]["text"] == "<mask> | <mask>"
    assert f"| train | books.txt | 12,345 | `{'ab' * 8}` |" in body and "/somewhere" not in body
    assert body.count("| It is a `<mask>`. |") == 1 and body.count("`<mask>` \\| `<mask>`") == 2
    assert "## Notes\n\nMine." in body


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--licence", "My: own", "--licence My: own: expected a name as the Hugging Face hub has them"),
        ("--examples", "none.txt", "--examples none.txt: cannot be read"),
        ("--data", "none", "none/manifest.json: cannot be read"),
        ("--minimal-pairs", "none", "none/settings.json: cannot be read"),
    ],
)
def test_what_cannot_be_on_a_card(option, value, message, pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(pretrained), "out", option, value]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("It is.", "own.txt, line 3: found no <mask> in 'It is.', expected at least one"),
        (f"{'word ' * 300}<mask>.", "own.txt, line 3 has 304 tokens, the model has positions for 140: shorten it"),
    ],
    ids=["no mask", "too long"],
)
def test_examples_that_cannot_be_filled(line, message, tmp_path, capsys):
    model = write_model_folder(tmp_path / "model", "forward")
    (tmp_path / "own.txt").write_text(f"It is a <mask>.\n\n{line}\n")
    assert main(["export", str(model), str(tmp_path / "out"), "--examples", str(tmp_path / "own.txt")]) == 1
    assert capsys.readouterr().err.strip().endswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("normalization", "language"), [("none", None), ("moses", "de")])
def test_a_language_that_is_not_english_or_not_known(normalization, language, small, tmp_path):
    """Without normalisation the language that the tokenizer's files name is a default."""
    model = shutil.copytree(small, tmp_path / "model")
    settings = {"version": 1, "normalization": normalization, "language": language or "en"}
    (model / "text_normalization.json").write_text(json.dumps(settings))
    assert main(["export", str(model), str(tmp_path / "out")]) == 0
    head, body = read(tmp_path / "out")
    assert head.get("language") == language and "widget" not in head and "## What it fills in" not in body
    assert ("trained on text in one language" in body) == (language is not None) and "English" not in body


def test_examples_that_a_short_model_has_no_positions_for(tmp_path):
    model = write_model_folder(tmp_path / "model", "forward", positions=9)
    assert main(["export", str(model), str(tmp_path / "out")]) == 0
    filled = re.findall(r"^\| (.*`<mask>`.*) \| .* \|$", read(tmp_path / "out")[1], re.MULTILINE)
    assert filled == ["The capital of France is `<mask>`.", "They `<mask>` been waiting for hours."]


def test_minimal_pairs_of_another_checkpoint_are_refused(pretrained, tmp_path, capsys):
    (tmp_path / "p").mkdir()
    settings = {"model": "x", "checkpoint": "0" * 16, "mask": "token", "limit": None, "data": "d", "phenomena": {}}
    (tmp_path / "p" / "settings.json").write_text(json.dumps(settings))
    assert main(["export", str(pretrained), str(tmp_path / "out"), "--minimal-pairs", str(tmp_path / "p")]) == 1
    assert "was measured on another checkpoint than" in capsys.readouterr().err


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_model_folder(tmp_path_factory.mktemp("small") / "model", "forward")


def started(devices, data):
    return shlex.join(launch_command(argparse.Namespace(), devices, [str(data), "--task", "rt_masked_lm"]))


def write_corpus(folder, name):
    """What the card reads of a folder of prepare-corpus with two shards."""
    for shard in ("shard0", "shard1"):
        (folder / shard).mkdir(parents=True)
    manifest = {"inputs": {"train": [{"path": f"/somewhere/{name}", "bytes": 12345, "sha256": "ab" * 32}]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        lambda data: started(Devices("cpu", 1), data),
        lambda data: started(Devices("cpu", 2), data),
        lambda data: started(Devices("gpu", 2), data),
        lambda data: f"/usr/bin/python3 -m rt_plugin fairseq train {data} --task rt_masked_lm",  # from Python 3.14 on
        lambda data: started(Devices("gpu", 8), f"{data}/shard0:{data}/shard1"),
    ],
    ids=["one process", "two on a CPU", "two GPUs", "Python 3.14", "shards"],
)
def test_the_data_of_the_training_are_found(command, small, tmp_path):
    model = shutil.copytree(small, tmp_path / "model")
    (model / "command.txt").write_text(command(write_corpus(tmp_path / "data", "books.txt")) + "\n")
    assert main(["export", str(model), str(tmp_path / "out")]) == 0
    assert f"| train | books.txt | 12,345 | `{'ab' * 8}` |" in read(tmp_path / "out")[1]


@pytest.mark.parametrize(
    "words", ["torchrun -m rt_plugin.pretrain.process", "fairseq-train {0}/a:{0}/b", "fairseq-train"]
)
def test_data_that_one_manifest_does_not_describe_are_left_out(words, small, tmp_path):
    model = shutil.copytree(small, tmp_path / "model")
    for name in ("a", "b"):
        write_corpus(tmp_path / name, f"{name}.txt")
    (model / "command.txt").write_text(words.format(tmp_path))
    assert main(["export", str(model), str(tmp_path / "out")]) == 0
    assert "## Data" not in read(tmp_path / "out")[1]


def test_a_checkpoint_without_a_history_has_no_updates_and_no_rate(small, tmp_path):
    """One that was brought back from transformers: fairseq's default for the rate is not that of a training."""
    folders = [str(tmp_path / name) for name in ("folder", "back", "out")]
    assert main(["export", str(small), folders[0], "--format", "huggingface"]) == 0
    assert "| updates | 7 |" in read(tmp_path / "folder")[1]
    assert main(["import-huggingface", *folders[:2]]) == 0
    assert main(["export", *folders[1:]]) == 0
    body = read(tmp_path / "out")[1]
    assert "| parameters |" in body and "| updates |" not in body and "| learning rate |" not in body
