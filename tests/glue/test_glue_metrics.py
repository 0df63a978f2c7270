"""Metrics equal scikit-learn's and scipy's, over the whole set in one piece, in one process and in two."""

import math
import multiprocessing

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics

from rt_plugin.glue.metrics import CollectedOutputs, evaluate

ROWS = 97


def random_outputs(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(ROWS, classes)), generator.integers(0, classes, size=ROWS)


@pytest.mark.parametrize("seed", range(5))
def test_classification_equals_scikit_learn(seed):
    outputs, targets = random_outputs(2, seed)
    predictions = outputs.argmax(axis=1)
    values = evaluate(("accuracy", "f1", "f1_macro", "mcc"), outputs, targets)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(targets, predictions),
        "f1": sklearn_metrics.f1_score(targets, predictions),
        "f1_macro": sklearn_metrics.f1_score(targets, predictions, average="macro"),
        "mcc": sklearn_metrics.matthews_corrcoef(targets, predictions),
    }
    assert values == pytest.approx(expected, abs=1e-12)


def test_three_classes():
    outputs, targets = random_outputs(3)
    values = evaluate(("f1_macro",), outputs, targets)
    assert values["f1_macro"] == pytest.approx(
        sklearn_metrics.f1_score(targets, outputs.argmax(axis=1), average="macro"), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(5))
def test_regression_equals_scipy(seed):
    generator = np.random.default_rng(seed)
    outputs, targets = generator.normal(size=(ROWS, 1)), generator.integers(0, 26, size=ROWS) / 5  # with ties
    values = evaluate(("pearson", "spearman", "rmse"), outputs, targets)
    expected = {
        "pearson": stats.pearsonr(outputs[:, 0], targets).statistic,
        "spearman": stats.spearmanr(outputs[:, 0], targets).statistic,
        "rmse": sklearn_metrics.root_mean_squared_error(targets, outputs[:, 0]),
    }
    assert values == pytest.approx(expected, abs=1e-12)


def test_constant_predictions(recwarn):
    targets = np.array([0, 1, 1, 0, 1])
    always_first = np.tile([1.0, 0.0], (5, 1))
    assert evaluate(("mcc", "f1"), always_first, targets) == {"mcc": 0.0, "f1": 0.0}
    values = evaluate(("pearson", "spearman"), np.full((5, 1), 0.3), targets / 5)
    assert all(math.isnan(value) for value in values.values())
    assert not recwarn.list


@pytest.mark.parametrize("outputs", [np.zeros((0, 2)), np.full((4, 2), math.nan)], ids=["no rows", "diverged"])
def test_undefined(outputs):
    values = evaluate(("accuracy", "mcc"), outputs, np.zeros(len(outputs), dtype=int))
    assert all(math.isnan(value) for value in values.values())


def test_groups():
    # question 7: both right; question 3: one wrong; question 9: right
    right = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    targets, groups = np.array([1, 0, 1, 0, 0]), np.array([7, 7, 3, 3, 9])
    assert evaluate(("exact_match",), right, targets, groups) == {"exact_match": 2 / 3}


def test_choice_between_candidates():
    # both candidates of the first premise are called wrong, yet the second is the better one
    outputs = np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    targets, groups = np.array([0, 1, 1, 0]), np.array([1, 1, 2, 2])
    assert evaluate(("choice_accuracy",), outputs, targets, groups) == {"choice_accuracy": 0.5}


def test_a_row_counts_once():
    collected = CollectedOutputs()
    collected.add(torch.tensor([2, 0]), torch.tensor([[2.0], [0.0]]))
    collected.add(torch.tensor([0, 1]), torch.tensor([[0.0], [1.0]]))
    rows, outputs = collected.gather()
    assert rows.tolist() == [0, 1, 2]
    assert outputs.tolist() == [[0.0], [1.0], [2.0]]
    collected.clear()
    assert len(collected.gather()[0]) == 0


def _gather_in_process(rank: int, init_file: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    outputs, _ = random_outputs(2)
    rows = np.arange(rank, ROWS, 2)
    collected = CollectedOutputs()
    collected.add(torch.from_numpy(rows), torch.from_numpy(outputs[rows]))
    collected.add(torch.tensor([0]), torch.from_numpy(outputs[:1]))  # as a dummy batch does
    results.put((rank, *collected.gather()))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    context = multiprocessing.get_context("fork")  # a new process would import for seconds
    results = context.Queue()
    arguments = (str(tmp_path / "init"), results)
    processes = [context.Process(target=_gather_in_process, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    gathered = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    outputs, targets = random_outputs(2)
    names = ("accuracy", "f1", "mcc")
    expected = evaluate(names, outputs, targets)
    for _, rows, values in gathered:
        assert rows.tolist() == list(range(ROWS))
        assert evaluate(names, values, targets[rows]) == expected
