"""scripts/finetuning_trials.py: rows of several sweeps become one CSV file, and that the table of docs/glue.md."""

import finetuning_trials

from rt_plugin.glue import finetune
from rt_plugin.glue.results import COLUMNS, write_csv


def test_rows_of_all_sweeps_with_their_recipe(tmp_path):
    row = dict.fromkeys(COLUMNS) | {"lr": 3e-4, "epochs": 2, "failed": 0, "seconds": 9.5}
    for recipe, model, scores in (
        ("mean", "roberta_mini", [0.5, 0.25]),
        ("first", "roberta_mini", [float("nan"), 0.5]),
        ("first", "recurrent_roberta_mini", [0.125]),
    ):
        rows = [
            {**row, "model": model, "task": task, "seed": seed, "best_score": score, "last_score": score}
            for task in ("RTE", "STS-B")
            for seed, score in enumerate(scores)
        ]
        (tmp_path / model / recipe).mkdir(parents=True)
        write_csv(tmp_path / model / recipe / "results.csv", rows)
    finetuning_trials.write_rows(tmp_path, tmp_path)
    rows = tmp_path / finetuning_trials.ROWS_FILE
    lines = rows.read_text().splitlines()
    assert lines[1] == "mean,roberta_mini,STS-B,0.0003,0,2,0.5,0.5,0,9.5" and len(lines) == 1 + 10
    table = [line.split("|")[1:-1] for line in finetuning_trials.table(rows).splitlines()]
    assert [[cell.strip() for cell in line] for line in table if "---" not in line[0]] == [
        ["task", "model", "mean", "first"],
        ["STS-B", "roberta_mini", "37.5", "undefined"],
        ["STS-B", "recurrent_roberta_mini", "", "12.5"],
        ["RTE", "roberta_mini", "37.5", "undefined"],
        ["RTE", "recurrent_roberta_mini", "", "12.5"],
    ]


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
