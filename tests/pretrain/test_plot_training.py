"""The curves and the table of several runs."""

import csv
import json
import re
import subprocess
import sys

import pytest

from rt_plugin.pretrain.plot import read_run


def plot(*arguments):
    command = [sys.executable, "-m", "rt_plugin", "plot", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def write_run(folder, loss, tokens=5e4):
    """Two attempts: the first ended after update 30, the second went on from update 20."""
    folder.mkdir()
    updates = [10, 20, 30, 30, 40]
    records = [
        {"split": "train", "update": u, "loss": loss - u / 100, "tokens_per_update": tokens, "seconds": 36.0 * u}
        for u in updates
    ]
    records.insert(2, {"split": "valid", "update": 20, "loss": loss, "perplexity": 2**loss})
    records.append({"split": "valid", "update": 40, "loss": loss - 1, "perplexity": 2 ** (loss - 1)})
    lines = [json.dumps(record) for record in records]
    (folder / "log.jsonl").write_text("\n".join([*lines, lines[0][:30]]))


def test_curves_and_table_of_two_runs(tmp_path):
    for name, loss in (("a", 9.0), ("b", 8.0)):
        write_run(tmp_path / name, loss)
    out = tmp_path / "plots" / "curves.png"
    result = plot(tmp_path / "a", tmp_path / "b" / "log.jsonl", "--out", out)
    assert result.returncode == 0, result.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [row["run"] for row in rows] == ["a", "b"]
    assert [row["updates"] for row in rows] == ["40", "40"]
    assert [float(row["million_tokens"]) for row in rows] == [2.0, 2.0]  # 40 updates of 50,000; none counted twice
    assert [float(row["hours"]) for row in rows] == [0.4, 0.4]
    assert [float(row["validation_loss_bits"]) for row in rows] == [8.0, 7.0]


def test_no_panel_repeats_another(tmp_path):
    """With the same tokens an update in all runs, a panel of tokens would be that of the updates again."""
    for name, tokens in (("a", 5e4), ("b", 5e4), ("c", 1e5)):
        write_run(tmp_path / name, 9.0, tokens)
    for others, texts in (("b", ("updates of 50,000 tokens", "hours")), ("bc", ("updates", "million tokens", "hours"))):
        out = tmp_path / f"{others}.svg"
        result = plot(tmp_path / "a", *(tmp_path / name for name in others), "--out", out)
        assert result.returncode == 0, result.stderr
        labels = re.findall(r"<text [^>]*>((?:updates|million tokens|hours)[^<]*)</text>", out.read_text())
        assert tuple(labels) == texts


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("no record\n", "no record of an update in it")]
)
def test_logs_that_cannot_be_read_are_named(content, message, tmp_path):
    log = tmp_path / "train.log"
    if content:
        log.write_text(content)
    result = plot(log)
    assert result.returncode == 1
    assert result.stderr.startswith(f"rt-plugin plot: error: {log}: {message}")


def test_a_record_cut_off_in_the_middle_is_passed_over(tmp_path):
    """A full disk cut it off, and what followed stood in the same line; what follows is a line of its own now."""
    write_run(tmp_path / "whole", 9.0)
    write_run(tmp_path / "cut", 9.0)
    log = tmp_path / "cut" / "log.jsonl"
    lines = log.read_text().splitlines()
    for rest in (lines[0][:20] + lines[0], lines[0][:20], "", "[]", "7}", '{"split": "train"}', '{"update": 7}'):
        log.write_text("\n".join([*lines[:3], rest, *lines[3:]]))
        assert read_run(tmp_path / "cut") == read_run(tmp_path / "whole"), rest
