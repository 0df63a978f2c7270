"""The table of GLUE tasks is consistent."""

import pytest

from rt_plugin.glue import metrics, readers, specs

EXPECTED = (
    *("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "AX"),
    *("BoolQ", "MultiRC", "CB", "COPA", "WiC"),
)


def test_all_tasks_are_there():
    assert tuple(task.name for task in specs.TASKS) == EXPECTED


def test_every_metric_of_the_table_is_computed():
    assert tuple(metrics.FUNCTIONS) == specs.METRICS


@pytest.mark.parametrize("task", specs.TASKS, ids=lambda task: task.name)
def test_row_is_consistent(task):
    assert task.is_regression != bool(task.labels)
    assert len(set(task.labels)) == len(task.labels)
    assert task.num_classes == (1 if task.is_regression else len(task.labels))
    assert len(task.texts) in (1, 2)
    assert set(task.headline) <= set(task.metrics) <= set(specs.METRICS)
    assert not set(task.headline) & specs.LOWER_IS_BETTER
    assert task.reader in readers.READERS
    assert set(task.subset_files) | set(task.headers) | set(task.submission) <= set(task.files)
    assert set(task.submission) == {split for split in task.files if split.startswith("test")}
    needs_groups = {"exact_match", "choice_accuracy"} & set(task.metrics)
    assert bool(needs_groups) == (task.group is not None)


def test_binary_f1_counts_the_positive_class():
    for name in ("MRPC", "QQP", "MultiRC"):
        assert specs.BY_NAME[name].labels == ("0", "1")


def test_generic_task():
    task = specs.generic_task(4, regression=False)
    assert (task.num_classes, task.labels) == (4, ("0", "1", "2", "3"))
    assert specs.generic_task(1, regression=True).num_classes == 1
