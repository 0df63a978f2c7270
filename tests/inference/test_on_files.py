"""fill-mask, classify and embed on the command line: what they write, also after a kill, and what they refuse."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from conftest import ENVIRONMENT, REPOSITORY, SAMPLE
from rt_plugin import hub
from rt_plugin.__main__ import main
from rt_plugin.errors import UserError
from rt_plugin.glue.specs import BY_NAME
from rt_plugin.inference import embed

MODEL = str(REPOSITORY / "examples" / "checkpoints" / "recurrent_roberta_mini")
# rt-plugin embed with small parts, killed when the third one is asked for
KILLED = """
import os, signal, sys
from rt_plugin.inference import embed
embed.LINES_AT_A_TIME = 8
whole, parts = embed._embed_lines, []
def some(*arguments):
    parts.append(1)
    return whole(*arguments) if len(parts) < 4 else os.kill(os.getpid(), signal.SIGKILL)
embed._embed_lines = some
embed.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """60 short lines, blank ones and odd ones among them."""
    lines = (SAMPLE / "valid.txt").read_text(encoding="utf-8").splitlines()
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    short = [line[:60] for line in lines][:57]
    path.write_text("\n".join([*short, "", "Snow \u4e2d fell \u2028 here.", "Last."]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def vectors(text):
    lines = text.read_text(encoding="utf-8").split("\n")[:-1]
    return hub.from_pretrained(MODEL).embed(lines)


def test_embed_writes_a_row_a_line(text, vectors, tmp_path, capsys):
    assert main(["embed", str(text), str(tmp_path / "v.npy"), "--model", MODEL]) == 0
    found = np.load(tmp_path / "v.npy", mmap_mode="r")
    assert found.shape == vectors.shape == (60, 256) and found.dtype == np.float32
    np.testing.assert_allclose(found, vectors, rtol=0, atol=1e-6)
    assert "v.npy: 60 vectors of 256 numbers" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_embed_goes_on_after_a_kill_with_the_same_bytes(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed, "LINES_AT_A_TIME", 8)
    arguments = [str(text), str(tmp_path / "killed.npy"), "--model", MODEL, "--cpu"]
    result = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=REPOSITORY, env=ENVIRONMENT, timeout=300)
    assert result.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.npy").exists()
    (partial,) = tmp_path.glob(".killed.npy.*.partial")
    with partial.open("ab") as file:
        file.write(b"half a row")
    read = []
    whole = embed._embed_lines
    monkeypatch.setattr(
        embed, "_embed_lines", lambda args, model, lines: read.extend(lines) or whole(args, model, lines)
    )
    assert main(["embed", *arguments]) == 0
    assert "goes on after line 16" in capsys.readouterr().err
    assert read[0][0] == 17 and len(read) == 44
    assert main(["embed", str(text), str(tmp_path / "whole.npy"), "--model", MODEL, "--cpu"]) == 0
    assert (tmp_path / "killed.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", [["--pooling", "first"], ["--exact"], ["--precision", "bfloat16"], "text"])
def test_embed_begins_anew_where_something_is_another(change, text, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "LINES_AT_A_TIME", 8)
    whole, parts = embed._embed_lines, []

    def stopped(*arguments):
        parts.append(1)
        if len(parts) == 4:
            raise KeyboardInterrupt
        return whole(*arguments)

    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    arguments = ["embed", str(copy), str(tmp_path / "v.npy"), "--model", MODEL]
    monkeypatch.setattr(embed, "_embed_lines", stopped)
    assert main(arguments) == 130
    if change == "text":
        copy.write_bytes(text.read_bytes().replace(b"e", b"i", 1))
    read = []
    monkeypatch.setattr(
        embed, "_embed_lines", lambda args, model, lines: read.extend(lines) or whole(args, model, lines)
    )
    assert main([*arguments, *([] if change == "text" else change)]) == 0
    assert len(read) == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.txt", "v.npy"]


def test_what_embed_refuses(text, tmp_path, capsys):
    def error(*arguments):
        assert main(["embed", *map(str, arguments), "--model", MODEL]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "expected the name of a file that ends with .npy" in error(text, tmp_path / "v.txt")
    assert "cannot read the text file" in error(tmp_path / "none.txt", tmp_path / "v.npy")
    (tmp_path / "long.txt").write_text(f"short\n{'word ' * 300}\n")
    line = error(tmp_path / "long.txt", tmp_path / "v.npy")
    assert "long.txt, line 2: found 302 tokens, the model has positions for 128; shorten the line" in line
    assert main(["embed", str(tmp_path / "long.txt"), str(tmp_path / "v.npy"), "--model", MODEL, "--truncate"]) == 0
    assert np.load(tmp_path / "v.npy").shape == (2, 256)


def test_fill_mask(tmp_path, capsys):
    sentence = "The president of the <mask> States."
    assert main(["fill-mask", sentence, "--model", MODEL, "--topk", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  The president of the United States.") and float(first.split()[0]) > 0.5 > float(
        second.split()[0]
    )
    (tmp_path / "in.txt").write_text(f"{sentence}\n\nIt was <mask> in <mask>.\n")
    arguments = [
        "fill-mask",
        "--file",
        str(tmp_path / "in.txt"),
        "--out",
        str(tmp_path / "out.jsonl"),
        "--model",
        MODEL,
    ]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["line"], row["sentence"], row["mask"]) for row in rows] == [
        (1, sentence, 0), (3, "It was <mask> in <mask>.", 0), (3, "It was <mask> in <mask>.", 1)
    ]  # fmt: skip
    assert rows[0]["tokens"][0]["token"] == " United" and len(rows[1]["tokens"]) == 5


@pytest.fixture
def classifier(monkeypatch):
    """The model with an untrained head of two labels."""
    loaded = hub.from_pretrained(MODEL)
    loaded.register_classification_head(hub.CLASSIFICATION_HEAD, num_classes=2)
    loaded.task.label_names = ["no", "yes"]
    monkeypatch.setattr("rt_plugin.inference.loading.from_pretrained", lambda *_: loaded.eval())
    return loaded


def test_classify(classifier, tmp_path, capsys):
    texts = ["It is good.", "Is it?\tIt is."]
    assert main(["classify", *texts, "--model", MODEL, "--exact"]) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = [classifier.classify(texts[0], exact=True), classifier.classify("Is it?", "It is.", exact=True)]
    assert lines == [f"{label}\t{p:.4f}\t{text}" for text, (label, p) in zip(texts, wanted, strict=True)]
    (tmp_path / "in.txt").write_text("\n\n".join(texts))
    assert main(["classify", "--file", str(tmp_path / "in.txt"), "--model", MODEL, "--format", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["line"], row["text"]) for row in rows] == [(1, texts[0]), (3, texts[1])]


@pytest.mark.parametrize(
    ("task", "line", "found"),
    [
        ("SST-2", "id\tIt is.", "found 2 texts, expected 1, as SST-2 has (sentence)"),
        ("QNLI", "It is.", "found 1 text, expected 2, as QNLI has (question, sentence)"),
        ("QNLI", "Is it?\tIt is.\t1", "found 3 texts, expected 2, as QNLI has (question, sentence)"),
    ],
)
def test_texts_that_the_model_was_not_fine_tuned_on(task, line, found, classifier, tmp_path, capsys):
    classifier.task.glue_task = BY_NAME[task]
    right = "\t".join(["It is."] * len(BY_NAME[task].texts))
    (tmp_path / "in.txt").write_text(f"{right}\n\n{line}\n")
    assert main(["classify", "--file", str(tmp_path / "in.txt"), "--model", MODEL]) == 1
    assert f"in.txt, line 3: {found}; a tab stands between the texts of a pair" in capsys.readouterr().err
    assert main(["classify", line, "--model", MODEL]) == 1
    assert f"error: text 1: {found}" in capsys.readouterr().err
    with pytest.raises(UserError, match=re.escape(f"classify: sentence 1: {found}; a pair is a tuple of two texts")):
        classifier.classify([tuple(right.split("\t")), tuple(line.split("\t"))])


def test_what_they_refuse(tmp_path, capsys):
    def error(*arguments):
        assert main([*map(str, arguments), "--model", MODEL]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "text 1: found no <mask> in 'No.', expected at least one" in error("fill-mask", "No.")
    assert "expected either TEXT, in quotation marks, or --file FILE" in error("fill-mask")
    (tmp_path / "in.txt").write_text("A <mask>.\nNo.\n")
    assert "in.txt, line 2: found no <mask>" in error("fill-mask", "--file", tmp_path / "in.txt")
    (tmp_path / "long.txt").write_text(f"A <mask>.\n\n{'word ' * 300}<mask>.\n")
    line = error("fill-mask", "--file", tmp_path / "long.txt", "--topk", "2")
    assert line.endswith(
        "long.txt, line 3 has 304 tokens, the model has positions for 128: shorten it, or use --truncate"
    )
    line = error("fill-mask", "--file", tmp_path / "long.txt", "--truncate")
    assert line.endswith("long.txt, line 3 has a <mask> behind its first 128 tokens; shorten it")
    assert "is the input itself" in error("fill-mask", "--file", tmp_path / "in.txt", "--out", tmp_path / "in.txt")
    assert "this checkpoint has no class labels" in error("classify", "A text.")
