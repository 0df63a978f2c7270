"""scripts/finetuning_trials.py: rows of several sweeps become one CSV file and its tables, and those a choice."""

import finetuning_trials
import pytest

from conftest import rows_of_table
from rt_plugin.errors import UserError
from rt_plugin.glue import finetune
from rt_plugin.glue.results import COLUMNS, write_csv

ROBERTA, RECURRENT = finetuning_trials.MODELS
ALTERNATE = finetuning_trials.ALL_MODELS[2]


def write_sweeps(folder, *sweeps, checkpoint=None):
    """results.csv of sweeps (recipe, model, task, learning rate, scores of seed 1, 2, ...)."""
    row = dict.fromkeys(COLUMNS) | {"epochs": 2, "failed": 0, "seconds": 9.5, "checkpoint": checkpoint}
    files = {}
    for recipe, model, task, lr, scores in sweeps:
        files.setdefault(folder / model / recipe / "results.csv", []).extend(
            {**row, "model": model, "task": task, "lr": lr, "seed": seed, "best_score": 1.0, "last_score": score}
            for seed, score in enumerate(scores, start=1)
        )
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, rows)


TRIALS = (
    ("mean", ROBERTA, "RTE", 3e-4, [0.5, 0.1, 0.1]),
    ("mean", RECURRENT, "RTE", 3e-4, [0.5, 0.2, 0.2]),
    ("mean", ROBERTA, "RTE", 1e-4, [0.5, 0.4, 0.3]),
    ("mean", RECURRENT, "RTE", 1e-4, [0.2, 0.2, 0.2]),
    ("mean", ALTERNATE, "RTE", 1e-3, [0.75]),
    ("first", ROBERTA, "RTE", 3e-4, [0.875]),
    ("first", RECURRENT, "RTE", 3e-4, [float("nan")]),
    ("pair", RECURRENT, "RTE", 3e-4, [0.9]),
)


@pytest.fixture
def trials(tmp_path):
    """The folder with trials.csv and report.md of `TRIALS`."""
    write_sweeps(tmp_path, *TRIALS)
    finetuning_trials.write_rows(tmp_path, tmp_path)
    (tmp_path / finetuning_trials.FLOOR_FILE).write_text(
        "task,model,last_score\nRTE,tf-idf,0.676\nRTE,majority,undefined\n"
    )
    finetuning_trials.write_report(tmp_path, tmp_path)
    return tmp_path


def tables(folder):
    """The report's two tables: of recipes, and of learning rates."""
    parts = (folder / "report.md").read_text().split("\n\n")
    return [rows_of_table(part.strip()) for part in parts if part.startswith("|")]


def test_rows_of_all_sweeps_with_their_recipe(trials):
    lines = (trials / finetuning_trials.ROWS_FILE).read_text().splitlines()
    assert len(lines) == 1 + sum(len(scores) for *_, scores in TRIALS)
    assert lines[1] == "mean,roberta_mini,RTE,0.0001,1,2,0.5,1.0,0,9.5"
    assert lines[-1] == "mean,recurrent_roberta_mini_alternate,RTE,0.001,1,2,0.75,1.0,0,9.5"


def test_recipes_are_compared_at_one_rate_and_seed_where_all_models_have_them(trials):
    recipes, _ = tables(trials)
    assert [list(row.values()) for row in recipes] == [
        ["RTE", "pair", "", "90.0", ""],  # the highest, but of one model only
        ["RTE", "first", "87.5", "0.0", "43.8"],  # an undefined score counts as 0
        ["RTE", "mean", "50.0", "50.0", "**50.0**"],
    ]


def test_each_model_has_a_learning_rate_of_its_own(trials):
    _, rates = tables(trials)
    assert [list(row.values()) for row in rates] == [
        ["RTE", ROBERTA, "mean", "**40.0**", "23.3", "", "3", "67.6"],
        ["RTE", RECURRENT, "mean", "20.0", "**30.0**", "", "3", "67.6"],
        ["RTE", ALTERNATE, "mean", "", "", "**75.0**", "1", "67.6"],
    ]


def test_rows_of_other_sweeps_stay(trials, tmp_path):
    """Those of another machine, whose folders are not there; the same run counts as it came last."""
    before = (trials / finetuning_trials.ROWS_FILE).read_text().splitlines()
    elsewhere = tmp_path / "elsewhere"
    write_sweeps(elsewhere, ("mean", ROBERTA, "RTE", 1e-4, [0.75]), ("aligned", RECURRENT, "RTE", 3e-4, [0.5]))
    finetuning_trials.write_rows(elsewhere, trials)
    after = (trials / finetuning_trials.ROWS_FILE).read_text().splitlines()
    added = "aligned,recurrent_roberta_mini,RTE,0.0003,1,2,0.5,1.0,0,9.5"
    assert set(after) - set(before) == {"mean,roberta_mini,RTE,0.0001,1,2,0.75,1.0,0,9.5", added}
    assert len(after) == len(before) + 1 and after[-2] == added


@pytest.fixture
def commands(monkeypatch):
    """What finetune-glue would be called with; each writes its rows."""
    found = []

    def main(argv):
        found.append(args := finetune.parse_arguments(argv))
        scores = [0.25] * len(args.seeds)
        sweeps = [(args.out.name, args.name, args.tasks[0], lr, scores) for lr in args.lr]
        write_sweeps(args.out.parent.parent, *sweeps)
        return 0

    monkeypatch.setattr(finetuning_trials.finetune, "main", main)
    return found


def test_rates_are_tried_with_the_recipe_that_was_chosen(trials, commands, tmp_path, monkeypatch):
    folders = [str(tmp_path / "data"), str(tmp_path / "sweeps"), str(trials)]
    monkeypatch.setattr("sys.argv", ["finetuning_trials.py", *folders, "--tasks", "RTE", "--rates", "1e-4", "1e-3"])
    write_sweeps(tmp_path / "sweeps", *TRIALS)
    assert finetuning_trials.main() == 0
    assert [(c.name, c.out.name, c.lr, c.seeds) for c in commands] == [
        (ROBERTA, "mean", [1e-4, 1e-3], [1]),
        (RECURRENT, "mean", [1e-4, 1e-3], [1]),
    ]
    found = (trials / finetuning_trials.ROWS_FILE).read_text()
    assert "mean,roberta_mini,RTE,0.001,1,2,0.25,1.0,0,9.5" in found


def test_what_was_chosen_is_fine_tuned(trials, commands, tmp_path, monkeypatch):
    chosen = ("--chosen", str(trials / finetuning_trials.ROWS_FILE))
    models = ("--models", *finetuning_trials.ALL_MODELS)
    folders = [str(tmp_path / name) for name in ("data", "final", "results")]
    monkeypatch.setattr("sys.argv", ["finetuning_trials.py", *folders, "--tasks", "RTE", *models, *chosen])
    other = dict.fromkeys(COLUMNS) | {"model": ROBERTA, "lr": 1e-4, "seed": 1, "last_score": 0.5}
    (tmp_path / "results").mkdir()
    write_csv(tmp_path / "results" / f"{ROBERTA}.csv", [other | {"task": "CoLA"}, other | {"task": "RTE"}])
    assert finetuning_trials.main() == 0
    assert [(c.name, c.lr, c.seeds, c.epochs) for c in commands] == [
        (ROBERTA, [1e-4], [1, 2, 3, 4, 5], 2),
        (RECURRENT, [3e-4], [1, 2, 3, 4, 5], 2),
        (ALTERNATE, [1e-3], [1, 2, 3, 4, 5], 2),
    ]
    assert {c.data for c in commands} == {tmp_path / "data"} and commands[0].fairseq_options[-1] == "mean"
    for model in finetuning_trials.ALL_MODELS:
        rows = (tmp_path / "results" / f"{model}.csv").read_text().splitlines()[1:]
        assert sum(",RTE," in row for row in rows) == 5
        assert len(rows) == 5 + (model == ROBERTA)  # what is there of another task stays


def test_rows_of_what_was_chosen_have_the_pretrained_checkpoint(tmp_path):
    """Also those whose encoder was fine-tuned on another task before: a report is of one checkpoint a model."""
    rows = []
    for model in finetuning_trials.MODELS:
        write_sweeps(tmp_path, ("QQP-aligned", model, "QQP", 3e-4, [0.7]), checkpoint="pretrained")
        write_sweeps(tmp_path, ("aligned-qqp-4epochs", model, "MRPC", 3e-4, [0.8]), checkpoint="after QQP")
        write_sweeps(tmp_path, ("aligned", model, "RTE", 3e-4, [0.6]), checkpoint="pretrained")
        rows += [{"recipe": recipe, **row} for recipe, row in finetuning_trials.rows_of(tmp_path / model)]
    rows = finetuning_trials.chosen_rows(tmp_path / ROBERTA, finetuning_trials.Trials(rows))
    assert {row["task"]: row["checkpoint"] for row in rows} == {"RTE": "pretrained", "MRPC": "pretrained"}


def test_rows_of_what_was_chosen_before_are_left_out(trials, tmp_path):
    """The trials went on, and choose otherwise: a rate of then would be one that is chosen on the dev set."""
    final = tmp_path / "final"
    write_sweeps(final, ("mean", ROBERTA, "RTE", 3e-4, [0.9]), ("mean", ROBERTA, "RTE", 1e-4, [0.5]))
    write_sweeps(final, ("first", ROBERTA, "RTE", 1e-4, [0.9]))
    chosen = finetuning_trials.Trials.read(trials / finetuning_trials.ROWS_FILE)
    (row,) = finetuning_trials.chosen_rows(final / ROBERTA, chosen)
    assert (row["lr"], row["last_score"]) == ("0.0001", "0.5")


def test_the_first_model_of_a_new_folder_has_a_table(commands, tmp_path, monkeypatch):
    """Nothing is chosen before both models have a recipe; the next model's trial must not end there."""
    folders = [str(tmp_path / "data"), str(tmp_path / "sweeps"), str(tmp_path)]
    words = ["--tasks", "RTE", "--recipes", "pair", "--models", ROBERTA]
    monkeypatch.setattr("sys.argv", ["finetuning_trials.py", *folders, *words])
    assert finetuning_trials.main() == 0
    recipes = rows_of_table((tmp_path / "report.md").read_text().split("\n\n")[3])
    assert [list(row.values()) for row in recipes] == [["RTE", "pair", "25.0", "", ""]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rates", "1e-4"), "trials.csv: no such file"),
        (("--chosen", "nowhere.csv"), "nowhere.csv: no such file"),
        (("--chosen", "trials.csv", "--tasks", "QNLI"), "--chosen: QNLI is only compared, not fine-tuned"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, message, trials, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(trials)
    monkeypatch.setattr("sys.argv", ["finetuning_trials.py", "data", "out", str(tmp_path / "empty"), *words])
    assert finetuning_trials.main() == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_was_not_tried_cannot_be_chosen(trials, tmp_path, monkeypatch, capsys):
    chosen = ("--chosen", str(trials / finetuning_trials.ROWS_FILE), "--tasks", "CoLA")
    monkeypatch.setattr("sys.argv", ["finetuning_trials.py", "data", "out", str(tmp_path), *chosen])
    assert finetuning_trials.main() == 1
    assert "CoLA: no recipe was tried with roberta_mini and recurrent_roberta_mini" in capsys.readouterr().err
    with pytest.raises(UserError, match="RTE: mean was not tried with another"):
        finetuning_trials.Trials.read(trials / finetuning_trials.ROWS_FILE).rate("RTE", "another")


def test_the_plan_names_recipes_that_are_there():
    assert {name for names in finetuning_trials.PLAN.values() for name in names} == set(finetuning_trials.RECIPES)


def test_a_task_before_gives_its_encoder_to_the_next(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(finetuning_trials.finetune, "main", lambda argv: commands.append(argv) or 0)
    assert finetuning_trials.run(tmp_path, tmp_path, "RTE", "pair-mnli", "roberta_mini", ["1e-4"], ["2"]) == 0
    before, after = (finetune.parse_arguments(argv) for argv in commands)
    assert (before.tasks, before.keep, after.tasks, after.lr, after.seeds) == (["MNLI"], "best", ["RTE"], [1e-4], [2])
    assert after.model == before.out / "MNLI" / "lr0.0003-seed1" and before.lr == [3e-4] and before.seeds == [1]
    assert before.name == after.name == "roberta_mini" and before.fairseq_options == after.fairseq_options
