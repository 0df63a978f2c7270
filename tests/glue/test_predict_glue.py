"""Predictions of fine-tuned models for files, and the official submission; models come from a real, short sweep."""

import gzip
import json
import math
import re
import zipfile

import numpy as np
import pytest
import torch

from conftest import prepare_glue, sample_rows, write_tsv
from rt_plugin.glue import finetune, predictor
from rt_plugin.glue.predict import main
from rt_plugin.glue.predictor import Predictor
from rt_plugin.glue.readers import read_examples
from rt_plugin.glue.specs import BY_NAME
from rt_plugin.model import RecurrentRobertaModel

TEST_ROWS = 20
DEV = sample_rows("dev", 60)[1:]


def write_json_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def copa(sentences, number, labelled):
    row = {"premise": sentences[0], "choice1": sentences[1], "choice2": sentences[2], "question": "cause"}
    return {**row, "idx": 100 + number, **({"label": number % 2} if labelled else {})}


def multirc(sentences, number, labelled):
    answers = [
        {"text": text, "idx": 7 * number + i, **({"label": i % 2} if labelled else {})}
        for i, text in enumerate(sentences)
    ]
    questions = [
        {"question": "Which?", "idx": 10 + number, "answers": answers[:2]},
        {"question": "What?", "idx": 20 + number, "answers": answers[2:]},
    ]
    return {"idx": 50 + number, "passage": {"text": sentences[0], "questions": questions}}


@pytest.fixture(scope="module")
def models(glue_dir, tokenizer_folder, pretrained, tmp_path_factory):
    """task -> model folder."""
    sentences = [row[2] for row in DEV]
    for name, make in (("COPA", copa), ("MultiRC", multirc)):
        for split, count in (("train", 8), ("val", 4), ("test", 5)):
            rows = [make(sentences[3 * i : 3 * i + 3], i, split != "test") for i in range(count)]
            write_json_lines(glue_dir / name / f"{split}.jsonl", rows)
        prepare_glue(glue_dir, tokenizer_folder, name)
    out = tmp_path_factory.mktemp("models")
    options = ("--lr", "1e-3", "--seeds", "1", "--epochs", "1", "--threads", "1", "--gpus")
    tasks = ("QNLI", "STS-B", "MNLI", "COPA", "MultiRC")
    assert (
        finetune.main([str(a) for a in (glue_dir / "out", out, "--model", pretrained, *options, "--tasks", *tasks)])
        == 0
    )
    return {task: out / task / "lr0.001-seed1" for task in tasks}


def predict(*arguments):
    return main([*map(str, arguments), "--cpu"])


def read_tsv(path):
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def short_pairs(tmp_path_factory):
    """Pairs of different lengths that fit into the model uncut, and a TSV file of them."""
    pairs = [(" ".join(row[1].split()[: 1 + i % 4]), " ".join(row[2].split()[:3])) for i, row in enumerate(DEV[:20])]
    path = tmp_path_factory.mktemp("short") / "pairs.tsv"
    write_tsv(path, [("a", "b"), *pairs])
    return pairs, path


def test_rows_come_in_the_order_of_the_input(models, short_pairs, tmp_path):
    pairs, path = short_pairs
    assert predict("rows", models["QNLI"], path, tmp_path / "out", "--texts", "a", "b", "--batch-size", "6") == 0
    header, *rows = read_tsv(tmp_path / "out")
    assert header == ["index", "prediction", "probability"]
    model = RecurrentRobertaModel.from_pretrained(str(models["QNLI"]))
    for i, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        label, probability = model.classify(*pair)
        assert row[:2] == [str(i), label] and float(row[2]) == pytest.approx(probability, abs=1e-4)


def test_rows_do_not_depend_on_each_other(models, glue_dir, monkeypatch):
    """Nothing is padded, and a row has the result that it has alone."""
    predicting = Predictor(models["QNLI"], "checkpoint_best.pt", 8, cpu=True)
    examples = list(read_examples(BY_NAME["QNLI"], "valid", glue_dir / "QNLI" / "dev.tsv"))
    alone = np.concatenate([predicting.outputs([example]) for example in examples])
    forward, widths = Predictor._forward, []

    def watched(self, batch):
        widths.append(batch["net_input"]["src_lengths"].tolist())
        return forward(self, batch)

    monkeypatch.setattr(Predictor, "_forward", watched)
    np.testing.assert_allclose(predicting.outputs(examples), alone, rtol=0, atol=1e-6)
    assert all(len(set(lengths)) == 1 for lengths in widths) and max(map(len, widths)) > 1


def test_labelled_rows_give_the_metrics_of_the_training(models, glue_dir, tmp_path, capsys):
    entries = [json.loads(line) for line in (models["QNLI"] / "dev_metrics.jsonl").read_text().splitlines()]
    arguments = (models["QNLI"], glue_dir / "QNLI" / "dev.tsv", tmp_path / "out.tsv", "--split", "valid")
    assert predict("rows", *arguments, "--batch-size", "7") == 0
    assert f"30 rows; accuracy {entries[-1]['accuracy']:.4f}" in capsys.readouterr().out


def test_columns_of_any_name_in_tsv_and_json_lines(models, glue_dir, tmp_path):
    pairs = [(row[1], row[2]) for row in DEV[:20]]
    write_tsv(tmp_path / "mine.tsv", [("b", "a"), *((sentence, question) for question, sentence in pairs)])
    write_json_lines(tmp_path / "mine.jsonl", [{"a": question, "b": sentence} for question, sentence in pairs])
    assert predict("rows", models["QNLI"], glue_dir / "QNLI" / "test.tsv", tmp_path / "official") == 0
    for name in ("mine.tsv", "mine.jsonl"):
        assert predict("rows", models["QNLI"], tmp_path / name, tmp_path / "out", "--texts", "a", "b") == 0
        assert (tmp_path / "out").read_bytes() == (tmp_path / "official").read_bytes()


def test_scores_are_on_the_scale_of_the_task(models, short_pairs, tmp_path):
    pairs, path = short_pairs
    assert predict("rows", models["STS-B"], path, tmp_path / "out", "--texts", "a", "b") == 0
    header, *rows = read_tsv(tmp_path / "out")
    assert header == ["index", "prediction"]
    model = RecurrentRobertaModel.from_pretrained(str(models["STS-B"]))
    for (_, score), pair in zip(rows, pairs, strict=True):
        expected = 5 * model.predict("sentence_classification_head", model.encode(*pair), return_logits=True).item()
        assert float(score) == pytest.approx(min(5, max(0, expected)), abs=1e-3)


@pytest.fixture
def given_outputs(monkeypatch):
    """given_outputs(task, outputs): predict-glue runs with a model of that task that gives these outputs."""

    def give(name, outputs):
        class Given:
            task = BY_NAME[name]

            def __init__(self, *_):
                pass

            def outputs(self, examples):
                return np.array(outputs)[: len(examples)]

        monkeypatch.setattr(predictor, "Predictor", Given)

    return give


class TestWhatIsWrittenIsWhatIsScored:
    def test_choices(self, given_outputs, tmp_path, capsys):
        """The odds of the candidates of a premise are compared, since exactly one of them is right."""
        write_json_lines(tmp_path / "COPA.jsonl", [copa("abc", i, True) for i in (0, 2)])  # the first is right
        given_outputs("COPA", [(0.0, 2.0), (0.0, 1.0), (3.0, 0.0), (9.0, 0.0)])  # a row alone: 1, 1, 0, 0
        assert predict("rows", "model", tmp_path / "COPA.jsonl", tmp_path / "out") == 0
        _, *rows = read_tsv(tmp_path / "out")
        assert [row[1] for row in rows] == ["1", "0", "1", "0"]
        first, second = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-6))
        assert [float(row[2]) for row in rows] == pytest.approx([first, first, second, second], abs=1e-4)
        assert "choice_accuracy 1.0000, accuracy 1.0000" in capsys.readouterr().out

    def test_scores(self, given_outputs, tmp_path, capsys):
        """Scores beyond the scale are clipped in the file, and so are those that the metrics are of."""
        rows = [("sentence1", "sentence2", "score"), *(("a", "b", score) for score in ("5", "4", "1", "0"))]
        write_tsv(tmp_path / "STS-B.tsv", rows)
        given_outputs("STS-B", [(9.0,), (4.0,), (1.0,), (-3.0,)])
        assert predict("rows", "model", tmp_path / "STS-B.tsv", tmp_path / "out") == 0
        assert [row[1] for row in read_tsv(tmp_path / "out")[1:]] == ["5.000", "4.000", "1.000", "0.000"]
        assert "pearson 1.0000, spearman 1.0000, rmse 0.0000" in capsys.readouterr().out

    def test_outputs_that_are_not_finite(self, given_outputs, tmp_path, capsys):
        write_tsv(tmp_path / "SST-2.tsv", [("sentence",), ("Good.",), ("Bad.",)])
        given_outputs("SST-2", [(0.0, 1.0), (math.nan, 0.0)])
        assert predict("rows", "model", tmp_path / "SST-2.tsv", tmp_path / "out") == 1
        assert "row 1: the model's output is not finite" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_compressed_json_lines_with_a_blank_one(given_outputs, tmp_path):
    row = json.dumps({"question": "Who?", "passage": "He."})
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(f"{row}\n{row}\n\n".encode()))
    given_outputs("BoolQ", [(0.0, 1.0), (1.0, 0.0)])
    assert predict("rows", "model", tmp_path / "rows.jsonl.gz", tmp_path / "out") == 0
    assert [row[1] for row in read_tsv(tmp_path / "out")[1:]] == ["true", "false"]


def test_input_is_not_overwritten(given_outputs, tmp_path, capsys):
    """Nor by another name of the same file."""
    path, link = tmp_path / "SST-2.tsv", tmp_path / "link.tsv"
    write_tsv(path, [("sentence",), ("Good.",)])
    link.symlink_to(path)
    before = path.read_bytes()
    given_outputs("SST-2", [(0.0, 1.0)])
    for out in (path, link):
        assert predict("rows", "model", path, out) == 1
        assert f"{out}: is the input itself; give another file to write" in capsys.readouterr().err
    assert path.read_bytes() == before and link.is_symlink()


def test_submission_misses_files_of_its_own_benchmark_only(given_outputs, tmp_path, capsys):
    write_tsv(tmp_path / "QNLI" / "test.tsv", [("index", "question", "sentence"), ("0", "Who?", "He.")])
    given_outputs("QNLI", [(1.0, 0.0)])
    assert predict("submission", tmp_path, tmp_path / "out.zip", "model") == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        "the official server of GLUE wants all of its files; these are missing: CoLA.tsv, SST-2.tsv, MRPC.tsv, "
        "STS-B.tsv, QQP.tsv, MNLI-m.tsv, MNLI-mm.tsv, RTE.tsv, WNLI.tsv, AX.tsv"
    )


@pytest.fixture(scope="module")
def submission(models, glue_dir, tmp_path_factory):
    """name -> lines of the files in the zip."""
    write_tsv(glue_dir / "AX" / "diagnostic.tsv", [("index", "sentence1", "sentence2"), ("0", "He left.", "He went.")])
    path = tmp_path_factory.mktemp("submission") / "out.zip"
    assert predict("submission", glue_dir, path, *models.values()) == 0
    assert predict("submission", glue_dir, path.with_name("again.zip"), *models.values()) == 0
    assert path.read_bytes() == path.with_name("again.zip").read_bytes()
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode().splitlines() for name in archive.namelist()}


def test_submission_of_sentence_pairs(submission):
    assert submission.keys() == {
        *("QNLI.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv", "COPA.jsonl", "MultiRC.jsonl")
    }
    counts = {"QNLI.tsv": TEST_ROWS, "STS-B.tsv": TEST_ROWS, "MNLI-m.tsv": TEST_ROWS, "MNLI-mm.tsv": 10, "AX.tsv": 1}
    for name, count in counts.items():
        header, *rows = submission[name]
        assert header == "index\tprediction"
        assert [row.split("\t")[0] for row in rows] == [str(i) for i in range(count)]
        form = r"\d\.\d{3}" if name == "STS-B.tsv" else "entailment|not_entailment|neutral|contradiction"
        assert all(re.fullmatch(form, row.split("\t")[1]) for row in rows)


def test_submission_of_choices_names_the_better_one(submission, models, glue_dir):
    rows = [json.loads(line) for line in submission["COPA.jsonl"]]
    assert [row["idx"] for row in rows] == [100, 101, 102, 103, 104]
    model = Predictor(models["COPA"], "checkpoint_best.pt", batch_size=4)
    examples = list(read_examples(model.task, "test", glue_dir / "COPA" / "test.jsonl"))
    outputs = torch.from_numpy(model.outputs(examples))
    margins = (outputs[:, 1] - outputs[:, 0]).view(-1, 2)
    assert [row["label"] for row in rows] == margins.argmax(dim=1).tolist()


def test_submission_of_multirc_keeps_the_source_s_ids(submission, models, glue_dir, tmp_path):
    source = glue_dir / "MultiRC" / "test.jsonl"
    assert predict("rows", models["MultiRC"], source, tmp_path / "out.tsv") == 0
    labels = iter(int(row[1]) for row in read_tsv(tmp_path / "out.tsv")[1:])
    expected = [json.loads(line) for line in source.read_text().splitlines()]
    for passage in expected:
        del passage["passage"]["text"]
        for question in passage["passage"]["questions"]:
            del question["question"]
            question["answers"] = [{"idx": answer["idx"], "label": next(labels)} for answer in question["answers"]]
    assert [json.loads(line) for line in submission["MultiRC.jsonl"]] == expected


class TestBadInput:
    @staticmethod
    def error(capsys) -> str:
        *_, last = capsys.readouterr().err.splitlines()
        assert last.startswith("rt-plugin predict-glue: error: ")
        return last

    def test_model_that_is_not_fine_tuned(self, pretrained, glue_dir, tmp_path, capsys):
        assert predict("rows", pretrained, glue_dir / "QNLI" / "test.tsv", tmp_path / "out") == 1
        assert "is not fine-tuned" in self.error(capsys)

    def test_wrong_columns(self, models, glue_dir, tmp_path, capsys):
        assert predict("rows", models["QNLI"], glue_dir / "MNLI" / "test_matched.tsv", tmp_path / "out") == 1
        assert "line 1: columns found: sentence1, sentence2; expected also question, sentence" in self.error(capsys)
        assert predict("rows", models["QNLI"], glue_dir / "QNLI" / "test.tsv", tmp_path / "out", "--texts", "a") == 1
        assert "1 given, the model reads 2" in self.error(capsys)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("task", ["COPA", "MultiRC"])
    def test_own_columns_for_rows_that_belong_together(self, models, short_pairs, tmp_path, capsys, task):
        assert predict("rows", models[task], short_pairs[1], tmp_path / "out", "--texts", "a", "b") == 1
        assert f"--texts a b: rows of {task} belong together" in self.error(capsys)

    def test_file_without_rows(self, models, tmp_path, capsys):
        write_tsv(tmp_path / "QNLI" / "test.tsv", [("index", "question", "sentence")])
        assert predict("rows", models["QNLI"], tmp_path / "QNLI" / "test.tsv", tmp_path / "out") == 1
        assert f"{tmp_path}/QNLI/test.tsv: no rows" in self.error(capsys)
        assert predict("submission", tmp_path, tmp_path / "out.zip", models["QNLI"]) == 1
        assert f"{tmp_path}/QNLI/test.tsv: no rows" in self.error(capsys)

    def test_broken_rows(self, models, glue_dir, tmp_path, capsys):
        """This command leaves no row out, so it does not name prepare_glue's option for that."""
        rows = [("question", "sentence", "label"), ("Who?", "He.", "entailment"), ("Who?", "She.", "yes")]
        write_tsv(tmp_path / "foreign.tsv", rows)
        write_tsv(tmp_path / "broken.tsv", [*rows[:2], ("Who?",)])
        for split, expected in (
            ("test", "expected one of entailment, not_entailment, or no 'label' at all; correct the file"),
            ("valid", "expected one of entailment, not_entailment; correct the file"),
        ):
            assert predict("rows", models["QNLI"], tmp_path / "foreign.tsv", tmp_path / "out", "--split", split) == 1
            assert self.error(capsys).endswith(f"foreign.tsv, line 3: found label 'yes' in label, {expected}")
        assert predict("rows", models["QNLI"], tmp_path / "broken.tsv", tmp_path / "out") == 1
        assert self.error(capsys).endswith("in 'Who?', expected 3 (question, sentence, label); correct the file")
        write_json_lines(tmp_path / "COPA" / "test.jsonl", [{"premise": "He left.", "question": "why"}])
        assert predict("submission", tmp_path, tmp_path / "out.zip", models["COPA"]) == 1
        assert self.error(capsys).endswith("found question 'why', expected cause or effect; correct the file")

    def test_output_that_is_a_folder(self, models, glue_dir, tmp_path, capsys):
        """Found before the predictions, which may take long."""
        assert predict("submission", glue_dir, tmp_path, models["QNLI"]) == 1
        error = capsys.readouterr().err
        assert error == f"rt-plugin predict-glue: error: {tmp_path}: is a folder; give the name of the file to write\n"
        assert predict("rows", models["QNLI"], glue_dir / "nowhere.tsv", tmp_path) == 1
        assert "is a folder" in self.error(capsys)

    def test_output_that_cannot_be_written(self, models, glue_dir, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert predict("submission", glue_dir, tmp_path / "file" / "here" / "out.zip", models["QNLI"]) == 1
        assert "here/out.zip: cannot write the file (Not a directory)" in self.error(capsys)

    def test_missing_test_set(self, models, tmp_path, capsys):
        assert predict("submission", tmp_path, tmp_path / "out.zip", models["QNLI"]) == 1
        assert "QNLI/test.tsv: no such file; expected the official test set" in self.error(capsys)
        assert not list(tmp_path.glob("out.zip*"))

    def test_two_models_for_one_task(self, models, glue_dir, tmp_path, capsys):
        assert predict("submission", glue_dir, tmp_path / "out.zip", models["QNLI"], models["QNLI"]) == 1
        assert "a second model for QNLI" in self.error(capsys)
