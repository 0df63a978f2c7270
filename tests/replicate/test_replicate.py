"""The command replicate: plans, the growing grid, resuming, failures, adopted runs; and the smoke scale in full."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

from conftest import ENVIRONMENT, REPOSITORY, SAMPLE
from rt_plugin.corpus import prepare
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.replicate import command, report, steps
from rt_plugin.replicate.plan import SCALES, load_plan
from rt_plugin.replicate.results import write_csv, write_finetunings
from rt_plugin.replicate.runs import launch_command

# A training that takes no time: the loss is 5 bits and the distance, in doublings, of the learning rate from the best
# one of the model; rates above 1 diverge. Each start leaves a line in the file `starts`.
TRAINER = textwrap.dedent(
    """
    import argparse, json, math, os, pathlib, shlex, shutil, sys, time
    from rt_plugin.pretrain import launch
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    for name in ("recipe", "model", "learning-rate", "updates", "warmup-updates", "seed", "save-dir", "save-interval"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--cpu", action="store_true")
    args, options = parser.parse_known_args()
    folder = pathlib.Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    here = pathlib.Path(__file__).parent
    with (here / "starts").open("a") as file:
        file.write(folder.name + "\\n")
    rate, updates = float(args.learning_rate), int(args.updates)
    given = launch.parse_arguments(sys.argv[1:])
    command = launch.fairseq_options(given, launch.choose_recipe(given), launch.Devices("cpu", 1))
    (folder / "command.txt").write_text(shlex.join(["fairseq-train", *map(str, command)]))
    (folder / "train.log").write_text("| INFO | fairseq_cli.train | num. shared model params: 1,000 (num. trained: 1)")
    if (here / "slow").exists():
        (here / "pids").open("a").write(f"{os.getpid()}\\n")
        time.sleep(60)
    if (here / "full").exists():
        sys.exit("rt-pretrain: error: the disk is full")
    if (here / "model").exists():
        shutil.copytree((here / "model").resolve(), folder, dirs_exist_ok=True)
    best = json.loads((here / "best.json").read_text())[args.model]
    with (folder / "log.jsonl").open("a") as log:
        for update in (updates // 2, updates):
            loss = 5 + abs(math.log2(rate / best)) + int(args.seed) / 1000 + 10 * (updates - update)
            shared = {"update": update, "loss": loss if rate <= 1 else math.nan}
            train = {"split": "train", "tokens_per_update": 100, "seconds": update * 3.6}
            log.write(json.dumps(shared | train) + "\\n" + json.dumps(shared | {"split": "valid"}) + "\\n")
    if rate > 1:
        sys.exit("rt-pretrain: error: update 3: gradients are not finite; resume with a lower --lr")
    """
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A prepared corpus of the sample's head, with a test split."""
    folder = tmp_path_factory.mktemp("replication")
    lines = (SAMPLE / "train.txt").read_text(encoding="utf-8").splitlines()
    parts = {"train": lines[:1200], "valid": lines[1200:1300], "test": lines[1300:1400]}
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    words = [folder / "train.txt", "--valid", folder / "valid.txt", "--test", folder / "test.txt"]
    words += ["--vocab-size", "500", "--workers", "1", "--out", folder / "data"]
    assert prepare.main([str(word) for word in words]) == 0
    return folder / "data"


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Trainings that take no time; returns the folder of their settings."""
    return make_trainer(tmp_path / "trainer", monkeypatch)


def make_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    (folder / "train.py").write_text(TRAINER)
    (folder / "best.json").write_text(json.dumps({"roberta": 1e-3, "recurrent_roberta": 1e-3}))

    def fake(*arguments):
        words = launch_command(*arguments)
        return [sys.executable, str(folder / "train.py"), *words[words.index("pretrain") + 1 :]]

    monkeypatch.setattr(command, "launch_command", fake)
    return folder


def make_plan(folder: Path, **changes) -> str:
    """A small plan of two arms and three rates, with changes to its stages."""
    plan = json.loads((REPOSITORY / "rt_plugin" / "replicate" / "plans" / "smoke.json").read_text())
    plan["launcher"] = ["--save-interval", "5", "--cpu"]
    plan["search"] |= {"learning_rates": [5e-4, 1e-3, 2e-3], "extensions": 2}
    plan["final"]["seeds"] = [11, 12]
    for name, change in changes.items():
        plan[name] = plan[name] | change if isinstance(change, dict) else change
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return str(path)


def replicate(*arguments) -> int:
    return command.main([str(argument) for argument in arguments])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report_of(results: Path) -> str:
    assert report.main([str(results)]) == 0
    return (results / "report.md").read_text(encoding="utf-8")


def starts(trainer: Path) -> list[str]:
    file = trainer / "starts"
    return file.read_text().splitlines() if file.is_file() else []


def test_laptop_is_the_plan_that_was_written_down():
    plan = load_plan("laptop")
    assert (plan.recipe, plan.search.learning_rates, plan.search.seeds) == ("tiny", (7.5e-4, 1.5e-3, 3e-3, 6e-3), (1,))
    assert (plan.search.updates, plan.search.warmup_updates) == (2500, 250)
    assert (plan.final.updates, plan.final.warmup_updates, plan.final.seeds) == (5000, 500, (11, 12, 13))
    assert len(plan.search.arms) == len(plan.final.arms) == 7
    assert len(plan.comparisons) == 6
    assert len(plan.finetuning.learning_rates) == 7


@pytest.mark.parametrize("size, vocabulary", [("tiny", 8_000), ("mini", 16_000)])
def test_arms_have_equal_parameters(size, vocabulary):
    dictionary = Dictionary()
    for i in range(vocabulary - 1):  # sentencepiece's pieces but for three special ones, fairseq's four
        dictionary.add_symbol(f"piece{i}")
    dictionary.add_symbol("<mask>")
    counts = {}
    for scale in ("laptop", "one-gpu"):
        for arm in load_plan(scale).arms.values():
            args = Namespace(tokens_per_sample=128, max_positions=128, **model_options(arm.options))
            ARCH_CONFIG_REGISTRY[f"{arm.model}_{size}"](args)
            task = Namespace(source_dictionary=dictionary, dictionary=dictionary)
            model = ARCH_MODEL_REGISTRY[f"{arm.model}_{size}"].build_model(args, task)
            counts[arm.name] = sum(p.numel() for p in model.parameters())
    assert {name: n / counts["ffn"] for name, n in counts.items()} == pytest.approx(dict.fromkeys(counts, 1), rel=0.005)


def model_options(words) -> dict:
    """Command-line options as attributes; a number where one is given, True where nothing is."""
    options = {}
    for word in words:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            options[name] = True
        else:
            options[name] = int(word) if word.isdigit() else word
    return options


@pytest.mark.parametrize("scale", SCALES)
def test_print_plan_lists_every_run_with_its_cost(scale, capsys):
    assert replicate(scale, "--print-plan") == 0
    said = capsys.readouterr().out
    plan = load_plan(scale)
    search = len(plan.search.arms) * len(plan.search.learning_rates) * len(plan.search.seeds)
    final = len(plan.final.arms) * len(plan.final.seeds)
    assert (said.count("\n| search "), said.count("\n| final ")) == (search, final)
    lines = [line for line in said.splitlines() if line.startswith(("| search ", "| final "))]
    hours = [float(line.split("|")[-2].replace(",", "")) for line in lines]
    total = float(re.search(r"about ([\d,.]+) (core|GPU)-hours", said)[1].replace(",", ""))
    assert total == pytest.approx(sum(hours), rel=0.02, abs=0.3)


def test_print_plan_estimates_the_measured_time(capsys):
    replicate("laptop", "--print-plan")
    # 2,500 updates of 4,096 tokens take 8 minutes: 28 of these and 21 twice as long are 9.3 hours
    assert "49 pretrainings, about 9.3 core-hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{", "is no JSON"),
        ("[]", "see the plans in"),
        ('{"scale": "mine"}', "no 'arms' there"),
    ],
)
def test_a_broken_plan_is_one_line(text, expected, tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(text)
    assert replicate(path, "--print-plan") == 1
    error = capsys.readouterr().err
    assert str(path) in error and expected in error and error.count("\n") == 1


_VARIANT = {"arm": "swish-rnn", "options": ["--weight-decay", "0"]}


def tuned(**change):
    """A change of a plan: that encoders are fine-tuned."""
    part = {"arms": ["swish-rnn"], "encoder_seed": 11, "learning_rates": [1e-3], "epochs": 1, "sweeps": []}
    return {"evaluate": {"mask_seed": 1, "finetuning": {**part, "variants": {"no-weight-decay": _VARIANT}, **change}}}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"comparisons": [["swish-rnn", "lstm"]]}, "arm 'lstm' is not among its arms: ffn, swish-rnn"),
        (
            tuned(comparisons=[["swish-rnn", "ffn"]]),
            "comparisons of finetuning name 'ffn'; fine-tuned are swish-rnn, no-weight-decay",
        ),
        (tuned(variants={"swish-rnn": _VARIANT}), "the variant 'swish-rnn' has the name of an arm that is fine-tuned"),
        (tuned(variants={"x": {**_VARIANT, "arm": "lstm"}}), "arm 'lstm' is not among its arms: ffn, swish-rnn"),
        ({"search": {"learning_rates": []}}, "search needs learning_rates"),
        ({"search": {"extend_by": "twice"}}, "could not convert string to float: 'twice'"),
        ({"recipe": "laptp"}, "no recipe 'laptp'; known are tiny, mini, small"),
        ({"verdicts": [{"in_favour": [2], "says": "yes"}]}, "names a comparison that is not there"),
    ],
)
def test_a_plan_that_contradicts_itself_is_one_line(change, expected, tmp_path, capsys):
    assert replicate(make_plan(tmp_path, **change), "--print-plan") == 1
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_no_such_scale(capsys):
    assert replicate("desktop", "--print-plan") == 1
    assert "SCALE desktop: No such file or directory; expected smoke, laptop" in capsys.readouterr().err


def test_search_extends_the_grid_for_all_arms_until_no_best_is_at_an_edge(corpus, trainer, tmp_path, capsys):
    (trainer / "best.json").write_text(json.dumps({"roberta": 4e-3, "recurrent_roberta": 1e-3}))
    out = tmp_path / "out"
    assert replicate(make_plan(tmp_path), "--out", out, "--data", corpus, "--stage", "search") == 0
    rows = rows_of(out / "results" / "runs.csv")
    tried = {arm: [float(r["learning_rate"]) for r in rows if r["arm"] == arm] for arm in ("ffn", "swish-rnn")}
    # ffn is best at 2e-3, then at 4e-3, each time the highest; 8e-3 lies beyond
    assert tried["ffn"] == tried["swish-rnn"] == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    said = capsys.readouterr().err
    assert "ffn: best learning rate 0.004, 5.001 bits" in said
    assert "swish-rnn: best learning rate 0.001, 5.001 bits" in said
    assert "EDGE" not in said


def test_a_best_rate_at_the_edge_is_told_loudly(corpus, trainer, tmp_path, capsys):
    (trainer / "best.json").write_text(json.dumps({"roberta": 1e-3, "recurrent_roberta": 1e-5}))
    out = tmp_path / "out"
    plan = make_plan(tmp_path, search={"extensions": 1})
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 0
    assert "WARNING: swish-rnn: its best rate 0.00025 is at the EDGE of the grid" in capsys.readouterr().err
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "report") == 0
    assert "**At an edge of the grid, the optimum may lie beyond: swish-rnn (0.00025).**" in (
        out / "results" / "report.md"
    ).read_text(encoding="utf-8")


def test_final_runs_are_paired_and_at_the_best_rates(corpus, trainer, tmp_path):
    (trainer / "best.json").write_text(json.dumps({"roberta": 1e-3, "recurrent_roberta": 2e-3}))
    out, plan = tmp_path / "out", make_plan(tmp_path, search={"learning_rates": [5e-4, 1e-3, 2e-3, 4e-3]})
    for stage in ("search", "final"):
        assert replicate(plan, "--out", out, "--data", corpus, "--stage", stage) == 0
    final = [row for row in rows_of(out / "results" / "runs.csv") if row["stage"] == "final"]
    assert [(row["arm"], row["learning_rate"], row["seed"]) for row in final] == [
        ("ffn", "0.001", "11"),
        ("swish-rnn", "0.002", "11"),
        ("ffn", "0.001", "12"),
        ("swish-rnn", "0.002", "12"),
    ]
    first = final[0]
    assert (first["tokens"], first["updates"], first["parameters"]) == ("1000", "10", "1000")
    assert float(first["valid_loss"]) == pytest.approx(5.011)
    assert float(first["hours"]) == pytest.approx(0.01)
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|\d.*", first["commit"])
    curves = [row for row in rows_of(out / "results" / "curves.csv") if row["stage"] == "final"]
    assert [int(row["update"]) for row in curves] == [5, 10] * 4


def test_finished_runs_are_not_run_again(corpus, trainer, tmp_path, capsys):
    out, plan = tmp_path / "out", make_plan(tmp_path)
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 0
    before = starts(trainer)
    assert len(before) == len(set(before)) == 6
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 0
    assert starts(trainer) == before
    assert "6 runs, 6 of them finished before" in capsys.readouterr().err


def test_a_run_that_diverged_is_a_row_and_not_run_again(corpus, trainer, tmp_path, capsys):
    out = tmp_path / "out"
    plan = make_plan(tmp_path, search={"learning_rates": [5e-4, 1e-3, 2.0]})
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 0
    rows = {(r["arm"], r["learning_rate"]): r for r in rows_of(out / "results" / "runs.csv")}
    assert rows["ffn", "2"]["failed"] == "diverged" and "not finite" in rows["ffn", "2"]["why"]
    assert rows["ffn", "2"]["valid_loss"] == ""
    assert rows["ffn", "0.001"]["failed"] == ""
    assert "ffn-lr2-seed1: nan bits, DIVERGED" in capsys.readouterr().err
    replicate(plan, "--out", out, "--data", corpus, "--stage", "search")
    assert starts(trainer).count("ffn-lr2-seed1") == 1


def test_a_run_above_the_unigram_model_failed(corpus, trainer, tmp_path):
    (trainer / "best.json").write_text(json.dumps({"roberta": 1e-3, "recurrent_roberta": 1e-6}))
    out = tmp_path / "out"
    plan = make_plan(tmp_path, search={"extensions": 0})
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 0
    rows = {(r["arm"], r["learning_rate"]): r for r in rows_of(out / "results" / "runs.csv")}
    assert rows["swish-rnn", "0.002"]["failed"] == "above unigram"  # 16 bits, where 500 pieces hold 9 at most
    assert "the unigram model has 7." in rows["swish-rnn", "0.002"]["why"]
    assert rows["ffn", "0.002"]["failed"] == ""


def test_a_run_that_broke_off_is_told_and_tried_again(corpus, trainer, tmp_path, capsys):
    out, plan = tmp_path / "out", make_plan(tmp_path)
    (trainer / "full").touch()
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 runs broke off" in error and "the disk is full" in error
    assert len(starts(trainer)) == 1  # the others would break off, too
    assert [r["failed"] for r in rows_of(out / "results" / "runs.csv")] == ["broke off"]
    (trainer / "full").unlink()
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 0
    assert {r["failed"] for r in rows_of(out / "results" / "runs.csv")} == {""}


def test_a_run_has_the_commits_that_trained_it(corpus, trainer, tmp_path):
    """Not that of the checkout as the run is taken in; what is no name of a version is left out."""
    out, plan = tmp_path / "out", make_plan(tmp_path)
    words = (plan, "--out", out, "--data", corpus, "--stage", "search")
    assert replicate(*words) == 0
    folder = out / "search" / "ffn-lr0.001-seed1"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    commits = ("a3ba108", "a3ba108", "d0432fb-dirty", "| x |\n")
    text = "".join(json.dumps({**line, "commit": c}) + "\n" for line, c in zip(lines, commits, strict=True))
    (folder / "log.jsonl").write_text(text)
    Path(f"{folder}.json").unlink()
    assert replicate(*words) == 0
    (row,) = [r for r in rows_of(out / "results" / "runs.csv") if (r["arm"], r["learning_rate"]) == ("ffn", "0.001")]
    assert row["commit"] == "a3ba108 d0432fb-dirty"


def test_final_needs_the_search(corpus, trainer, tmp_path, capsys):
    assert replicate(make_plan(tmp_path), "--out", tmp_path / "out", "--data", corpus, "--stage", "final") == 1
    assert "6 runs of the search are left, ffn-lr0.0005-seed1 first: --stage search" in capsys.readouterr().err
    assert not starts(trainer)


def test_a_search_alone_ends_with_its_report(corpus, trainer, tmp_path, monkeypatch, capsys):
    plan = make_plan(tmp_path, final={"seeds": []})
    monkeypatch.setattr(command.Replication, "time", lambda self: None)
    assert replicate(plan, "--out", tmp_path / "out", "--data", corpus) == 0
    assert "no final runs" in capsys.readouterr().err
    assert "## Search for learning rates" in (tmp_path / "out" / "results" / "report.md").read_text()


def test_stopped_it_ends_its_trainings_and_goes_on_later(corpus, trainer, tmp_path):
    out, plan = tmp_path / "out", make_plan(tmp_path)
    (trainer / "slow").touch()
    program = textwrap.dedent(
        f"""
        import sys
        from rt_plugin.replicate import command
        launch = command.launch_command
        def fake(*arguments):
            words = launch(*arguments)
            return [sys.executable, {str(trainer / "train.py")!r}, *words[words.index("pretrain") + 1 :]]
        command.launch_command = fake
        sys.exit(command.main(sys.argv[1:]))
        """
    )
    words = [plan, "--out", out, "--data", corpus, "--stage", "search", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not ((trainer / "pids").is_file() and len((trainer / "pids").read_text().split()) == 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped; the same command goes on from here" in said
    for pid in map(int, (trainer / "pids").read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    (trainer / "slow").unlink()
    assert replicate(*words) == 0
    assert {r["failed"] for r in rows_of(out / "results" / "runs.csv")} == {""}


def test_runs_begun_elsewhere_are_adopted_by_their_command(corpus, trainer, tmp_path, capsys):
    first, plan = tmp_path / "first", make_plan(tmp_path)
    assert replicate(plan, "--out", first, "--data", corpus, "--stage", "search") == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    begun = len(starts(trainer))
    for number, folder in enumerate(sorted(path for path in (first / "search").iterdir() if path.is_dir())):
        folder.rename(elsewhere / f"run{number}")
    second = tmp_path / "second"
    words = ("--out", second, "--data", corpus, "--stage", "search", "--adopt", *sorted(elsewhere.iterdir()))
    assert replicate(plan, *words) == 0
    assert len(starts(trainer)) == begun  # nothing was left to train
    assert rows_of(second / "results" / "runs.csv") == rows_of(first / "results" / "runs.csv")
    (elsewhere / "other").mkdir()
    assert replicate(plan, "--out", second, "--data", corpus, "--adopt", elsewhere / "other") == 1
    assert f"--adopt {elsewhere / 'other'}: no training of the plan" in capsys.readouterr().err


def test_an_option_that_arms_differ_by_tells_their_runs_apart(corpus, trainer, tmp_path, capsys):
    """Also one that the recipe has, too, and that is no option of the model."""
    arms = {name: {"model": "recurrent_roberta", "options": []} for name in ("ffn", "swish-rnn")}
    arms["ffn"]["options"] = ["--weight-decay", "0"]
    plan = make_plan(
        tmp_path, arms=arms, search={"learning_rates": [1e-3], "extensions": 0}, options=["--dropout", "0.2"]
    )
    first = tmp_path / "first" / "search"
    assert replicate(plan, "--out", first.parent, "--data", corpus, "--stage", "search") == 0
    words = ("--data", corpus, "--stage", "search", "--adopt", *first.glob("*seed1"))
    assert replicate(plan, "--out", tmp_path / "second", *words) == 0
    for link in (tmp_path / "second" / "search").glob("*seed1"):
        assert link.resolve() == first / link.name
    text = (first / "ffn-lr0.001-seed1" / "command.txt").read_text()
    for option in ("--weight-decay", "--dropout", "--clip-norm"):
        (first / "ffn-lr0.001-seed1" / "command.txt").write_text(f"{text} {option} 0.77")
        assert replicate(plan, "--out", tmp_path / "third", *words) == 1
        assert "ffn-lr0.001-seed1: no training of the plan" in capsys.readouterr().err


def test_no_program_that_an_adopted_folder_names_is_run(corpus, trainer, tmp_path, capsys):
    """Its command names the checkout that it was trained by, for the table's commit: git would run what that names."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    first, plan = tmp_path / "first", make_plan(tmp_path)
    assert replicate(plan, "--out", first, "--data", corpus, "--stage", "search") == 0
    checkout, mark = tmp_path / "checkout", tmp_path / "mark"
    (checkout / "rt_plugin").mkdir(parents=True)
    (checkout / "file").touch()
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    (checkout / "program").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (checkout / "program").chmod(0o755)
    subprocess.run([*git, "config", "core.fsmonitor", str(checkout / "program")], check=True)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(first / "search", elsewhere, ignore=shutil.ignore_patterns("*.json", "*-seed*.log"))
    for path in elsewhere.glob("*/command.txt"):
        path.write_text(f"{path.read_text()} --user-dir {checkout / 'rt_plugin'}")
    second = tmp_path / "second"
    words = ("--out", second, "--data", corpus, "--stage", "search")
    assert replicate(plan, *words, "--adopt", *sorted(elsewhere.iterdir())) == 0
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True).stdout
    assert {row["commit"] for row in rows_of(second / "results" / "runs.csv")} == {said[:7]}
    assert not mark.exists()
    path = min(elsewhere.glob("*/command.txt"))
    path.write_text(re.sub(r"--lr \S+", "--lr fast", path.read_text()))
    capsys.readouterr()
    assert replicate(plan, *words, "--adopt", path.parent) == 1
    assert f"--adopt {path.parent}: no training of the plan" in capsys.readouterr().err


def test_a_folder_with_another_training_is_refused(corpus, trainer, tmp_path, capsys):
    out, plan = tmp_path / "out", make_plan(tmp_path)
    assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 0
    folder = out / "search" / "ffn-lr0.001-seed1"
    text = (folder / "command.txt").read_text()
    for other in (text.replace("--max-update 10", "--max-update 20"), text + " --encoder-normalize-before"):
        (folder / "command.txt").write_text(other)
        assert replicate(plan, "--out", out, "--data", corpus, "--stage", "search") == 1
        assert f"{folder / 'command.txt'}: is not the training of the plan" in capsys.readouterr().err
    (folder / "command.txt").write_text(text)
    assert replicate(make_plan(tmp_path, recipe="mini"), "--out", out, "--data", corpus) == 1
    assert "was begun with a plan of another 'recipe'" in capsys.readouterr().err


def test_missing_options_and_data_are_one_line(tmp_path, capsys):
    assert replicate("smoke", "--out", tmp_path / "out") == 1
    assert "--data is missing" in capsys.readouterr().err
    assert replicate("smoke", "--out", tmp_path / "out", "--data", tmp_path / "none") == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--glue", "."), "--glue: the plan smoke has no finetuning; leave it out"),
        (("--pairs", "nowhere.jsonl"), "nowhere.jsonl: no such file or folder"),
        ((), "has no split 'test', which final encoders are measured on; prepare the corpus with --test"),
    ],
)
def test_what_evaluating_would_lack_is_told_before_the_trainings(words, expected, corpus, trainer, tmp_path, capsys):
    data = shutil.copytree(corpus, tmp_path / "data")
    if not words:
        (data / "test.idx").unlink()
    assert replicate(make_plan(tmp_path), "--out", tmp_path / "out", "--data", data, *words) == 1
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not starts(trainer)


@pytest.fixture(scope="module")
def finished(data_bin, pretrained, glue_dir, tmp_path_factory):
    """A finished replication with a trained model in the place of what the trainings would have made.

    Returns: its plan, the words of the command behind --out, its results.
    """
    folder = tmp_path_factory.mktemp("finished")
    data = shutil.copytree(data_bin, folder / "data")
    for ending in ("bin", "idx"):
        shutil.copy(data / f"valid.{ending}", data / f"test.{ending}")
    pairs = folder / "pairs.jsonl"
    pair = {"sentence_good": "The rivers are long.", "sentence_bad": "The rivers is long.", "UID": "agreement"}
    pairs.write_text(json.dumps(pair) + "\n")
    more_dropout = {"arm": "swish-rnn", "options": ["--dropout", "0.8"]}
    change = tuned(sweeps=[{"tasks": ["QNLI"], "seeds": [1, 2]}], variants={"more-dropout": more_dropout})
    best = {"roberta": 1e-3, "recurrent_roberta": 2e-3}  # the second one extends the grid
    plan = make_plan(folder, final={"seeds": [11]}, **change)
    rest = ("--data", data, "--nice", "0", "--pairs", pairs, "--glue", glue_dir)
    with pytest.MonkeyPatch.context() as patch:
        trainer = make_trainer(folder / "trainer", patch)
        (trainer / "model").symlink_to(pretrained)
        (trainer / "best.json").write_text(json.dumps(best))
        for stage in ("search", "final", "evaluate", "report"):
            assert replicate(plan, "--out", folder / "out", *rest, "--stage", stage) == 0
    steps = "arm,seconds,low,high,rounds,tokens,device\nffn,1,1,1,1,9,x\nswish-rnn,1,1,1,1,9,x\n"
    (folder / "out" / "results" / "steps.csv").write_text(steps)
    return plan, rest, (folder / "out").rename(folder / "elsewhere") / "results"


@pytest.fixture
def moved(finished, pretrained, trainer, tmp_path):
    """The same with a copy of its results, as on another machine."""
    plan, rest, results = finished
    (trainer / "model").symlink_to(pretrained)
    return plan, rest, shutil.copytree(results, tmp_path / "brought")


def test_final_encoders_are_evaluated_on_pairs_and_glue(finished, capsys):
    plan, rest, results = finished
    final = [row for row in rows_of(results / "runs.csv") if row["stage"] == "final"]
    assert len(final) == 2 and all(5 < float(row["test_loss"]) < 11 for row in final)
    found = [row for row in rows_of(results / "minimal_pairs.csv") if row["phenomenon"] == "mean over paradigms"]
    assert [(row["arm"], row["data"], row["mask"]) for row in found] == [
        ("ffn", "pairs", "token"),
        ("ffn", "pairs", "word"),
        ("swish-rnn", "pairs", "token"),
        ("swish-rnn", "pairs", "word"),
    ]
    runs = rows_of(results / "finetuning.csv")
    assert [(row["model"], row["task"], row["lr"], row["seed"]) for row in runs] == [
        ("swish-rnn", "QNLI", "0.001", "1"),
        ("swish-rnn", "QNLI", "0.001", "2"),
        ("more-dropout", "QNLI", "0.001", "1"),
        ("more-dropout", "QNLI", "0.001", "2"),
        ("majority", "QNLI", "", "0"),
        ("tf-idf", "QNLI", "", "0"),
    ]
    assert runs[2]["train_loss"] != runs[0]["train_loss"]  # the same seed and rate, with the variant's option
    text = (results / "report.md").read_text(encoding="utf-8")
    assert "## Second outcome: minimal pairs, pairs, --mask word" in text and "## Stability of fine-tuning" in text
    assert "## Third outcome: fine-tuned on tasks" in text and "| tf-idf " in text
    capsys.readouterr()
    assert replicate(plan, "--out", results.parent, *rest[:4], "--stage", "evaluate") == 0
    assert "held-out loss" not in capsys.readouterr().err  # the same checkpoint is not measured again


def test_pairs_that_were_judged_before_one_broke_off_are_kept(finished, tmp_path, capsys):
    plan, rest, results = finished
    out = shutil.copytree(results.parent, tmp_path / "out", symlinks=True)
    other, broken = tmp_path / "other.jsonl", tmp_path / "broken.jsonl"
    other.write_text('{"sentence_good": "It is old.", "sentence_bad": "Is it old."}\n')
    broken.write_text("{\n")
    assert replicate(plan, "--out", out, *rest[:4], "--stage", "evaluate", "--pairs", other, broken) == 1
    assert f"{broken}, line 1: not JSON" in capsys.readouterr().err
    found = {(row["arm"], row["data"], row["mask"]) for row in rows_of(out / "results" / "minimal_pairs.csv")}
    before = {(arm, "pairs", mask) for arm in ("ffn", "swish-rnn") for mask in ("token", "word")}
    assert found == before | {("ffn", "other", "token"), ("ffn", "other", "word")}


class TestContinueFrom:
    """A replication goes on on another machine, where only the CSV files of the first one are."""

    def test_everything_is_taken_over_and_nothing_is_run_again(self, moved, trainer, tmp_path, capsys):
        plan, rest, brought = moved
        out = tmp_path / "second"
        assert replicate(plan, "--out", out, *rest, "--continue-from", brought) == 0, capsys.readouterr().err
        said = capsys.readouterr().err
        assert "10 runs taken over" in said and "all fine-tunings were taken over" in said
        assert starts(trainer) == [] and "held-out loss" not in said and "(token) with" not in said
        for file in sorted(brought.glob("*.csv")):
            assert (out / "results" / file.name).read_text() == file.read_text(), file.name
        assert (out / "results" / "report.md").read_text() == report_of(brought)
        assert replicate(plan, "--out", out, *rest) == 0  # what was taken over stays, without the option
        assert starts(trainer) == []

    def test_what_is_left_is_trained_here(self, moved, trainer, tmp_path, capsys):
        plan, rest, brought = moved
        rows = rows_of(brought / "runs.csv")
        final = [row for row in rows if row["stage"] == "final"]
        final[0]["failed"] = "under way"
        final[1]["test_loss"] = ""
        write_csv(brought / "runs.csv", list(rows[0]), rows)
        out = tmp_path / "second"
        words = (plan, "--out", out, *rest[:4])
        assert replicate(*words, "--continue-from", brought, "--stage", "final") == 0
        left = [f"{row['arm']}-lr{row['learning_rate']}-seed{row['seed']}" for row in final[:2]]
        assert starts(trainer) == left
        assert replicate(*words, "--stage", "evaluate") == 0
        assert replicate(*words, "--stage", "report") == 0
        again = [row for row in rows_of(out / "results" / "runs.csv") if row["stage"] == "final"]
        assert [row["failed"] for row in again] == [""] * 2 and all(float(row["test_loss"]) for row in again)

    def test_a_run_whose_measurement_is_missing_is_trained_here(self, moved, trainer, tmp_path):
        """runs.csv has its test loss already, held_out.csv was to be written when all had been measured."""
        plan, rest, brought = moved
        rows = rows_of(brought / "held_out.csv")
        write_csv(brought / "held_out.csv", list(rows[0]), rows[1:])
        words = (plan, "--out", tmp_path / "second", *rest[:4], "--continue-from", brought)
        assert replicate(*words, "--stage", "final") == 0
        assert starts(trainer) == ["ffn-lr0.001-seed11"]

    def test_other_masks_are_refused(self, moved, tmp_path, capsys):
        plan, rest, brought = moved
        source = json.loads((brought / "plan.json").read_text())
        source["evaluate"]["mask_seed"] += 1
        (brought / "plan.json").write_text(json.dumps(source))
        capsys.readouterr()
        words = (plan, "--out", tmp_path / "second", *rest[:4], "--continue-from", brought)
        assert replicate(*words, "--stage", "evaluate") == 1
        assert "another 'mask_seed'; give its plan, or other results" in capsys.readouterr().err

    def test_fine_tunings_of_another_version(self, moved, tmp_path):
        """A column that one file has and the other has not."""
        files = [tmp_path / name for name in ("old.csv", "new.csv")]
        write_csv(files[0], ["model"], [{"model": "ffn"}])
        write_csv(files[1], ["model", "checkpoint"], [{"model": "swish-rnn", "checkpoint": "abc"}])
        write_finetunings(files, tmp_path)
        found = rows_of(tmp_path / "results" / "finetuning.csv")
        assert [(row["model"], row["checkpoint"]) for row in found] == [("ffn", ""), ("swish-rnn", "abc")]

    def test_half_a_sweep_needs_the_encoder(self, moved, trainer, tmp_path, capsys):
        """Which is trained again for what is left, and no more."""
        plan, rest, brought = moved
        rows = rows_of(brought / "finetuning.csv")
        rows[0] |= {"checkpoint": "of another machine"}
        write_csv(brought / "finetuning.csv", list(rows[0]), rows[:3])
        out = tmp_path / "second"
        words = (plan, "--out", out, *rest)
        capsys.readouterr()
        assert replicate(*words, "--continue-from", brought, "--stage", "evaluate") == 1
        error = capsys.readouterr().err
        assert "swish-rnn-lr0.002-seed11 was taken over with 3 of 4 fine-tunings, and its encoder is not here" in error
        folder = Path(re.search(r"remove (\S+) and ", error)[1])
        shutil.rmtree(folder)
        folder.with_name(f"{folder.name}.json").unlink()
        for stage in ("final", "evaluate"):
            assert replicate(*words, "--stage", stage) == 0
        assert starts(trainer) == ["swish-rnn-lr0.002-seed11"]
        again = rows_of(out / "results" / "finetuning.csv")
        assert again[:3] == rows[:3] and again[3]["seed"] == "2" and again[3]["checkpoint"] != "of another machine"

    def test_a_measurement_on_another_corpus_is_refused(self, moved, tmp_path, capsys):
        plan, rest, brought = moved
        rows = rows_of(brought / "held_out.csv")
        rows[0]["masked"] = "7"
        write_csv(brought / "held_out.csv", list(rows[0]), rows)
        capsys.readouterr()
        words = (plan, "--out", tmp_path / "second", *rest[:4], "--continue-from", brought)
        assert replicate(*words, "--stage", "evaluate") == 1
        assert "was measured on 7 tokens" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("column", "name"), [("data", "../../../../stolen"), ("mask", "a/../../stolen"), ("data", "..")]
    )
    def test_names_in_the_csv_files_lead_nowhere_else(self, column, name, moved, tmp_path, capsys):
        plan, rest, brought = moved
        rows = rows_of(brought / "minimal_pairs.csv")
        for row in rows:
            row[column] = name
        write_csv(brought / "minimal_pairs.csv", list(rows[0]), rows)
        capsys.readouterr()
        words = (plan, "--out", tmp_path / "second", *rest[:4], "--continue-from", brought)
        assert replicate(*words, "--stage", "evaluate") == 1
        assert "expected names without a slash" in capsys.readouterr().err
        assert not list(tmp_path.rglob("*stolen*"))

    @pytest.mark.parametrize(
        ("file", "old", "new", "expected"),
        [
            ("plan.json", '"recipe": "tiny"', '"recipe": "mini"', "another 'recipe'; give its plan, or other results"),
            ("runs.csv", ",10,", ",20,", "has '20', the plan '10'"),
            ("runs.csv", ",arm,", ",block,", "no column arm"),
            ("runs.csv", ",0.001,", ",fast,", "could not convert string to float: 'fast'"),
        ],
    )
    def test_results_of_another_plan_are_refused(self, file, old, new, expected, moved, tmp_path, capsys):
        plan, rest, brought = moved
        assert old in (brought / file).read_text()
        (brought / file).write_text((brought / file).read_text().replace(old, new))
        capsys.readouterr()
        out = tmp_path / "second"
        assert replicate(plan, "--out", out, *rest[:4], "--continue-from", brought) == 1
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
        assert not (out / "search").exists()

    def test_evaluating_needs_a_final_run(self, corpus, trainer, tmp_path, capsys):
        words = (make_plan(tmp_path), "--out", tmp_path / "out", "--data", corpus, "--nice", "0")
        assert replicate(*words, "--stage", "search") == 0
        capsys.readouterr()
        assert replicate(*words, "--stage", "evaluate") == 1
        assert "no final run has ended, ffn-lr0.001-seed11 is the first; --stage final" in capsys.readouterr().err


def test_smoke_scale_from_search_to_report(corpus, tmp_path, capsys):
    """The real thing: four trainings and two, time of an update, loss on the test split, tables and figures."""
    out = tmp_path / "out"
    words = ("smoke", "--out", out, "--data", corpus, "--jobs", "2", "--threads", "1", "--nice", "0")
    assert replicate(*words) == 0
    rows = rows_of(out / "results" / "runs.csv")
    assert [row["stage"] for row in rows] == ["search"] * 4 + ["final"] * 2
    assert {row["failed"] for row in rows} <= {"", "above unigram"}  # ten updates hardly learn the word counts
    assert all(float(row["test_loss"]) < 12 for row in rows if row["stage"] == "final")
    held_out = rows_of(out / "results" / "held_out.csv")
    assert len({row["masked"] for row in held_out}) == 1 and int(held_out[0]["masked"]) > 100
    text = (out / "results" / "report.md").read_text(encoding="utf-8")
    assert "## Final runs" in text and "## Where the loss is" in text and "## At equal time" in text
    timed = rows_of(out / "results" / "steps.csv")
    assert [(row["arm"], row["rounds"], row["device"]) for row in timed] == [
        ("ffn", "50", "CPU, threads: 1"),
        ("swish-rnn", "50", "CPU, threads: 1"),
    ]
    assert all(0 < float(row["low"]) <= float(row["seconds"]) <= float(row["high"]) < 60 for row in timed)
    assert all(300 < int(row["tokens"]) <= 768 for row in timed)  # of an update of at most 768, padding included
    for name in re.findall(r"\]\((\w+\.png)\)", text):
        assert (out / "results" / name).stat().st_size > 5_000
    capsys.readouterr()
    assert replicate(*words, "--stage", "time") == 0
    assert "steps.csv: was measured before; delete it to measure anew" in capsys.readouterr().err
    assert rows_of(out / "results" / "steps.csv") == timed


def test_time_updates_by_one_process_that_runs_out_of_memory(corpus, tmp_path, capsys, monkeypatch):
    """As with two GPUs: all arms train in this process, on one of them."""

    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(RecurrentRobertaModel, "forward", full)
    words = ["--data", str(corpus), "--out", str(tmp_path / "steps.csv")]
    assert steps.main([make_plan(tmp_path), *words]) == 1
    assert "the 2 arms do not fit into memory together: CUDA out of memory" in capsys.readouterr().err


def test_time_updates_refuses_in_one_line(corpus, tmp_path, capsys):
    words = ["--data", str(corpus), "--out", str(tmp_path / "steps.csv")]
    assert steps.main(["desktop", *words]) == 1
    assert "SCALE desktop: No such file or directory" in capsys.readouterr().err
    assert steps.main(["smoke", "--data", str(tmp_path), *words[2:]]) == 1
    assert "no train.bin there" in capsys.readouterr().err
    plan = make_plan(tmp_path, arms={"swish-rnn": {"model": "recurrent_roberta", "options": ["--recurrence-dim", "0"]}})
    assert steps.main([plan, *words]) == 1
    error = capsys.readouterr().err
    assert "--recurrence-dim 0: expected a whole number of at least 1" in error and error.count("\n") == 1
    assert not (tmp_path / "steps.csv").exists()
