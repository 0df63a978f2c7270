"""Fine-tuning that starts from a fine-tuned model: the encoder comes along, the head if it is of the same task."""

import pytest
import torch

from conftest import prepare_glue, sample_rows, write_tsv
from rt_plugin.glue.finetune import main
from rt_plugin.model import RecurrentRobertaModel

HEAD = "classification_heads.sentence_classification_head.dense.weight"
MARKS = "classification_heads.sentence_classification_head.marks.weight"
MOVED = 0.01  # more than two updates at 1e-3 move a weight, less than new weights differ


@pytest.fixture(scope="module")
def finetune(glue_dir, tokenizer_folder, tmp_path_factory):
    """Runs finetune-glue with one run of two updates; below the head nothing moves. Returns the run's folder.

    RTE here has the pairs of the QNLI sample: another task with as many classes, so that the head's weights fit.
    """
    folder = tmp_path_factory.mktemp("rte")
    for split in ("train", "dev"):
        header = ("index", "sentence1", "sentence2", "label")
        write_tsv(folder / "RTE" / f"{split}.tsv", [header, *sample_rows(split, 40)[1:]])
    prepare_glue(folder, tokenizer_folder, "RTE")

    def run(model, task, *options, seed=2):
        out = tmp_path_factory.mktemp("sweep")
        data = (folder if task == "RTE" else glue_dir) / "out"
        grid = ("--tasks", task, "--lr", "1e-3", "--seeds", seed, "--epochs", "1", "--threads", "1", "--gpus")
        options = (*grid, "--", "--layer-lr-decay", "1e-9", *options)
        assert main([str(a) for a in (data, out, "--model", model, *options)]) == 0
        return out / task / f"lr0.001-seed{seed}"

    return run


@pytest.fixture(scope="module")
def qnli_model(finetune, pretrained):
    return finetune(pretrained, "QNLI", "--pooling", "first", seed=1)  # a new head of seed 2 is another one


def weights(folder):
    return torch.load(folder / "checkpoint_best.pt", weights_only=False)["model"]


def assert_encoder_is_that_of(after, before):
    names = [name for name in before if "sentence_encoder" in name]
    assert len(names) > 20 and all(torch.allclose(after[name], before[name], atol=1e-6) for name in names)


def test_the_head_of_another_task_is_left_out(finetune, qnli_model):
    """Also where it would fit, and where it read another vector than the new one shall."""
    folder = finetune(qnli_model, "RTE", "--pooling", "mean")
    after, before = weights(folder), weights(qnli_model)
    assert_encoder_is_that_of(after, before)
    assert (after[HEAD] - before[HEAD]).abs().max() > MOVED
    said = [line for line in (folder / "train.log").read_text().splitlines() if "its head is left out" in line]
    assert len(said) == 1 and said[0].endswith("was fine-tuned on QNLI: its head is left out, RTE gets a new one")
    model = RecurrentRobertaModel.from_pretrained(str(folder))
    assert model.task.glue_task.name == "RTE" and model.classify("He left.", "He went.")[1] > 0


def test_the_head_of_the_same_task_comes_along(finetune, qnli_model):
    after, before = weights(finetune(qnli_model, "QNLI", "--pooling", "first")), weights(qnli_model)
    assert_encoder_is_that_of(after, before)
    assert 0 < (after[HEAD] - before[HEAD]).abs().max() < MOVED


@pytest.fixture(scope="module")
def marked_model(finetune, pretrained):
    return finetune(pretrained, "QNLI", "--mark-shared", seed=1)


@pytest.mark.parametrize("task", ["QNLI", "RTE", "STS-B"])
def test_marks_come_along_with_the_encoder(task, finetune, marked_model):
    """With the head of the same task, and without that of another one, of as many classes or fewer."""
    after, before = weights(finetune(marked_model, task, "--mark-shared")), weights(marked_model)
    assert_encoder_is_that_of(after, before)
    assert before[MARKS][1:].std() > 2 * MOVED and not before[MARKS][0].any()  # special symbols have none
    assert 0 < (after[MARKS] - before[MARKS]).abs().max() < MOVED
    assert (after[HEAD] - before[HEAD]).abs().max() > MOVED or task == "QNLI"


def test_marks_are_left_out_with_the_head_where_none_are_wanted(finetune, marked_model):
    after, before = weights(finetune(marked_model, "RTE")), weights(marked_model)
    assert_encoder_is_that_of(after, before)
    assert MARKS not in after and after[HEAD].shape == before[HEAD].shape
