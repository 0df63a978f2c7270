"""Fine-tuning with `rt_glue`: fairseq's own commands on real pairs, metrics over the whole dev set, and bad input."""

import argparse
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.logging import metrics
from scipy import stats as scipy_stats

from conftest import prepare_glue, run_command, run_two, sample_rows, user_error
from rt_plugin.errors import UserError
from rt_plugin.glue.prepared import IndexedWriter
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder.checkpoint import checkpoint_positions
from rt_plugin.tasks.rt_glue import RtGlueConfig, RtGlueTask

FINE_TUNING = (
    *("--user-dir", "rt_plugin", "--task", "rt_glue", "--criterion", "rt_glue", "--arch", "recurrent_roberta_tiny"),
    *("--cpu", "--optimizer", "adam", "--lr", "1e-3", "--batch-size", "16", "--num-workers", "0"),
    *("--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric", "--no-epoch-checkpoints"),
    *("--save-interval-updates", "4", "--log-format", "json", "--required-batch-size-multiple", "1"),
)
DEV_ROWS = 61  # no multiple of a batch: fairseq's own batching would leave rows out


@pytest.fixture(scope="session")
def qnli(tokenizer_folder, tmp_path_factory):
    """Prepared data: the head of the shipped QNLI sample."""
    glue_dir = tmp_path_factory.mktemp("qnli")
    (glue_dir / "QNLI").mkdir()
    for split, count in (("train", 121), ("dev", DEV_ROWS)):
        text = "".join("\t".join(row) + "\n" for row in sample_rows(split, count))
        (glue_dir / "QNLI" / f"{split}.tsv").write_text(text, encoding="utf-8")
    return prepare_glue(glue_dir, tokenizer_folder, "QNLI")


@pytest.fixture(scope="session")
def finetuned(qnli, pretrained, tmp_path_factory):
    """A --save-dir after ten updates, eight of them in the first epoch.

    The pretrained checkpoint and the data have gone from where they were.
    """
    folder = tmp_path_factory.mktemp("finetuned")
    shutil.copytree(qnli, folder / "data")
    shutil.copy(pretrained / "checkpoint_best.pt", folder / "pretrained.pt")
    run_command(
        "fairseq-train",
        *(folder / "data", *FINE_TUNING, "--finetune-from-model", folder / "pretrained.pt"),
        *("--max-update", "10", "--save-dir", folder / "model"),
    )
    shutil.rmtree(folder / "data")
    (folder / "pretrained.pt").unlink()
    return folder / "model"


def dev_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "dev_metrics.jsonl").read_text().splitlines()]


def dev_outputs(checkpoint: Path, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of a checkpoint, row by row, and the targets."""
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": str(data)})
    dataset = task.load_dataset("valid")
    model = models[0].eval()
    rows = [dataset.collater([dataset[i]])["net_input"] for i in range(len(dataset))]
    with torch.no_grad():
        outputs = [
            model(**row, features_only=True, classification_head_name="sentence_classification_head")[0] for row in rows
        ]
    return torch.cat(outputs).double().numpy(), dataset.targets


def accuracy(checkpoint: Path, data: Path) -> float:
    outputs, targets = dev_outputs(checkpoint, data)
    assert len(targets) == DEV_ROWS
    return float(np.mean(outputs.argmax(axis=1) == targets))


def test_fine_tuning_leaves_a_model_folder_and_metrics(finetuned, qnli):
    assert {p.name for p in finetuned.iterdir()} == {
        *("checkpoint_1_4.pt", "checkpoint_best.pt", "checkpoint_last.pt"),
        *("dev_metrics.jsonl", "dict.txt", "glue.json", "label_dict.txt"),
        *("sentencepiece.bpe.model", "text_normalization.json"),
    }
    assert (finetuned / "label_dict.txt").read_bytes() == (qnli / "label" / "dict.txt").read_bytes()
    assert checkpoint_positions(finetuned / "checkpoint_last.pt", pad=1) == 48  # those of the pretrained one
    entries = dev_metrics(finetuned)
    assert [(entry["split"], entry["updates"]) for entry in entries] == [("valid", 4), ("valid", 8), ("valid", 10)]
    assert entries[-1]["score"] == entries[-1]["accuracy"]
    assert entries[-1]["accuracy"] == pytest.approx(accuracy(finetuned / "checkpoint_last.pt", qnli), abs=1e-12)


def validation(finetuned: Path, data: Path, batch_size: int) -> tuple:
    """fairseq-validate and its options."""
    return (
        *("fairseq-validate", data, "--user-dir", "rt_plugin", "--task", "rt_glue", "--cpu", "--log-format", "json"),
        *("--path", finetuned / "checkpoint_last.pt", "--batch-size", batch_size, "--required-batch-size-multiple", 1),
    )


def validation_values(output: str) -> dict:
    (line,) = (line for line in output.splitlines() if "| valid | {" in line or "| train | {" in line)
    return json.loads(line[line.index("{") :])


def test_validate_command_computes_the_same(finetuned, qnli):
    values = validation_values(run_command(*validation(finetuned, qnli, 7)).stdout)
    assert float(values["valid_score"]) == pytest.approx(dev_metrics(finetuned)[-1]["score"], abs=1e-6)
    assert float(values["valid_loss"]) == pytest.approx(dev_metrics(finetuned)[-1]["loss"], abs=1e-4)


def test_interrupted_fine_tuning_resumes(finetuned, qnli, tmp_path):
    """From the fourth update into the next epoch, with the weights of the undisturbed training; the pretrained
    checkpoint that the command names is not there any more."""
    shutil.copy(finetuned / "checkpoint_1_4.pt", tmp_path / "checkpoint_last.pt")
    result = run_command(
        "fairseq-train",
        *(qnli, *FINE_TUNING, "--finetune-from-model", tmp_path / "gone.pt", "--max-update", "10"),
        *("--save-dir", tmp_path),
    )
    assert f"Loaded checkpoint {tmp_path / 'checkpoint_last.pt'}" in result.stdout
    resumed, undisturbed = (torch.load(f / "checkpoint_last.pt")["model"] for f in (tmp_path, finetuned))
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in resumed)
    assert dev_metrics(tmp_path) == dev_metrics(finetuned)[1:]


def test_the_model_folder_alone_is_enough(finetuned, tmp_path):
    shutil.copytree(finetuned, tmp_path / "moved")
    model = RecurrentRobertaModel.from_pretrained(str(tmp_path / "moved"), "checkpoint_last.pt")
    assert model.task.label_names == ["entailment", "not_entailment"]
    assert model.task.glue_task.name == "QNLI"
    question, sentence = sample_rows("dev", 1)[1][1:3]
    log_probabilities = model.predict("sentence_classification_head", model.encode(question, sentence)[:48])
    assert log_probabilities.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_classify_reads_and_cuts_pairs_as_fine_tuning_does(finetuned, qnli):
    model = RecurrentRobertaModel.from_pretrained(str(finetuned), "checkpoint_last.pt")
    outputs, _ = dev_outputs(finetuned / "checkpoint_last.pt", qnli)
    probabilities = torch.tensor(outputs).softmax(dim=1)
    rows = sample_rows("dev", 20)[1:]
    assert max(len(model.encode(row[1], row[2])) for row in rows) > model.model.max_positions(), "no pair is too long"
    for row, expected in zip(rows, probabilities, strict=False):
        label, probability = model.classify(row[1], row[2])
        assert label == model.task.label_names[expected.argmax()]
        assert probability == pytest.approx(expected.max().item(), abs=1e-4)


def test_classify_cuts_where_max_positions_said(qnli, pretrained, tmp_path):
    start = ("--finetune-from-model", pretrained / "checkpoint_best.pt", "--max-positions", "20")
    run_command("fairseq-train", qnli, *FINE_TUNING, *start, "--max-update", "2", "--save-dir", tmp_path)
    model = RecurrentRobertaModel.from_pretrained(str(tmp_path), "checkpoint_last.pt")
    probabilities = torch.tensor(dev_outputs(tmp_path / "checkpoint_last.pt", qnli)[0]).softmax(dim=1)
    for row, expected in zip(sample_rows("dev", 10)[1:], probabilities, strict=False):
        assert len(model.encode(row[1], row[2])) > 20 and model.model.max_positions() == 48
        assert model.classify(row[1], row[2])[1] == pytest.approx(expected.max().item(), abs=1e-4)


def test_half_a_line_of_metrics_takes_no_other_with_it(qnli, tmp_path):
    """A full disk, or a kill, cut off what was written last; the run goes on, and evaluates that epoch again."""
    metric = {"best_checkpoint_metric": "loss", "maximize_best_checkpoint_metric": False}
    task = RtGlueTask.setup_task(RtGlueConfig(data=str(qnli), **metric))
    task.write_model_folder(str(tmp_path))
    (tmp_path / "dev_metrics.jsonl").write_text('{"split": "valid", "epoch": 1, "upd')
    with metrics.aggregate("train"):
        metrics.log_scalar("loss", 1.0)
        task._append_metrics({"loss": 1.0, "num_updates": 5}, {"score": 0.9})
    (entry,) = dev_metrics(tmp_path)
    assert (entry["updates"], entry["score"]) == (5, 0.9)


@pytest.mark.parametrize("backend", ["legacy_ddp", "pytorch_ddp"])
def test_two_processes_compute_the_metrics_of_one(backend, qnli, tmp_path):
    options = ("--batch-size", "10", "--max-update", "2", "--max-positions", "48", "--ddp-backend", backend)
    run_two("fairseq-train", qnli, *FINE_TUNING, *options, "--save-dir", tmp_path)
    (entry,) = dev_metrics(tmp_path)
    assert entry["accuracy"] == pytest.approx(accuracy(tmp_path / "checkpoint_last.pt", qnli), abs=1e-12)


@pytest.mark.parametrize(("subset", "batch_size"), [("valid", 10), ("train", 1)])
def test_validate_command_with_two_processes(finetuned, qnli, subset, batch_size):
    """Both subsets are an odd number of batches: the second process gets an empty one in addition. The log of 121
    batches is longer than what fairseq itself can gather."""
    subset = ("--valid-subset", subset)
    one = validation_values(run_command(*validation(finetuned, qnli, 16), *subset).stdout)
    two = validation_values(run_two(*validation(finetuned, qnli, batch_size), *subset))
    assert one.keys() == two.keys()
    for name in one:
        assert float(two[name]) == pytest.approx(float(one[name]), abs=1e-4), name


@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_counts_nothing(qnli, training):
    """What fairseq fills up the smaller share of the batches with."""
    task = task_for(qnli)
    criterion = task.build_criterion("rt_glue").train(training)
    empty = task.load_dataset("valid").collater([])
    loss, rows, log = criterion(None, empty)
    assert loss.item() == rows == 0 and set(log.values()) == {0}
    full = {"loss": torch.tensor(8.0), "sample_size": 4, "nsentences": 4, "ntokens": 20}
    with metrics.aggregate() as aggregated:
        criterion.reduce_metrics([log, full, log])
    assert aggregated.get_smoothed_values()["loss"] == 2


@pytest.fixture(scope="session")
def sts_b(tokenizer_folder, tmp_path_factory):
    """The pairs of the QNLI sample with a score each, in the layout of STS-B."""
    glue_dir = tmp_path_factory.mktemp("sts")
    (glue_dir / "STS-B").mkdir()
    for split in ("train", "dev"):
        rows = [(row[1], row[2], f"{i % 6}.{i % 4}00") for i, row in enumerate(sample_rows(split, 33)[1:], start=1)]
        rows = [row for row in rows if float(row[2]) <= 5]
        text = "".join("\t".join(row) + "\n" for row in [("sentence1", "sentence2", "score"), *rows])
        (glue_dir / "STS-B" / f"{split}.tsv").write_text(text, encoding="utf-8")
    return prepare_glue(glue_dir, tokenizer_folder, "STS-B")


def test_regression(sts_b, pretrained, tmp_path):
    options = (*FINE_TUNING, "--max-update", "2", "--finetune-from-model", pretrained / "checkpoint_best.pt")
    run_command("fairseq-train", sts_b, *options, "--save-dir", tmp_path)
    (entry,) = dev_metrics(tmp_path)
    outputs, targets = dev_outputs(tmp_path / "checkpoint_last.pt", sts_b)
    predictions = 5 * outputs[:, 0]
    scores = [float(line.split("\t")[2]) for line in (sts_b.parents[1] / "STS-B" / "dev.tsv").open().readlines()[1:]]
    assert targets == pytest.approx(np.array(scores) / 5, abs=1e-15)
    # batches change the last bits of float32 outputs
    assert entry["pearson"] == pytest.approx(scipy_stats.pearsonr(predictions, scores).statistic, abs=1e-4)
    assert entry["rmse"] == pytest.approx(math.sqrt(np.mean((predictions - scores) ** 2)), abs=1e-5)
    assert entry["score"] == pytest.approx((entry["pearson"] + entry["spearman"]) / 2, abs=1e-15)
    assert not (tmp_path / "label_dict.txt").exists()
    assert RecurrentRobertaModel.from_pretrained(str(tmp_path), "checkpoint_last.pt").task.label_names is None


def task_for(data: Path, **options) -> RtGlueTask:
    defaults = {
        **{"best_checkpoint_metric": "score", "maximize_best_checkpoint_metric": True, "seed": 1},
        **{"save_dir": "nowhere", "restore_file": "checkpoint_last.pt", "finetune_from_model": None},
        "continue_once": None,
    }
    return RtGlueTask.setup_task(RtGlueConfig(data=str(data), **{**defaults, **options}))


def test_undefined_is_shown_and_counts_as_the_worst(sts_b):
    task = task_for(sts_b)
    rows = len(task.load_dataset("valid"))
    task.dataset("valid")
    task.record_outputs({"id": torch.arange(rows)}, torch.full((rows, 1), 0.5))
    stats = {"loss": 0.1, "num_updates": 3, "score": -math.inf, "best_score": 0.4}
    task.post_validate(None, stats, None)
    assert stats["pearson"] == stats["spearman"] == "undefined"
    assert stats["score"] == -math.inf and stats["best_score"] == 0.4


def test_a_better_score_is_the_best_one(qnli):
    task = task_for(qnli)
    targets = task.load_dataset("valid").targets
    task.dataset("valid")
    task.record_outputs({"id": torch.arange(len(targets))}, torch.nn.functional.one_hot(torch.from_numpy(targets)))
    stats = {"loss": 0.1, "num_updates": 3, "score": -math.inf, "best_score": 0.4}
    task.post_validate(None, stats, None)
    assert stats["score"] == stats["best_score"] == stats["accuracy"] == 1.0


def test_input_layout_and_order(qnli):
    task = task_for(qnli, max_positions=20)
    train = task.load_dataset("train")
    dictionary = task.source_dictionary
    bos, eos, pad = dictionary.bos(), dictionary.eos(), dictionary.pad()
    batch = train.collater([train[i] for i in range(121)])
    tokens = batch["net_input"]["src_tokens"]
    assert tokens.shape == (121, 20) and batch["ntokens"] == int(tokens.ne(pad).sum()) == int(train.sizes.sum())
    for row, length in zip(tokens.tolist(), train.sizes.tolist(), strict=True):
        row = row[:length]
        assert row[0] == bos and row[-1] == eos
        middle = next(i for i, pair in enumerate(itertools.pairwise(row)) if pair == (eos, eos))
        assert middle > 1 and middle < length - 3 and row.count(eos) == 3  # both texts are there
    orders = []
    for epoch in (1, 2, 1):
        train.set_epoch(epoch)
        orders.append(train.ordered_indices().tolist())
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == list(range(121))


def test_batches_of_similar_length_need_less_padding(qnli):
    """What the trainer gets from the task, in two epochs, with random batches and with rows sorted in 15 batches."""
    padding, batches = {}, {}
    for rows in (0, 60):
        task = task_for(qnli, group_by_length=rows)
        train = task.load_dataset("train")
        epochs = [list(task.get_batch_iterator(train, max_sentences=4, epoch=e).next_epoch_itr()) for e in (1, 2)]
        for epoch in epochs:
            assert sorted(i for batch in epoch for i in batch["id"].tolist()) == list(range(121))
        padding[rows] = sum(b["net_input"]["src_tokens"].numel() - b["ntokens"] for epoch in epochs for b in epoch)
        batches[rows] = [{frozenset(batch["id"].tolist()) for batch in epoch} for epoch in epochs]
    assert padding[60] < 0.3 * padding[0]
    assert len(batches[60][0] & batches[60][1]) < 5, "the same batches in both epochs"


def test_other_data_in_the_same_layout(qnli, sts_b, tmp_path):
    """As prepared for fairseq's sentence_prediction: no glue.json."""
    for name, source in (("classes", qnli), ("scores", sts_b)):
        shutil.copytree(source, tmp_path / name)
        (tmp_path / name / "glue.json").unlink()
    classes = task_for(tmp_path / "classes", num_classes=2)
    assert classes.label_names == ["entailment", "not_entailment"] and not classes.is_regression
    assert task_for(tmp_path / "classes", glue_task="QNLI").glue_task.name == "QNLI"
    scores = task_for(tmp_path / "scores", regression_target=True)
    assert scores.is_regression and len(scores.load_dataset("train").targets) > 0
    with pytest.raises(UserError, match="--num-classes"):
        task_for(tmp_path / "classes")
    with pytest.raises(UserError, match=r"2 labels .*, expected 3"):
        task_for(tmp_path / "classes", num_classes=3)


class TestBadInput:
    def test_missing_folder(self, tmp_path):
        with pytest.raises(UserError, match="gone: no such folder"):
            task_for(tmp_path / "gone")
        with pytest.raises(UserError, match="neither input0/ nor"):
            task_for(tmp_path)

    def test_missing_split(self, qnli):
        with pytest.raises(UserError, match=r"'test' is not complete .* train, valid; expected input0/test.idx"):
            task_for(qnli).load_dataset("test")

    def test_contradicting_task(self, qnli):
        with pytest.raises(UserError, match=r"--glue-task RTE, but .*glue.json says QNLI"):
            task_for(qnli, glue_task="RTE")

    def test_criterion_of_pretraining(self, qnli):
        with pytest.raises(UserError, match="rt_masked_lm goes with --task rt_masked_lm, found RtGlueTask"):
            task_for(qnli).build_criterion("rt_masked_lm")

    def test_unknown_task(self, qnli, tmp_path):
        shutil.copytree(qnli, tmp_path / "data")
        (tmp_path / "data" / "glue.json").write_text('{"task": "SQuAD"}')
        with pytest.raises(UserError, match=r"glue.json: GLUE task 'SQuAD' is unknown"):
            task_for(tmp_path / "data")

    def test_labels_that_are_not_in_the_dictionary(self, qnli, tmp_path):
        shutil.copytree(qnli, tmp_path / "data")
        (tmp_path / "data" / "label" / "dict.txt").write_text("entailment 1\ncontradiction 1\n")
        with pytest.raises(UserError, match="labels entailment, contradiction, expected entailment, not_entailment"):
            task_for(tmp_path / "data")
        (tmp_path / "data" / "glue.json").unlink()
        (tmp_path / "data" / "label" / "dict.txt").write_text("a 1\nb 1\n")
        builder = IndexedWriter(tmp_path / "data" / "label" / "valid", 8)
        for _ in range(DEV_ROWS):
            builder.add(torch.tensor([3, 2]))  # <unk> </s>
        builder.close()
        with pytest.raises(UserError, match=r"row 1 .and 60 more. has a label that is none of a, b"):
            task_for(tmp_path / "data", num_classes=2).load_dataset("valid")

    def test_tokenizer_of_another_dictionary(self, qnli, tmp_path):
        shutil.copytree(qnli, tmp_path / "data")
        (tmp_path / "data" / "input0" / "dict.txt").write_text("strange 1\nwords 1\n")
        with pytest.raises(UserError, match="2 of 2 symbols are not pieces"):
            task_for(tmp_path / "data")

    def test_data_of_another_tokenizer_than_the_checkpoint(self, qnli, pretrained, tmp_path):
        """Of the same size, so that the weights fit."""
        shutil.copytree(qnli, tmp_path / "data")
        for folder in ("input0", "input1"):
            path = tmp_path / "data" / folder / "dict.txt"
            *lines, last = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join([last, *lines]), encoding="utf-8")
        checkpoint = pretrained / "checkpoint_best.pt"
        start = ("--finetune-from-model", checkpoint, "--max-update", "1", "--save-dir", tmp_path / "out")
        error = user_error(run_command("fairseq-train", tmp_path / "data", *FINE_TUNING, *start, ok=False))
        assert f"{tmp_path / 'data'}: token 4 is " in error and f"{pretrained / 'dict.txt'} " in error
        assert error.endswith(f"prepare the data with rt-plugin prepare-glue --model {pretrained}")
        with pytest.raises(UserError, match=r"token 4 is .*, but .* beside the checkpoint"):
            task_for(tmp_path / "data", restore_file=str(checkpoint)).build_model(argparse.Namespace())

    def test_scores_that_are_none(self, sts_b, tmp_path):
        shutil.copytree(sts_b, tmp_path / "data")
        path = tmp_path / "data" / "label" / "valid.label"
        path.write_text(path.read_text().replace(path.read_text().split("\n")[1], "good", 1))
        with pytest.raises(UserError, match=r"valid.label, line \d+: found 'good'"):
            task_for(tmp_path / "data").load_dataset("valid")

    def test_files_of_different_length(self, qnli, tmp_path):
        shutil.copytree(qnli, tmp_path / "data")
        for suffix in ("bin", "idx"):
            shutil.copy(qnli / "input1" / f"train.{suffix}", tmp_path / "data" / "input1" / f"valid.{suffix}")
        with pytest.raises(UserError, match=r"have \[61, 121, 61\] rows"):
            task_for(tmp_path / "data").load_dataset("valid")

    def test_best_checkpoint_the_wrong_way_round(self, qnli, sts_b):
        with pytest.raises(UserError, match="--maximize-best-checkpoint-metric"):
            task_for(qnli, maximize_best_checkpoint_metric=False)
        for data, metric in ((qnli, "loss"), (sts_b, "loss"), (sts_b, "rmse")):
            assert task_for(data, best_checkpoint_metric=metric, maximize_best_checkpoint_metric=False)
            with pytest.raises(UserError, match=f"--best-checkpoint-metric {metric} with --maximize-best-checkpoint-"):
                task_for(data, best_checkpoint_metric=metric)

    @pytest.mark.parametrize("maximize", [True, False])
    @pytest.mark.parametrize("metric", ["acuracy", "valid_accuracy", "pearson", "rmse", "train_loss"])
    def test_best_checkpoint_by_a_metric_that_is_not_the_tasks(self, qnli, metric, maximize):
        with pytest.raises(UserError, match=f"{metric}: QNLI has no such metric; expected accuracy, score or loss"):
            task_for(qnli, best_checkpoint_metric=metric, maximize_best_checkpoint_metric=maximize)

    def test_maximize_alone_is_one_line_under_the_command(self, qnli, tmp_path):
        """fairseq's default metric is the loss, and with that option it would keep the checkpoint with the highest."""
        options = [word for word in FINE_TUNING if word not in ("--best-checkpoint-metric", "score")]
        options += ["--max-update", "1", "--save-dir", tmp_path / "run"]
        result = run_command("fairseq-train", qnli, *options, ok=False)
        assert "--best-checkpoint-metric loss with --maximize-best-checkpoint-metric" in user_error(result)

    def test_too_few_positions(self, qnli):
        with pytest.raises(UserError, match="--max-positions is 3, expected 6"):
            task_for(qnli, max_positions=3)

    def test_negative_group_by_length(self, qnli):
        with pytest.raises(UserError, match="--group-by-length is -1, expected a number of rows"):
            task_for(qnli, group_by_length=-1)

    @pytest.mark.parametrize("decay", [0.0, 1.1, -0.5, math.nan])
    def test_a_decay_of_rates_that_is_no_share(self, qnli, decay):
        with pytest.raises(UserError, match=f"--layer-lr-decay is {decay:g}, expected more than 0 and at most 1"):
            task_for(qnli, layer_lr_decay=decay)

    def test_more_positions_than_the_checkpoint_has(self, qnli, pretrained):
        task = task_for(qnli, max_positions=64, finetune_from_model=str(pretrained / "checkpoint_best.pt"))
        with pytest.raises(
            UserError, match=r"--max-positions 64 is more than the 48 positions of .*checkpoint_best.pt"
        ):
            task.build_model(argparse.Namespace())

    def test_under_the_command_it_is_one_line(self, qnli, tmp_path):
        result = run_command(
            "fairseq-train", qnli, *FINE_TUNING, "--max-positions", "3", "--save-dir", tmp_path, ok=False
        )
        assert "--max-positions is 3" in user_error(result)
