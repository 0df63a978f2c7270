"""Tables, differences and plots of a report, on results with known statistics."""

import csv
import itertools
import math

import pytest
from scipy import stats

from interval_coverage import coverage
from rt_plugin.glue.report import main, write_report
from rt_plugin.glue.results import read_csv, write_csv
from rt_plugin.glue.statistics import collect, differences, table


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
TASKS = ("MRPC", "RTE")
COLA = [row("new", "CoLA", 1e-4, 1, 0.1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """results.csv of a baseline and of a model."""
    folder = tmp_path_factory.mktemp("results")
    paths = []
    for model in ("base", "new"):
        paths.append(folder / f"{model}.csv")
        write_csv(paths[-1], [r for r in (*RTE, *STS_B, *COLA) if r["model"] == model])
    return paths


@pytest.fixture(scope="module")
def report(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert main([*map(str, files), "--out", str(folder)]) == 0
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
    assert "over 2 tasks: STS-B, RTE;" in (report / "report.md").read_text()


def results_of(rows, folder):
    write_csv(folder / "results.csv", rows)
    return collect(read_csv(folder / "results.csv"))


def test_differences(report):
    rows = {(r["task"], r["runs"]): r for r in read(report / "differences.csv")}
    assert {(r["model"], r["other"]) for r in rows.values()} == {("new", "base")}
    assert [runs for _, runs in rows] == ["all learning rates"] * 3 + ["best learning rate"] * 3
    best = rows["RTE", "best learning rate"]
    assert float(best["difference"]) == pytest.approx(64 - 62) and best["seeds"] == "3 and 3"
    everywhere = rows["RTE", "all learning rates"]
    assert float(everywhere["difference"]) == pytest.approx(9.5 / 3)
    average = rows["average", "best learning rate"]
    assert float(average["difference"]) == pytest.approx((2 + 20) / 2) and average["seeds"] == "2 tasks"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_is_welchs(seeds, tmp_path):
    """For one task it is that of Welch's t test."""
    a, b = [0.60, 0.70, 0.62, 0.58, 0.75][:seeds], [0.5, 0.55, 0.51, 0.57, 0.5][:seeds]
    rows = [row(m, "RTE", 1e-4, i, x) for m, scores in (("base", b), ("new", a)) for i, x in enumerate(scores)]
    low, high = (100 * value for value in stats.ttest_ind(a, b, equal_var=False).confidence_interval())
    for found in differences(results_of(rows, tmp_path)):
        assert [found.low, found.high] == pytest.approx([low, high], rel=1e-9)


def test_no_interval_without_a_second_seed_or_where_no_two_runs_differ(report, tmp_path):
    rows = {(r["task"], r["runs"]): r for r in read(report / "differences.csv")}
    for task in ("STS-B", "average"):
        assert {rows[task, "best learning rate"][name] for name in ("low", "high")} == {"nan"}
    text = " ".join((report / "report.md").read_text().split())  # columns are aligned by spaces
    assert "| new - base | STS-B | best learning rate | +20.0 | - | 1 and 1 |" in text
    same = [row(model, "RTE", 1e-4, seed, 0.527) for model in ("base", "new") for seed in (1, 2, 3)]
    assert all(math.isnan(found.low) for found in differences(results_of(same, tmp_path)))


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_equal_models_hold_zero_as_often_as_they_say(seeds):
    """Scores of std 2 around the same mean, two tasks, three learning rates, 300 times over."""
    shares = coverage(300, seeds, tasks=("CoLA", "RTE"))
    assert len(shares) == 6
    for (kind, task), share in shares.items():
        assert share > 0.92, (kind, task)
        assert share < 0.985 or kind == "best learning rate", (kind, task)  # which has its own luck


def test_the_report_says_what_the_intervals_do_not_tell(report):
    text = (report / "report.md").read_text()
    assert "favours the model whose runs scatter more" in text
    assert "not of the choice of the dev set's rows" in text


def test_with_one_rate_a_task_nothing_is_chosen_on_the_dev_set(tmp_path):
    """Each table once, at the rates that were given, which need not be the same."""
    for model, lr, scores in (("base", 1e-4, (0.5, 0.6)), ("new", 1e-3, (0.6, 0.8))):
        rows = [row(model, task, lr, i, x, last=x - 0.1) for task in TASKS for i, x in enumerate(scores)]
        write_csv(tmp_path / f"{model}.csv", rows)
    files = [str(tmp_path / f"{model}.csv") for model in ("base", "new")]
    assert main([*files, "--out", str(tmp_path), "--scores", "last"]) == 0
    found = read(tmp_path / "differences.csv")
    assert {r["runs"] for r in found} == {"one learning rate"} and [r["task"] for r in found] == [*TASKS, "average"]
    assert float(found[-1]["difference"]) == pytest.approx(15)
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert "| new | RTE | 0.001 | 60.0 | 60.0 | 14.1 | 70.0 | 0/2 |" in text
    assert "after each run's last epoch" in text and "all: " not in text and "is chosen on" not in text


def test_second_dev_set_of_mnli_at_the_best_learning_rate_of_the_first(tmp_path):
    rows = []
    for model, lr, score, second in (("base", 1e-4, 0.6, 0.5), ("base", 1e-3, 0.5, 0.7), ("new", 1e-4, 0.8, 0.9)):
        for seed in (1, 2):
            extra = {"best_score_mismatched": second + seed / 100, "last_score_mismatched": math.nan}
            rows.append({**row(model, "MNLI", lr, seed, score), **extra})
        rows.append(row(model, "RTE", lr, 1, 0.7))
    results = results_of(rows, tmp_path)
    rows = {(r["model"], r["task"]): r for r in table(results)}
    assert [task for model, task in rows if model == "base"] == ["MNLI", "MNLI-mm", "RTE", "average"]
    second = rows["base", "MNLI-mm"]
    assert (second["best_lr"], second["median"], second["all_runs"]) == (1e-4, pytest.approx(51.5), 4)
    assert rows["base", "average"]["median"] == pytest.approx((60 + 70) / 2)
    found = {(d.task, d.runs): d for d in differences(results)}
    assert found["MNLI-mm", "best learning rate"].difference == pytest.approx(40)
    assert found["average", "best learning rate"].difference == pytest.approx((20 + 0) / 2)
    text = write_report(results, tmp_path / "report")
    assert "over 2 tasks: MNLI, RTE;" in text


def test_runs_of_two_checkpoints_under_one_name_are_refused(tmp_path, capsys):
    for name, checkpoint, seed in (("a", "0123abcd", 1), ("b", "4567ef89", 2), ("c", "", 3)):
        run = {**row("m", "RTE", 1e-4, seed, 0.7), "checkpoint": checkpoint}
        write_csv(tmp_path / f"{name}.csv", [run])
    a, b, c = (str(tmp_path / f"{name}.csv") for name in "abc")
    out = ("--out", str(tmp_path / "report"))
    assert main([a, b, *out]) == 1
    error = capsys.readouterr().err
    assert "error: m: its runs are of two checkpoints, 0123abcd and 4567ef89" in error and "--name" in error
    assert main([a, c, *out]) == 0


def test_csv_of_a_version_that_named_no_checkpoint(files, report, tmp_path):
    for path in files:
        rows = [{name: value for name, value in r.items() if name != "checkpoint"} for r in read(path)]
        with (tmp_path / path.name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    arguments = [str(tmp_path / path.name) for path in files]
    assert main([*arguments, "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.md").read_text() == (report / "report.md").read_text()


def test_report_is_printed_and_the_same_every_time(report, files, tmp_path, capsys):
    assert main([*map(str, files), "--out", str(tmp_path / "again")]) == 0
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
    assert main([*map(str, files), "--out", str(tmp_path)]) == 0
    expected = sorted(100 * (0 if math.isnan(r["best_score"]) else r["best_score"]) for r in (*RTE, *STS_B, *COLA))
    assert sorted(points) == sorted(boxes) == pytest.approx(expected)


def test_scores_of_the_last_epoch(tmp_path):
    write_csv(tmp_path / "results.csv", [row("m", "RTE", 1e-4, 1, 0.7, last=0.6)])
    runs = read_csv(tmp_path / "results.csv")
    assert table(collect(runs, "last"))[0]["median"] == pytest.approx(60)


def test_bad_input(files, tmp_path, capsys):
    assert main([str(files[0]), str(files[0])]) == 1
    assert "error: base, STS-B, lr 0.0001, seed 1 is there twice" in capsys.readouterr().err
    assert main([str(tmp_path / "gone.csv")]) == 1
    assert "gone.csv: cannot read it" in capsys.readouterr().err
    write_csv(tmp_path / "empty.csv", [])
    assert main([str(tmp_path / "empty.csv")]) == 1
    assert "hold no runs" in capsys.readouterr().err


def drop_column(text, name):
    rows = [line.split(",") for line in text.splitlines()]
    at = rows[0].index(name)
    return "".join(",".join(row[:at] + row[at + 1 :]) + "\n" for row in rows)


def replace_score(by):
    return lambda text: text.replace("0.7123", by)


BROKEN = {
    "nan for a score": (
        replace_score("nan"),
        "line 3: best_score is nan, expected a number from",
    ),
    "a score of 5": (
        replace_score("5.0"),
        "line 3: best_score is 5.0, expected a number from -1",
    ),
    "a score of words": (
        replace_score("good"),
        "line 3: could not convert string to float: 'good'",
    ),
    "no score": (replace_score(""), "line 3: no best_score; expected a row"),
    "a cut last line": (lambda text: text[: -len(text.splitlines()[-1]) // 2], "line 3: fewer columns than line 1 has"),
    "a column too many": (lambda text: f"{text.rstrip()},1\n", "line 3: more columns than line 1 has"),
    "a lost column": (lambda text: drop_column(text, "best_score"), "line 1: no column best_score"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named_with_its_line(what, tmp_path, capsys):
    path = tmp_path / "results.csv"
    write_csv(path, [row("m", "RTE", 1e-4, seed, score, last=0.5) for seed, score in ((1, 0.6), (2, 0.7123))])
    damage, message = BROKEN[what]
    path.write_text(damage(path.read_text()))
    assert main([str(path), "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rt-plugin report-glue: error: {path}, {message}"), line


FLOOR = [
    {"model": "tf-idf", "task": "RTE", "lr": None, "seed": 0, "failed": 0, "best_score": 0.63, "last_score": 0.63},
    {"model": "majority", "task": "RTE", "lr": None, "seed": 0, "failed": 0, "best_score": 0.5, "last_score": 0.5},
    {"model": "tf-idf", "task": "STS-B", "lr": None, "seed": 0, "failed": 0, "best_score": 0.7, "last_score": 0.7},
    {"model": "majority", "task": "STS-B", "lr": None, "seed": 0, "failed": 0, "best_score": math.nan},
    {"model": "cosine", "task": "STS-B", "lr": None, "seed": 0, "failed": 0, "best_score": 0.1, "last_score": 0.1},
]


@pytest.fixture(scope="module")
def floored(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("floored")
    write_csv(folder / "floor.csv", FLOOR)
    assert main([str(folder / "floor.csv"), *map(str, files), "--out", str(folder)]) == 0
    return folder


def test_floors_stand_first_in_the_table(floored, report):
    rows = [(r["model"], r["task"], r["best_lr"]) for r in read(floored / "table.csv")]
    assert rows[:7] == [
        *(("cosine", "STS-B", ""), ("majority", "STS-B", ""), ("majority", "RTE", ""), ("majority", "average", "")),
        *(("tf-idf", "STS-B", ""), ("tf-idf", "RTE", ""), ("tf-idf", "average", "")),
    ]
    averages = {r["model"]: float(r["mean"]) for r in read(floored / "table.csv") if r["task"] == "average"}
    assert averages["tf-idf"] == pytest.approx((70 + 63) / 2) and averages["majority"] == 25
    assert read(floored / "table.csv")[7:] == read(report / "table.csv")


def test_floors_are_no_part_of_the_differences(floored, report):
    assert read(floored / "differences.csv") == read(report / "differences.csv")


def test_the_report_says_who_is_not_above_the_floor(floored, report):
    """At the best learning rate by median: on RTE base has 62, new 62; the floors are 63 and, on STS-B, 70."""
    text = (floored / "report.md").read_text()
    assert "cosine, majority, tf-idf: without an encoder." in text
    assert "base is not above them on STS-B (0.0; tf-idf 70.0), RTE (62.0; tf-idf 63.0)." in text
    assert "new is not above them on STS-B (20.0; tf-idf 70.0), RTE (62.0; tf-idf 63.0)." in text
    assert "without an encoder" not in (report / "report.md").read_text()


def test_a_model_above_the_floor(files, tmp_path):
    write_csv(tmp_path / "floor.csv", [{**FLOOR[0], "best_score": 0.6}])
    assert main([str(tmp_path / "floor.csv"), *map(str, files), "--out", str(tmp_path)]) == 0
    said = (tmp_path / "report.md").read_text()
    assert "base is above them on every task that has one (RTE)." in said  # of STS-B none is given


def test_a_model_above_every_floor(files, tmp_path):
    write_csv(tmp_path / "floor.csv", [{**row, "best_score": -0.9} for row in FLOOR])
    assert main([str(tmp_path / "floor.csv"), *map(str, files), "--out", str(tmp_path)]) == 0
    assert "base is above them on every task." in (tmp_path / "report.md").read_text()


def test_figures_have_the_floor(floored, report):
    for name in ("learning_rates.png", "boxes.png"):
        assert (floored / name).read_bytes() != (report / name).read_bytes()


def test_the_same_floor_twice(files, tmp_path, capsys):
    write_csv(tmp_path / "floor.csv", FLOOR)
    assert main([str(tmp_path / "floor.csv")] * 2 + [str(files[0]), "--out", str(tmp_path)]) == 1
    assert "cosine, STS-B, seed 0 is there twice" in capsys.readouterr().err
