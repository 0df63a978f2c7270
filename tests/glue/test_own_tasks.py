"""Tasks of one's own, by a task.json or prepared by other means: from the files to predictions and a report."""

import csv
import json
import shutil

import pytest

from conftest import sample_rows
from rt_plugin.errors import UserError
from rt_plugin.glue import baselines, finetune, predict, prepare, report
from rt_plugin.glue.own import describe, make_task
from rt_plugin.glue.prepared import task_in
from rt_plugin.glue.readers import read_examples
from rt_plugin.glue.results import summarize
from rt_plugin.model import RecurrentRobertaModel

REVIEWS = {"texts": ["sentence"], "label": "mood", "labels": ["neg", "pos"]}
ONE_RUN = ("--lr", "1e-3", "--seeds", "1", "--epochs", "1", "--threads", "1", "--batch-size", "16")


def run(main, *words):
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A task of single sentences as JSON lines; its labels are in another order than by their frequency, or by name."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "Reviews").mkdir()
    (folder / "Reviews" / "task.json").write_text(json.dumps(REVIEWS))
    for split, count in (("train", 64), ("dev", 24)):
        _, *rows = sample_rows(split, count)
        lines = [{"sentence": row[2], "mood": ("pos", "neg", "pos")[i % 3]} for i, row in enumerate(rows)]
        (folder / "Reviews" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def swept(files, tokenizer_folder, pretrained, tmp_path_factory):
    """Prepared data, and the OUT folder of a sweep over them."""
    folder = tmp_path_factory.mktemp("swept")
    run(prepare.main, files, folder / "data", "--model", tokenizer_folder)
    run(finetune.main, folder / "data", folder / "out", "--model", pretrained, "--gpus", *ONE_RUN)
    return folder


def assert_predictions_are_those_of_classify(model, files, out, *options):
    run(predict.main, "rows", model, files / "Reviews" / "dev.jsonl", out, *options)
    with out.open(newline="") as file:
        written = [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]
    loaded = RecurrentRobertaModel.from_pretrained(str(model))
    lines = [json.loads(line) for line in (files / "Reviews" / "dev.jsonl").read_text().splitlines()]
    assert written == [loaded.classify(line["sentence"])[0] for line in lines]
    assert set(written) <= {"neg", "pos"}
    return written, lines


def test_from_the_files_to_a_report(swept, files, tmp_path, capsys):
    model = swept / "out" / "Reviews" / "lr0.001-seed1"
    written, lines = assert_predictions_are_those_of_classify(model, files, tmp_path / "predicted.tsv")
    right = sum(label == line["mood"] for label, line in zip(written, lines, strict=True)) / len(lines)
    assert f"24 rows; accuracy {right:.4f}, f1_macro " in capsys.readouterr().out
    with (swept / "out" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["task"], float(row["best_accuracy"])) == ("Reviews", pytest.approx(right))
    run(report.main, swept / "out" / "results.csv", "--out", tmp_path)
    assert "over 1 tasks: Reviews;" in capsys.readouterr().out


def test_other_verbs_know_tasks_of_ones_own(swept, files, tmp_path, capsys):
    run(baselines.main, files, tmp_path / "floor.csv", "--hold-out", "0.3")
    assert "Reviews" in capsys.readouterr().out
    model = swept / "out" / "Reviews" / "lr0.001-seed1"
    assert predict.main(["submission", str(files), str(tmp_path / "out.zip"), str(model)]) == 1
    assert "the model is of Reviews, which no official server takes" in capsys.readouterr().err
    assert not (tmp_path / "out.zip").exists()


def test_a_mistyped_name(swept, files, tokenizer_folder, pretrained, tmp_path, capsys):
    for main, *words in (
        (prepare.main, files, tmp_path / "out", "--model", tokenizer_folder),
        (baselines.main, files, tmp_path / "out"),
        (finetune.main, swept / "data", tmp_path / "out", "--model", pretrained, "--gpus"),
    ):
        assert main([str(word) for word in (*words, "--tasks", "Revews")]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "'Revews' is unknown, expected one of CoLA," in error
        assert error.endswith("Reviews, or a task of your own, a folder with a task.json")


def test_data_prepared_by_other_means(swept, files, pretrained, tmp_path, fairseq_train, capsys):
    """As fairseq-preprocess leaves them, with --num-classes: one text, and labels with names."""
    data, model = shutil.copytree(swept / "data" / "Reviews", tmp_path / "data"), tmp_path / "model"
    (data / "glue.json").unlink()
    words = (data, "--user-dir", "rt_plugin", "--task", "rt_glue", "--criterion", "rt_glue", "--cpu")
    words += ("--arch", "recurrent_roberta_tiny", "--num-classes", "2", "--batch-size", "16", "--max-epoch", "1")
    words += ("--finetune-from-model", pretrained / "checkpoint_last.pt", "--optimizer", "adam", "--lr", "1e-3")
    fairseq_train(*words, "--save-dir", model, "--num-workers", "0")
    texts = ("--texts", "sentence")
    assert_predictions_are_those_of_classify(model, files, tmp_path / "predicted.tsv", *texts)
    (model / "glue.json").unlink()  # as earlier versions left the folder
    assert_predictions_are_those_of_classify(model, files, tmp_path / "again.tsv", *texts)
    capsys.readouterr()
    assert predict.main(["rows", str(model), str(files / "Reviews" / "dev.jsonl"), str(tmp_path / "x")]) == 1
    assert "give their columns with --texts" in capsys.readouterr().err


def test_a_description_is_carried_along():
    for description in (
        REVIEWS,
        {"texts": ["a", "b"], "label": "score", "score_range": [-1.0, 1.0]},
        {**REVIEWS, "metrics": ["f1", "mcc"], "headline": ["mcc"], "files": {"train": "a.tsv", "valid": "b.tsv"}},
    ):
        task = make_task("Mine", description, "task.json")
        again = make_task("Mine", json.loads(json.dumps(describe(task))), "glue.json")
        assert again == task
    assert (task.metrics, task.reader, task.num_classes) == (("f1", "mcc", "accuracy"), "tsv", 2)


def test_the_dev_file_is_the_split_valid():
    task = make_task("Mine", {**REVIEWS, "files": {"train": "a.tsv", "dev": "b.tsv"}}, "task.json")
    assert task.files == {"train": "a.tsv", "valid": "b.tsv"}


def test_more_dev_sets_and_folders_of_earlier_versions():
    files = {"train": "a.tsv", "valid": "b.tsv", "valid_hard": "c.tsv"}
    assert make_task("Mine", {**REVIEWS, "files": files}, "task.json").files == files
    content = {"task": "Mine", "description": {**REVIEWS, "files": {**files, "dev": "d.tsv", "extra": "e.tsv"}}}
    assert task_in(content).files == files


def test_the_floor_needs_a_dev_set(tmp_path, capsys):
    (tmp_path / "Mine").mkdir()
    (tmp_path / "Mine" / "task.json").write_text(json.dumps({**REVIEWS, "files": {"train": "a.tsv"}}))
    (tmp_path / "Mine" / "a.tsv").write_text("")
    assert baselines.main([str(tmp_path), str(tmp_path / "out.csv")]) == 1
    assert "Mine: has no dev set to read the floor on; hold rows of the train set out" in capsys.readouterr().err


def test_compressed_files_are_read_by_what_they_hold():
    task = make_task("Mine", {**REVIEWS, "files": {"train": "a.jsonl.gz", "valid": "b.jsonl.gz"}}, "task.json")
    assert task.reader == "jsonl"


def test_blank_lines_are_no_rows(tmp_path):
    """Such as the one at the end; but a row of a TSV with one column may be without text."""
    mine = {**REVIEWS, "texts": ["a", "b"], "label": "mood"}
    for name, lines, task, rows in (
        ("a.tsv", "a\tb\tmood\n\none\ttwo\tpos\n  \n\t\tneg\n\n", mine, [("one", "two"), ("", "")]),
        ("test.tsv", "sentence\n\none\n", REVIEWS, [("",), ("one",)]),
        ("a.jsonl", '\n{"sentence": "one", "mood": "neg"}\n \t\n', REVIEWS, [("one",)]),
    ):
        (tmp_path / name).write_text(lines)
        task = make_task("Mine", {**task, "files": {"train": name}}, "task.json")
        found = read_examples(task, name.split(".")[0], tmp_path / name)
        assert [example.texts for example in found] == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": ["a"]}, "unknown key 'text'; expected some of texts, label, labels"),
        ({"texts": "sentence"}, "texts is 'sentence', expected a list of names"),
        ({"texts": ["a", "b", "c"]}, "texts names 3 columns, expected one or two"),
        ({"labels": ["neg"]}, "labels are neg; expected two or more, each once"),
        ({"labels": ["neg", "neg"]}, "labels are neg, neg; expected two or more, each once"),
        ({"score_range": [0, 5]}, "expected labels, in the order of their class indices, or a score_range"),
        ({"labels": None}, "labels is None, expected a list of names"),
        ({"metrics": ["bleu"]}, "metrics names 'bleu', expected some of accuracy, f1, f1_macro, mcc"),
        ({"headline": ["mcc"]}, "headline is ('mcc',), expected one or more of its metrics"),
        (
            {"labels": ["a", "b", "c"], "metrics": ["f1"]},
            "metrics names 'f1', expected some of accuracy, f1_macro, mcc",
        ),
        ({"label": ["label"]}, "label is ['label'], expected the name of a column or key"),
        ({"files": {"Dev": "a"}}, "files names 'Dev', expected some of train, valid (or dev) and test, or a"),
        ({"files": {"dev": "a", "valid": "b"}}, "files names 'dev' and 'valid', which are one split"),
        ({"files": ["train.tsv"]}, "files is ['train.tsv'], expected an object of split -> file name"),
    ],
)
def test_a_wrong_description_is_named(change, message):
    with pytest.raises(UserError) as error:
        make_task("Mine", {**REVIEWS, **change}, "task.json")
    assert str(error.value).startswith(f"task.json: {message}")


def test_a_headline_of_which_the_lowest_is_the_best():
    """The best checkpoint is the one with the highest score."""
    with pytest.raises(UserError, match=r"task.json: headline names 'rmse', of which the lowest is the best"):
        make_task("Mine", {"texts": ["a"], "score_range": [0, 5], "headline": ["rmse"]}, "task.json")


@pytest.mark.parametrize(
    ("description", "values", "failed"),
    [
        ({"score_range": [0, 5], "headline": ["spearman"]}, {"spearman": 0.9, "pearson": 0.8}, 0),
        ({"score_range": [0, 5], "headline": ["spearman"]}, {"spearman": 0.1, "pearson": -0.1}, 1),
        ({"labels": ["no", "yes"], "metrics": ["f1"], "headline": ["f1"]}, {"f1": 0.95, "accuracy": 0.9}, 0),
        ({"labels": ["no", "yes"], "metrics": ["f1"], "headline": ["f1"]}, {"f1": 0.6, "accuracy": 0.5}, 1),
    ],
)
def test_whether_a_run_failed_whatever_the_headline(description, values, failed):
    """By its correlation or its accuracy, which every task of one's own therefore has."""
    task = make_task("Mine", {"texts": ["a"], **description}, "task.json")
    assert set(values) <= set(task.metrics)
    entry = {**values, "score": max(values.values()), "split": "valid", "updates": 10, "epoch": 1, "train_loss": 0.5}
    labels = {} if task.is_regression else {"no": 50, "yes": 50}
    assert summarize(task, [entry], labels)["failed"] == failed


def test_files_that_do_not_fit(files, tokenizer_folder, tmp_path, capsys):
    for name, content, message in (
        ("CoLA", json.dumps(REVIEWS), "task.json: CoLA is a task of the table; give the folder another name"),
        ("Mine", "{", "task.json: not JSON"),
        ("Mine", json.dumps(REVIEWS), "dev.tsv, expected the valid file"),
    ):
        folder = tmp_path / "files" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "task.json").write_text(content)
        shutil.copy(files / "Reviews" / "train.jsonl", folder / "train.tsv")
        words = (tmp_path / "files", tmp_path / "out", "--model", tokenizer_folder, "--tasks", name)
        assert prepare.main([str(word) for word in words]) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
