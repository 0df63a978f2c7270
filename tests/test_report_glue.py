"""Tables, differences and plots of a report, on results with known statistics."""

import csv
import itertools
import math

import pytest

from rt_plugin import glue_report, glue_results


def row(model, task, lr, seed, score, failed=0, last=None):
    last = score if last is None else last
    values = {"best_score": score, "last_score": last}
    return {"model": model, "task": task, "lr": lr, "seed": seed, "failed": failed, "seconds": 1.0, **values}


RTE = [
    *(row("new", "RTE", 1e-4, seed, score) for seed, score in enumerate((0.60, 0.70, 0.62), start=1)),
    *(row("new", "RTE", 1e-3, seed, score, failed=1) for seed, score in enumerate((0.50, 0.90, 0.53), start=1)),
    *(row("base", "RTE", 1e-4, seed, score) for seed, score in enumerate((0.55, 0.65, 0.60), start=1)),
    *(row("base", "RTE", 1e-3, seed, score) for seed, score in enumerate((0.61, 0.62, 0.63), start=1)),
]
STS_B = [row(model, "STS-B", 1e-4, seed, score) for model, seed, score in (("new", 1, 0.2), ("base", 1, math.nan))]
COLA = [row("new", "CoLA", 1e-4, 1, 0.1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """results.csv of a baseline and of a model."""
    folder = tmp_path_factory.mktemp("results")
    paths = []
    for model in ("base", "new"):
        paths.append(folder / f"{model}.csv")
        glue_results.write_csv(paths[-1], [r for r in (*RTE, *STS_B, *COLA) if r["model"] == model])
    return paths


@pytest.fixture(scope="module")
def report(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert glue_report.main([*map(str, files), "--out", str(folder)]) == 0
    return folder


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def statistics(row, prefix=""):
    names = ("runs", "median", "mean", "std", "best", "failed")
    return [pytest.approx(float(row[prefix + name]), nan_ok=True, abs=1e-9) for name in names]


def test_table_at_the_best_learning_rate_and_over_all(report):
    rows = {(r["model"], r["task"]): r for r in read(report / "table.csv")}
    assert list(rows) == [
        *(("base", name) for name in ("STS-B", "RTE", "average")),
        *(("new", name) for name in ("CoLA", "STS-B", "RTE", "average")),
    ]
    new = rows["new", "RTE"]
    assert new["best_lr"] == "0.0001"  # the best single run is at the other one
    assert statistics(new) == [3, 62, 64, math.sqrt(28), 70, 0]
    assert statistics(new, "all_")[:3] == [6, 61, pytest.approx(385 / 6)]
    assert float(new["all_failed"]) == 3 and float(new["all_best"]) == 90
    assert rows["base", "RTE"]["best_lr"] == "0.001" and float(rows["base", "RTE"]["median"]) == 62


def test_undefined_score_counts_as_zero_and_one_run_has_no_deviation(report):
    rows = {(r["model"], r["task"]): r for r in read(report / "table.csv")}
    assert float(rows["base", "STS-B"]["median"]) == 0 and rows["base", "STS-B"]["std"] == "nan"


def test_average_is_over_the_tasks_of_all_models(report):
    rows = {(r["model"], r["task"]): r for r in read(report / "table.csv")}
    assert float(rows["new", "average"]["median"]) == pytest.approx((62 + 20) / 2)
    assert "over 2 tasks: STS-B, RTE." in (report / "report.md").read_text()


def test_differences(report):
    rows = {(r["task"], r["runs"]): r for r in read(report / "differences.csv")}
    assert {(r["model"], r["other"]) for r in rows.values()} == {("new", "base")}
    best = rows["RTE", "best learning rate"]  # in pairs: -1, +8, -1
    assert float(best["difference"]) == pytest.approx(2) and best["seeds"] == "3 in pairs"
    assert (float(best["low"]), float(best["high"])) == (pytest.approx(-1), pytest.approx(8))
    everywhere = rows["RTE", "all learning rates"]  # in pairs: -3, +16.5, -4
    assert float(everywhere["difference"]) == pytest.approx(9.5 / 3)
    average = rows["average", "best learning rate"]
    assert float(average["difference"]) == pytest.approx((2 + 20) / 2)
    assert (float(average["low"]), float(average["high"])) == (pytest.approx(19 / 2), pytest.approx(28 / 2))


def test_other_seeds_are_resampled_each_on_its_own(tmp_path):
    def interval(b_seeds):
        rows = [row("a", "RTE", 1e-4, s, v) for s, v in ((1, 0.5), (2, 0.7))]
        rows += [row("b", "RTE", 1e-4, s, v) for s, v in zip(b_seeds, (0.6, 0.8), strict=True)]
        glue_results.write_csv(tmp_path / "results.csv", rows)
        results = glue_report.collect(glue_results.read_csv(tmp_path / "results.csv"))
        found = glue_report.differences(results)[0]
        return found.low, found.high, found.seeds

    assert interval((1, 2)) == (pytest.approx(10), pytest.approx(10), "2 in pairs")
    assert interval((1, 3)) == (pytest.approx(-10), pytest.approx(30), "2 and 2")


def test_report_is_printed_and_the_same_every_time(report, files, tmp_path, capsys):
    assert glue_report.main([*map(str, files), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == (report / "report.md").read_text() + "\n"
    for name in ("report.md", "table.csv", "differences.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (report / name).read_bytes()


def test_plots_show_every_run(report, files, tmp_path, monkeypatch):
    from matplotlib import axes

    for name in ("learning_rates.png", "boxes.png"):
        assert (report / name).read_bytes().startswith(b"\x89PNG")
    points, boxes = [], []
    monkeypatch.setattr(axes.Axes, "plot", lambda self, x, y, style="", **_: points.extend(y if style == "." else ()))
    monkeypatch.setattr(axes.Axes, "boxplot", lambda self, values, **_: boxes.extend(itertools.chain(*values)))
    assert glue_report.main([*map(str, files), "--out", str(tmp_path)]) == 0
    expected = sorted(100 * (0 if math.isnan(r["best_score"]) else r["best_score"]) for r in (*RTE, *STS_B, *COLA))
    assert sorted(points) == sorted(boxes) == pytest.approx(expected)


def test_scores_of_the_last_epoch(tmp_path):
    glue_results.write_csv(tmp_path / "results.csv", [row("m", "RTE", 1e-4, 1, 0.7, last=0.6)])
    runs = glue_results.read_csv(tmp_path / "results.csv")
    assert glue_report.table(glue_report.collect(runs, "last"))[0]["median"] == pytest.approx(60)


def test_bad_input(files, tmp_path, capsys):
    assert glue_report.main([str(files[0]), str(files[0])]) == 1
    assert "error: base, STS-B, lr 0.0001, seed 1 is there twice" in capsys.readouterr().err
    assert glue_report.main([str(tmp_path / "gone.csv")]) == 1
    assert "gone.csv: cannot read it" in capsys.readouterr().err
    glue_results.write_csv(tmp_path / "empty.csv", [])
    assert glue_report.main([str(tmp_path / "empty.csv")]) == 1
    assert "hold no runs" in capsys.readouterr().err
