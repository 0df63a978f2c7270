"""The table of GLUE tasks is consistent, and needs nothing but the standard library."""

import ast
import sys
from pathlib import Path

import pytest

from rt_plugin.glue import metrics as glue_metrics
from rt_plugin.glue import readers as glue_readers
from rt_plugin.glue import specs as glue_specs

EXPECTED = (
    *("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "AX"),
    *("BoolQ", "MultiRC", "CB", "COPA", "WiC"),
)


def test_all_tasks_are_there():
    assert tuple(task.name for task in glue_specs.TASKS) == EXPECTED


def test_imports_the_standard_library_only():
    tree = ast.parse(Path(glue_specs.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported and {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize("task", glue_specs.TASKS, ids=lambda task: task.name)
def test_row_is_consistent(task):
    assert task.is_regression != bool(task.labels)
    assert len(set(task.labels)) == len(task.labels)
    assert task.num_classes == (1 if task.is_regression else len(task.labels))
    assert len(task.texts) in (1, 2)
    assert set(task.headline) <= set(task.metrics) <= set(glue_metrics.METRICS)
    assert not set(task.headline) & glue_metrics.LOWER_IS_BETTER
    assert task.reader in glue_readers.READERS
    assert set(task.subset_files) | set(task.headers) | set(task.submission) <= set(task.files)
    assert set(task.submission) == {split for split in task.files if split.startswith("test")}
    needs_groups = {"exact_match", "choice_accuracy"} & set(task.metrics)
    assert bool(needs_groups) == (task.group is not None)


def test_binary_f1_counts_the_positive_class():
    for name in ("MRPC", "QQP", "MultiRC"):
        assert glue_specs.BY_NAME[name].labels == ("0", "1")


def test_generic_task():
    task = glue_specs.generic_task(4, regression=False)
    assert (task.num_classes, task.labels) == (4, ("0", "1", "2", "3"))
    assert glue_specs.generic_task(1, regression=True).num_classes == 1
