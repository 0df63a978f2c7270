"""Minimal pairs: reading, scoring, going on after an interruption, accuracies and their intervals, the report."""

import csv
import json
import math
import re
import shutil

import pytest

from conftest import REPOSITORY
from rt_plugin import UserError, hub
from rt_plugin.evaluation import minimal_pairs
from rt_plugin.evaluation.pairs import accuracy_of, mean_of, paired_difference, read_paradigms
from rt_plugin.evaluation.pairs_report import FILES
from rt_plugin.inference.likelihood import PseudoLikelihood

BLIMP = REPOSITORY / "examples" / "minimal_pairs" / "blimp_sample.jsonl"


def write_pairs(path, pairs, **fields):
    lines = (json.dumps({"sentence_good": good, "sentence_bad": bad, **fields}) + "\n" for good, bad in pairs)
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def data(tmp_path):
    """Three paradigms of two phenomena; in the first, one pair of three is a tie after normalisation."""
    folder = tmp_path / "data"
    folder.mkdir()
    ties = [("It is old.", "It  is old."), ("It is old.", "Is it old."), ("They are here.", "They is here.")]
    write_pairs(folder / "a.jsonl", ties, UID="ties", linguistics_term="x", field="f")
    write_pairs(folder / "b.jsonl", [(f"There are {i} cats.", f"There is {i} cats.") for i in range(6)], field="x")
    write_pairs(folder / "c.jsonl", [("A:\nYes, it is.", "A:\nYes, is it.")], field="y")
    return folder


def run(pretrained, data, out, *options):
    arguments = [pretrained, data, "--out", out, "--checkpoint", "checkpoint_last.pt", "--cpu", *options]
    return minimal_pairs.main([*map(str, arguments)])


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_shipped_sample():
    paradigms = read_paradigms(BLIMP)
    assert len(paradigms) == 67
    assert {len(paradigm.pairs) for paradigm in paradigms} == {5}
    assert len({paradigm.phenomenon for paradigm in paradigms}) == 13
    assert read_paradigms(BLIMP.parent) == paradigms


def test_scores_and_accuracies(pretrained, data, tmp_path, capsys):
    assert run(pretrained, data, tmp_path / "out", "--mask", "word", "--name", "tiny") == 0
    scorer = PseudoLikelihood(hub.from_pretrained(str(pretrained), "checkpoint_last.pt"), "word")
    for paradigm in read_paradigms(data):
        found = rows(tmp_path / "out" / "scores" / f"{paradigm.name}.csv")
        for pair, row in zip(paradigm.pairs, found, strict=True):
            good, bad = (scorer([scorer.encode(text)])[0].sum() for text in (pair.good, pair.bad))
            assert [float(row["good"]), float(row["bad"])] == pytest.approx([good, bad], abs=1e-4)
    by_name = {row["paradigm"]: row for row in rows(tmp_path / "out" / "paradigms.csv")}
    assert list(by_name) == ["b", "c", "ties"]
    assert by_name["ties"]["ties"] == "1" and int(by_name["ties"]["correct"]) <= 2
    for name, row in by_name.items():
        scores = rows(tmp_path / "out" / "scores" / f"{name}.csv")
        correct = sum(float(s["good"]) > float(s["bad"]) for s in scores)
        assert int(row["correct"]) == correct and int(row["pairs"]) == len(scores)
        assert float(row["accuracy"]) == pytest.approx(correct / len(scores), abs=1e-6)
        assert (row["model"], row["mask"]) == ("tiny", "word")
    means = {row["phenomenon"]: float(row["accuracy"]) for row in rows(tmp_path / "out" / "phenomena.csv")}
    share = {name: float(row["accuracy"]) for name, row in by_name.items()}
    assert means["x"] == pytest.approx((share["b"] + share["ties"]) / 2, abs=1e-5)
    assert means["mean over paradigms"] == pytest.approx(sum(share.values()) / 3, abs=1e-5)
    assert means["mean over phenomena"] == pytest.approx((means["x"] + means["y"]) / 2, abs=1e-5)
    assert "10 pairs of 3 paradigms, 1 ties" in capsys.readouterr().out
    assert all((tmp_path / "out" / name).stat().st_size for name in FILES)


def test_an_interrupted_run_goes_on(pretrained, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    scored = []
    original = minimal_pairs.score_paradigm

    def interrupted(scorers, paradigm, progress):
        if scored:
            raise KeyboardInterrupt
        scored.append(paradigm.name)
        return original(scorers, paradigm, progress)

    monkeypatch.setattr(minimal_pairs, "score_paradigm", interrupted)
    assert run(pretrained, data, out) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [path.name for path in (out / "scores").iterdir()] == ["b.csv"]
    (out / "scores" / "b.csv").write_text("line,good,bad\n" + "1,-1.0,-2.0\n" * 6)  # to be known again
    monkeypatch.setattr(minimal_pairs, "score_paradigm", original)
    assert run(pretrained, data, out) == 0
    assert "1 of 3 paradigms are done" in capsys.readouterr().err
    assert rows(out / "paradigms.csv")[0]["correct"] == "6"


@pytest.mark.parametrize("option", [("--mask", "word"), ("--limit", "2")])
def test_a_folder_holds_the_results_of_one_setting(pretrained, data, tmp_path, capsys, option):
    assert run(pretrained, data, tmp_path / "out") == 0
    assert run(pretrained, data, tmp_path / "out", *option) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"rt-plugin minimal-pairs: error: {tmp_path / 'out'}: holds results with {option[0][2:]} ")


def test_a_folder_holds_the_results_of_one_data_set(pretrained, data, tmp_path, capsys):
    assert run(pretrained, data, tmp_path / "out") == 0
    write_pairs(data / "c.jsonl", [("Another one.", "One another.")], field="y")
    assert run(pretrained, data, tmp_path / "out") == 1
    assert "holds results with data " in capsys.readouterr().err


def test_a_sample_is_always_the_same(pretrained, data, tmp_path):
    lines = []
    for name in ("one", "two"):
        assert run(pretrained, data, tmp_path / name, "--limit", "2") == 0
        lines.append([row["line"] for row in rows(tmp_path / name / "scores" / "b.csv")])
    assert lines[0] == lines[1] and len(lines[0]) == 2
    assert len(rows(tmp_path / "one" / "scores" / "c.csv")) == 1


def test_models_side_by_side(pretrained, data, tmp_path, capsys):
    assert run(pretrained, data, tmp_path / "word", "--mask", "word", "--name", "first") == 0
    assert run(pretrained, data, tmp_path / "few", "--limit", "1", "--name", "third") == 0
    beside = ("--beside", tmp_path / "word", tmp_path / "few")
    assert run(pretrained, data, tmp_path / "token", "--name", "second", *beside) == 0
    report = (tmp_path / "token" / "report.md").read_text(encoding="utf-8")
    assert "second (token)" in report and "first (word)" in report
    assert "second (token) - first (word), mean over paradigms: " in report
    assert "third (token) has read other pairs" in report
    assert run(pretrained, data, tmp_path / "token", "--beside", tmp_path / "nothing") == 1
    assert "expected a folder that rt-plugin minimal-pairs has written" in capsys.readouterr().err


def test_both_ways_of_masking_at_once(pretrained, data, tmp_path, capsys):
    """As one after the other; what one has scored before stays as it is."""
    for mask in ("token", "word"):
        assert run(pretrained, data, tmp_path / f"{mask} alone", "--mask", mask) == 0
    both = tmp_path / "both"
    assert run(pretrained, data, both, "--mask", "token", "word") == 0
    capsys.readouterr()
    shutil.copytree(both, tmp_path / "copy")
    for mask in ("token", "word"):
        for name in ("b", "c", "ties"):
            alone, found = (
                [float(row[column]) for row in rows(folder / "scores" / f"{name}.csv") for column in ("good", "bad")]
                for folder in (tmp_path / f"{mask} alone", both / mask)
            )
            assert found == pytest.approx(alone, abs=1e-4)
        assert rows(both / mask / "phenomena.csv")[0]["mask"] == mask
    (both / "word" / "scores" / "b.csv").unlink()
    (both / "token" / "scores" / "b.csv").write_text("line,good,bad\n" + "1,-1.0,-2.0\n" * 6)  # to be known again
    assert run(pretrained, data, both, "--mask", "token", "word", "--name", "again", "--beside", tmp_path / "copy") == 0
    assert "2 of 3 paradigms are done" in capsys.readouterr().err
    assert rows(both / "token" / "paradigms.csv")[0]["correct"] == "6"
    assert len(rows(both / "word" / "scores" / "b.csv")) == 6
    report = (both / "word" / "report.md").read_text(encoding="utf-8")
    assert "again (word) - pretrained0 (word), mean over paradigms: +0.0" in report


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: found '[1]', expected a JSON object"),
        ('{"sentence_good": "A."}', "line 2: found sentence_bad None, expected a sentence"),
        ('{"sentence_good": " ", "sentence_bad": "A."}', "line 2: found sentence_good ' ', expected a sentence"),
        ('{"sentence_good": "A.", "sentence_bad": "B.", "UID": "../x"}', "line 2: found UID '../x'"),
        ('{"sentence_good": "A.", "sentence_bad": "B.", "field": "y"}', "line 2: found phenomenon 'y', expected 'x'"),
    ],
)
def test_broken_lines_are_named(pretrained, tmp_path, capsys, line, message):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [("It is.", "Is it.")], field="x")
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert run(pretrained, path, tmp_path / "out") == 1
    assert f"{path}, {message}" in capsys.readouterr().err.splitlines()[-1]


def test_a_sentence_that_is_too_long(pretrained, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [("It is.", "Is it."), ("It is.", "word " * 200)])
    assert run(pretrained, path, tmp_path / "out") == 1
    assert f"{path}, line 2: found " in capsys.readouterr().err.splitlines()[-1]


def test_a_sentence_of_which_the_tokenizer_leaves_nothing(pretrained, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [("It is.", "Is it."), ("It is.", "\u200b")])
    assert run(pretrained, path, tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(f"{path}, line 2: found no text, expected a sentence; leave the pair out")


def test_a_file_whose_name_is_no_paradigms(tmp_path):
    path = tmp_path / "subject verb.jsonl"
    write_pairs(path, [("It is.", "Is it.")])
    message = (
        f"{path}: the file's name is the paradigm's where lines have no UID: found 'subject verb', expected a name"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        read_paradigms(path)
    write_pairs(path, [("It is.", "Is it.")], UID="subject_verb")
    assert [paradigm.name for paradigm in read_paradigms(path)] == ["subject_verb"]


def test_a_folder_without_pairs(tmp_path):
    with pytest.raises(UserError, match=r"no files \*\.jsonl there"):
        read_paradigms(tmp_path)


def test_wilsons_interval():
    """8 of 10: the textbook's 0.490 and 0.943; a tie is wrong, and none right is no certainty."""
    accuracy = accuracy_of([(1, 0)] * 8 + [(0, 1), (0.5, 0.5)])
    assert (accuracy.pairs, accuracy.correct, accuracy.ties, accuracy.accuracy) == (10, 8, 1, 0.8)
    assert [accuracy.low, accuracy.high] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert accuracy_of([(0, 1)] * 10).high == pytest.approx(0.2775, abs=1e-4)


@pytest.mark.parametrize("pairs", [7, 10, 13, 500, 1000, 2000])
@pytest.mark.parametrize("score", [(1, 0), (0, 1)])
def test_the_interval_holds_its_share_where_all_are_alike(score, pairs):
    """A share outside of its own interval is one that no plot can draw."""
    accuracy = accuracy_of([score] * pairs)
    assert 0 <= accuracy.low <= accuracy.accuracy <= accuracy.high <= 1


def test_the_interval_of_a_mean():
    """The distances to the parts' limits, root of the sum of squares, over their number."""
    parts = [accuracy_of([(1, 0)] * right + [(0, 1)] * (10 - right)) for right in (8, 10)]
    mean = mean_of(parts)
    assert (mean.pairs, mean.correct, mean.accuracy) == (20, 18, pytest.approx(0.9))
    below = math.hypot(0.8 - 0.4902, 1 - 0.7225) / 2
    above = math.hypot(0.9433 - 0.8, 0) / 2
    assert [mean.low, mean.high] == pytest.approx([0.9 - below, 0.9 + above], abs=1e-4)
    assert mean_of(parts[:1]) == parts[0]


def test_a_paired_difference():
    """One more pair of four right, in one of two paradigms: 12.5 points; equal models differ by nothing."""
    right, wrong = (1.0, 0.0), (0.0, 1.0)
    own = [[right, right, wrong, wrong], [right, wrong]]
    other = [[right, wrong, wrong, wrong], [right, wrong]]
    mean, low, high = paired_difference(own, other)
    assert mean == pytest.approx(0.125)
    half = 1.959964 * math.sqrt((3 * 0.25**2 + 0.75**2) / 3 / 4) / 2
    assert [low, high] == pytest.approx([0.125 - half, 0.125 + half], abs=1e-6)
    assert paired_difference(own, own) == (0, 0, 0)
