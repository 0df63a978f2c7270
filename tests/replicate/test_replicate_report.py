"""The report of a replication: what it says of known results."""

import json

import pytest

from rt_plugin.glue import results as glue_results
from rt_plugin.replicate import report, stability
from rt_plugin.replicate.plan import load_plan
from rt_plugin.replicate.results import CURVE_COLUMNS, RUN_COLUMNS, write_csv

# bits on the test documents; what the search found is 0.2 above
LOSSES = {
    "ffn": 8.0,
    "ffn-prenorm": 8.2,
    "none": 8.0,
    "short-conv": 7.0,
    "short-conv-alternate": 6.9,
    "swish-rnn": 6.5,
    "swish-rnn-alternate": 6.2,
}
SPREAD = (-0.01, 0.0, 0.01)


def run_row(stage, arm, rate, seed, valid, test="", failed=""):
    return {
        "scale": "laptop",
        "stage": stage,
        "arm": arm,
        "options": "roberta",
        "parameters": 1_000_000,
        "learning_rate": f"{rate:g}",
        "seed": seed,
        "updates": 5000,
        "tokens": 20_000_000,
        "valid_loss": valid,
        "best_valid_loss": valid,
        "test_loss": test,
        "hours": 0.3,
        "tokens_per_second": 18_000,
        "failed": failed,
        "why": "said so" if failed else "",
        "commit": "abcdef0",
        "date": "2026-11-21",
    }


@pytest.fixture
def results(tmp_path):
    """Writes a folder of CSV files with these test losses, and makes its report; returns the text."""

    def make(losses, change=lambda rows: None, **keys):
        plan = load_plan("laptop")
        (tmp_path / "plan.json").write_text(json.dumps({**plan.source, **keys}))
        rows = [
            run_row("search", arm, rate, 1, round(loss + 0.2 + 0.1 * (rate != 1.5e-3), 3))
            for arm, loss in losses.items()
            for rate in plan.search.learning_rates
        ]
        rows += [
            run_row("final", arm, 1.5e-3, seed, round(loss + 0.1 + more, 3), round(loss + more, 3))
            for arm, loss in losses.items()
            for seed, more in zip(plan.final.seeds, SPREAD, strict=True)
        ]
        change(rows)
        write_csv(tmp_path / "runs.csv", RUN_COLUMNS, rows)
        curves = [
            {**{name: row[name] for name in ("stage", "arm", "learning_rate", "seed")}, "update": update}
            | {"tokens": 4000 * update, "hours": update / 1e4, "valid_loss": row["valid_loss"] + (5000 - update) / 1000}
            for row in rows
            if row["valid_loss"] != ""
            for update in (2500, 5000)
        ]
        write_csv(tmp_path / "curves.csv", CURVE_COLUMNS, curves)
        assert report.main([str(tmp_path)]) == 0
        return (tmp_path / "report.md").read_text(encoding="utf-8")

    make.folder = tmp_path
    return make


def rows_of(text: str) -> list[list[str]]:
    """The rows of all Markdown tables, cell by cell."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def cells(text: str, *first: str) -> list[str]:
    """The one table row whose first cells are these."""
    (row,) = [row for row in rows_of(text) if row[: len(first)] == [*first]]
    return row


def verdict_of(text: str) -> str:
    return text.split("**By the plan's rule: ")[1].split("**")[0]


def test_a_recurrence_that_beats_all_controls_helps(results):
    text = results(LOSSES)
    assert verdict_of(text) == "The recurrence helps."
    row = cells(text, "1. swish-rnn - ffn")
    assert row[1] == "-1.5000" and row[-1] == "lower"
    # Welch: two means of three seeds with standard deviation 0.01; t(4) = 2.776
    assert row[2] == "-1.5227 to -1.4773"
    assert cells(text.split("## Final runs")[1], "swish-rnn")[4] == "6.5000 ± 0.0100"


def test_local_mixing_that_does_the_same_is_named(results):
    text = results({**LOSSES, "short-conv": 6.52})
    # significant, but below the least difference of 0.05 bits: none
    assert cells(text, "3. swish-rnn - short-conv")[-1] == "no difference"
    assert verdict_of(text) == "Local mixing helps, and the recurrence is one way to have it."


def test_a_null_is_told(results):
    text = results({**LOSSES, "swish-rnn": 8.1})
    assert cells(text, "1. swish-rnn - ffn")[-1] == "higher"
    assert verdict_of(text).startswith("Not confirmed")


def test_the_better_baseline_of_the_search_is_compared(results):
    text = results({**LOSSES, "ffn-prenorm": 7.5})
    assert cells(text, "1. swish-rnn - ffn-prenorm")[1] == "-1.0000"
    assert cells(text, "6. none - ffn-prenorm")[-1] == "higher"
    assert "swish-rnn - ffn " not in text


def test_a_failed_run_counts_with_its_last_finite_loss(results):
    def diverge(rows):
        (row,) = [r for r in rows if (r["stage"], r["arm"], r["seed"]) == ("final", "swish-rnn", 12)]
        row |= {"failed": "diverged", "why": "said so", "valid_loss": 9.5, "test_loss": ""}

    text = results(LOSSES, diverge)
    assert cells(text, "1. swish-rnn - ffn")[1] == f"{(6.49 + 9.5 + 6.51) / 3 - 8:+.4f}"
    assert cells(text, "1. swish-rnn - ffn")[-1] == "not told apart"
    assert cells(text.split("## Final runs")[1], "swish-rnn")[4].startswith(f"{(6.49 + 9.5 + 6.51) / 3:.4f} ± ")
    assert cells(text, "final")[5:] == ["diverged", "said so"]


def test_without_test_losses_nothing_is_compared(results):
    def forget(rows):
        rows[-1]["test_loss"] = ""

    text = results(LOSSES, forget)
    assert "First outcome" not in text and "## Final runs" in text


def test_nothing_is_compared_before_all_final_runs_have_ended(results):
    def take_away(rows):
        del rows[-2:]

    text = results(LOSSES, take_away)
    assert "2 final runs are left: nothing is compared" in text and "By the plan's rule" not in text
    assert cells(text.split("## Final runs")[1], "swish-rnn")[4] == "6.5000 ± 0.0100"
    assert "are left" not in results(LOSSES)


def test_a_plan_without_comparisons_has_no_table_of_them(results):
    text = results(LOSSES, comparisons=[], verdicts=[])
    assert "## Final runs" in text and "outcome" not in text and "By the plan's rule" not in text


def test_edges_and_divergence_in_the_search(results):
    def diverge(rows):
        for row in rows:
            if row["stage"] == "search" and row["arm"] == "ffn":
                lowest = row["learning_rate"] == "0.00075"
                row |= {"valid_loss": 7.0} if lowest else {"failed": "diverged", "valid_loss": ""}

    text = results(LOSSES, diverge)
    search = text.split("## Final runs")[0]
    assert cells(search, "ffn")[1:] == ["**7.000**", "diverged", "diverged", "diverged", "0.00075"]
    assert "**At an edge of the grid, the optimum may lie beyond: ffn (0.00075).**" in search


def test_equal_time_reads_the_curves(results):
    write_csv(
        results.folder / "steps.csv",
        ("arm", "seconds"),
        [{"arm": "ffn", "seconds": 0.1}, {"arm": "swish-rnn", "seconds": 0.125}],
    )
    text = results(LOSSES).split("## At equal time")[1]
    # the recurrence reaches update 4,000 in the time of 5,000: a fifth of its curve above the end, which falls by 1
    assert cells(text, "ffn")[2:] == ["5,000", "8.100", "8.100"]
    assert cells(text, "swish-rnn")[2:] == ["4,000", "7.600", "6.600"]


def test_an_arm_that_diverged_before_its_first_validation(results):
    """It has no curve and no loss: that is told, and the other arms are compared."""

    def diverge(rows):
        for row in rows:
            if (row["stage"], row["arm"]) == ("final", "swish-rnn"):
                row |= {"failed": "diverged", "why": "said so", "valid_loss": "", "test_loss": ""}

    write_csv(results.folder / "steps.csv", ("arm", "seconds"), [{"arm": arm, "seconds": 0.1} for arm in LOSSES])
    text = results(LOSSES, diverge)
    timed = [row[0] for row in rows_of(text.split("## At equal time")[1])]
    assert "ffn" in timed and "swish-rnn" not in timed
    assert [row[5] for row in rows_of(text) if row[:2] == ["final", "swish-rnn"]] == ["diverged"] * 3
    assert cells(text, "6. none - ffn")[-1] != "not told apart"


@pytest.mark.parametrize(
    ("timed", "label", "x"),
    [
        (tuple(LOSSES), "hours, updates timed side by side", [2500 * 0.36 / 3600, 5000 * 0.36 / 3600]),
        (("ffn", "swish-rnn"), "hours (machine shared)", [0.25, 0.5]),  # not of all arms: the hours that passed
    ],
)
def test_curves_over_hours_by_the_time_of_an_update(timed, label, x, results):
    write_csv(results.folder / "steps.csv", ("arm", "seconds"), [{"arm": arm, "seconds": 0.36} for arm in timed])
    results(LOSSES)
    drawn = {figure["name"]: figure for figure in json.loads((results.folder / "figures.json").read_text())}
    tokens, hours = drawn["final_curves"]["panels"]
    assert hours["xlabel"] == label and hours["series"][0]["x"] == pytest.approx(x)
    assert tokens["series"][0]["x"] == [10, 20]


RATES = (1e-5, 1e-4, 1e-3)


@pytest.fixture
def finetuned(results):
    """Writes finetuning.csv of RTE with a score an arm and rate and what seeds have more; returns the section on it."""

    def make(
        scores, more=(0.0, 0.0, 0.0), failed=lambda score: score <= 0.5, runs=None, change=lambda rows: None, **planned
    ):
        rows = []
        for model, at_rates in scores.items():
            for lr, score in zip(RATES, at_rates, strict=True):
                row = {"model": model, "task": "RTE", "lr": lr, "epochs": 1, "best_epoch": 1, "train_loss": 1.0}
                row |= {"failed": int(failed(score)), "majority": 0.5, "seconds": 1, "best_score": 0.9}
                rows += [{**row, "seed": seed, "last_score": score + x} for seed, x in enumerate(more, start=1)]
        glue_results.write_csv(results.folder / "finetuning.csv", rows[:runs])
        plan = {"arms": list(scores), "encoder_seed": 11, "learning_rates": RATES, "epochs": 1, **planned}
        plan["sweeps"] = [{"tasks": ["RTE"], "seeds": [*range(1, len(more) + 1)]}]
        evaluate = {"mask_seed": 1, "finetuning": plan}
        return results(LOSSES, change, evaluate=evaluate).split("## Stability of fine-tuning")[1]

    return make


def test_stability_of_finetuning(finetuned, results):
    text = finetuned({"ffn": (0.5, 0.6, 0.58), "swish-rnn": (0.6, 0.605, 0.6)})
    # ffn loses 2 points in the decade above the best rate: half a decade; below it runs failed, and none counts
    ffn, swish = (cells(text, "RTE", model) for model in ("ffn", "swish-rnn"))
    assert ffn[2:9] == ["0.0001", "60.0", "0.0", "4.0", "1.0e-04 to 3.2e-04", "0.50", "0.50 to 0.50"]
    assert ffn[9:] == ["3/9", "12 to 65 %"]
    assert swish[5:9] == ["0.3", "1.0e-05 to 1.0e-03", "2.00 or more", "2.00 to 2.00 or more"] and swish[9] == "0/9"
    assert (results.folder / "stability.png").is_file()


def test_shortfalls_are_compared_as_the_plan_compares_losses(finetuned):
    scores = {"ffn": (0.55, 0.6, 0.56), "swish-rnn": (0.6, 0.605, 0.6), "swish-rnn-alternate": (0.6, 0.61, 0.6)}
    # seeds differ by as much at every rate: shortfalls by nothing, so that there is no interval
    text = finetuned(scores, more=(0.0, 0.02, 0.03))
    assert cells(text, "RTE", "swish-rnn - ffn")[2:] == ["-2.6667", "-", "-", "-", "not told apart"]
    assert cells(text, "RTE", "swish-rnn-alternate - swish-rnn")[2:] == ["+0.3333", "-", "-", "-", "no difference"]
    assert "**swish-rnn against ffn: not told apart (more on 0 of 1 tasks, less on 0, 0 not read).**" in text
    assert cells(text, "RTE", "ffn")[4] == "1.5" and "edge of the grid" not in text


def test_variants_of_an_arm_are_compared_as_the_plan_says(finetuned):
    """Where it has comparisons of fine-tunings, those of losses have no part in them."""
    variants = {"no-weight-decay": {"arm": "swish-rnn", "options": ["--weight-decay", "0"]}}
    text = finetuned(
        {"ffn": (0.55, 0.6, 0.56), "swish-rnn": (0.6, 0.605, 0.6), "no-weight-decay": (0.56, 0.61, 0.6)},
        arms=["ffn", "swish-rnn"],
        variants=variants,
        comparisons=[["no-weight-decay", "swish-rnn"]],
    )
    assert cells(text, "RTE", "no-weight-decay - swish-rnn")[2] == "+1.6667"
    assert "**no-weight-decay against swish-rnn:" in text and "swish-rnn - ffn" not in text


def test_a_more_stable_arm_is_told(finetuned, results):
    finetuned({"ffn": (0.55, 0.6, 0.56), "swish-rnn": (0.6, 0.605, 0.6)})
    file = results.folder / "finetuning.csv"
    found = glue_results.read_csv(file)
    lines = file.read_text().splitlines()
    column = lines[0].split(",").index("last_score")
    for number, run in enumerate(found, start=1):
        if run.lr == RATES[0]:
            words = lines[number].split(",")
            words[column] = str(float(words[column]) + run.seed / 1000)
            lines[number] = ",".join(words)
    file.write_text("\n".join(lines) + "\n")
    assert report.main([str(results.folder)]) == 0
    text = (results.folder / "report.md").read_text(encoding="utf-8")
    assert cells(text, "RTE", "swish-rnn - ffn")[-1] == "more stable"
    assert "**swish-rnn against ffn: not told apart (more on 1 of 1 tasks, less on 0, 0 not read).**" in text


def test_no_width_and_no_comparison_for_a_model_that_only_failed(finetuned):
    """An encoder that learns nothing has the same score at every rate, which is no stability."""
    text = finetuned({"ffn": (0.5, 0.5, 0.5), "swish-rnn": (0.6, 0.605, 0.6)})
    assert cells(text, "RTE", "ffn")[6:10] == ["-", "-", "-", "9/9"]
    assert cells(text, "RTE", "swish-rnn - ffn")[2:] == ["-", "-", "-", "-", "not read"]
    assert "1 not read" in text


def test_a_best_rate_at_an_end_of_the_grid_is_told(finetuned):
    text = finetuned({"ffn": (0.6, 0.59, 0.58), "swish-rnn": (0.6, 0.605, 0.6)})
    assert "**At an edge of the grid, the optimum may lie beyond: ffn on RTE (1e-05).**" in text


def test_scores_beside_what_needs_no_encoder(finetuned, results):
    """At each arm's best rate; where the highest floor is not reached, that is said."""
    finetuned({"ffn": (0.55, 0.6, 0.56), "swish-rnn": (0.6, 0.64, 0.6)}, more=(0.0, 0.02, 0.03))
    add_floors(results.folder, majority=0.5, linear=0.63)
    assert report.main([str(results.folder)]) == 0
    text = (results.folder / "report.md").read_text(encoding="utf-8")
    third = text.split("## Third outcome")[1].split("## Stability")[0]
    assert "linear, majority: without an encoder." in third
    assert cells(third, "linear") == ["linear", "63.0", "63.0"]
    assert cells(third, "ffn") == ["ffn", "62.0 ± 1.5", "62.0"]
    assert cells(third, "swish-rnn") == ["swish-rnn", "66.0 ± 1.5", "66.0"]
    assert "ffn is not above them on RTE (62.0; linear 63.0). swish-rnn is above them on every task." in third
    assert cells(text, "RTE", "swish-rnn - ffn")[2] == "-0.3333"  # floors have no part in it
    figures = json.loads((results.folder / "figures.json").read_text())
    (drawn,) = (figure for figure in figures if figure["name"] == "stability")
    line = drawn["panels"][0]["series"][-1]
    assert (line["label"], line["style"], line["y"]) == ("linear", "dotted", [63.0, 63.0])


def add_floors(folder, **scores):
    """Rows of what needs no encoder in a folder's finetuning.csv, name -> score on RTE."""
    file, floor = folder / "finetuning.csv", folder / "floor.csv"
    row = {"task": "RTE", "lr": None, "seed": 0, "epochs": 0, "failed": 0}
    glue_results.write_csv(
        floor, [{**row, "model": name, "best_score": x, "last_score": x} for name, x in scores.items()]
    )
    file.write_text(file.read_text() + floor.read_text().split("\n", 1)[1])
    floor.unlink()


def test_half_a_sweep_is_not_compared(finetuned):
    text = finetuned({"ffn": (0.5, 0.6, 0.58), "swish-rnn": (0.6, 0.605, 0.6)}, runs=17)
    assert "Third outcome" not in text
    assert "**1 fine-tunings are left: nothing is compared before all have ended.**" in text
    assert "swish-rnn - ffn" not in text


def test_what_other_sweeps_added_does_not_count_as_planned(finetuned, results):
    """As MNLI's second dev set, or a rate that the plan has not."""
    finetuned({"ffn": (0.5, 0.6, 0.58), "swish-rnn": (0.6, 0.605, 0.6)}, runs=17)
    file = results.folder / "finetuning.csv"
    *_, last = file.read_text().splitlines()
    file.write_text(file.read_text() + last.replace("0.001", "0.1", 1) + "\n")
    assert report.main([str(results.folder)]) == 0
    assert "**1 fine-tunings are left" in (results.folder / "report.md").read_text(encoding="utf-8")


def test_an_arm_without_an_encoder_is_not_waited_for(finetuned):
    def fail(rows):
        (row,) = [r for r in rows if (r["stage"], r["arm"], r["seed"]) == ("final", "swish-rnn-alternate", 11)]
        row |= {"failed": "diverged", "why": "said so", "test_loss": ""}

    scores = {"ffn": (0.5, 0.6, 0.58), "swish-rnn": (0.6, 0.605, 0.6), "swish-rnn-alternate": (0.6, 0.6, 0.6)}
    text = finetuned(scores, runs=18, change=fail)
    assert "are left" not in text and cells(text, "RTE", "swish-rnn - ffn")[-1] != "not read"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (["more stable", "more stable", "no difference", "not read"], "more stable"),
        (["more stable", "no difference"], "not told apart"),
        (["less stable", "less stable", "less stable"], "less stable"),
        (["less stable", "less stable", "more stable"], "not told apart"),
    ],
)
def test_an_arm_is_more_stable_on_two_tasks_and_less_on_none(said, verdict):
    assert stability._verdict("a against b", said).startswith(f"**a against b: {verdict} (")


@pytest.fixture
def pairs(results):
    """Writes minimal_pairs.csv with an accuracy an arm, and what some seeds have more; returns the section on it."""

    def make(accuracies, seeds=(11, 12, 13), change=lambda rows: None):
        columns = ("arm", "learning_rate", "seed", "data", "mask", "phenomenon", "accuracy")
        rows = [
            dict(zip(columns, (arm, "0.0015", seed, "blimp", "word", "mean over paradigms", share + more), strict=True))
            for arm, share in accuracies.items()
            for seed, more in zip(seeds, SPREAD, strict=False)
        ]
        rows += [{**row, "phenomenon": "island effects", "accuracy": 0.1} for row in rows]
        write_csv(results.folder / "minimal_pairs.csv", columns, rows)
        return results(LOSSES, change).split("## Second outcome: minimal pairs, blimp, --mask word")[1]

    return make


ACCURACIES = dict(zip(LOSSES, (0.6, 0.6, 0.6, 0.65, 0.65, 0.7, 0.72), strict=True))


def test_minimal_pairs_of_some_runs_are_not_compared(pairs):
    text = pairs(ACCURACIES, seeds=(11, 12))
    assert "**7 final runs were not measured on these pairs: nothing is compared.**" in text
    assert cells(text, "swish-rnn")[1] == "2" and "swish-rnn - ffn" not in text


def test_a_run_above_the_unigram_model_is_measured_on_minimal_pairs_too(pairs):
    def fail(rows):
        rows[-1] |= {"failed": "above unigram", "why": "said so"}

    text = pairs(ACCURACIES, change=fail)
    assert "nothing is compared" not in text and cells(text, "1. swish-rnn - ffn")[1] == "-10.0000"


def test_minimal_pairs_are_the_second_outcome(pairs):
    text = pairs(ACCURACIES)
    assert cells(text, "swish-rnn")[1:] == ["3", "70.0000 ± 1.0000"]
    assert cells(text, "1. swish-rnn - ffn")[1] == "-10.0000"  # points of wrong pairs
    assert "counts as none" not in text  # the least difference is one of losses
    assert cells(text, "island effects") == ["island effects", *["10.0"] * len(LOSSES)]


def test_minimal_pairs_without_a_mean_are_one_line(pairs, results, capfd):
    pairs(ACCURACIES)
    file = results.folder / "minimal_pairs.csv"
    file.write_text(file.read_text().replace("mean over paradigms", "mean"))
    assert report.main([str(results.folder)]) == 1
    assert "minimal_pairs.csv: no row 'mean over paradigms' for blimp and word" in capfd.readouterr().err


def test_minimal_pairs_are_drawn_a_point_a_run(pairs, results):
    pairs(ACCURACIES)
    drawn = {figure["name"]: figure for figure in json.loads((results.folder / "figures.json").read_text())}
    (panel,) = drawn["minimal_pairs"]["panels"]
    assert panel["title"] == "blimp, word" and panel["ticks"] == [*LOSSES]
    assert panel["series"][-1]["y"] == [71.0, 72.0, 73.0]


def test_the_same_csv_files_give_the_same_report(results, tmp_path_factory):
    results(LOSSES)
    again = tmp_path_factory.mktemp("again")
    assert report.main([str(results.folder), "--out", str(again)]) == 0
    for name in ("report.md", "figures.json"):
        assert (again / name).read_bytes() == (results.folder / name).read_bytes()
    drawn = json.loads((again / "figures.json").read_text())
    names = {figure["name"]: figure for figure in drawn}
    assert {"search_curves", "final_curves", "learning_rates", "final_loss"} <= names.keys()
    (panel,) = names["learning_rates"]["panels"]
    swish = next(s for s in panel["series"] if s["label"] == "swish-rnn")
    assert swish["x"] == [7.5e-4, 1.5e-3, 3e-3, 6e-3] and swish["y"] == [6.8, 6.7, 6.8, 6.8]
    whole, near = names["final_loss"]["panels"]
    assert whole["ticks"] == [*LOSSES] and near["ticks"] == [arm for arm, loss in LOSSES.items() if loss < 7.2]
    assert near["series"][0]["y"] == [6.99, 7.0, 7.01]


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 1
    assert f"{tmp_path / 'runs.csv'}: no run there" in capsys.readouterr().err
