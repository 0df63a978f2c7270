"""The GLUE and SuperGLUE tasks as a table: files, columns, labels, metrics, submission files.

Imports nothing but the standard library and the error type.

Adding an ordinary task is adding a row to `TASKS`.

Label names stand in the order of their class indices. All inference tasks of three classes share one order, so that a
model tuned on MNLI can be scored on AX and CB. Binary F1 counts class 1 as the positive class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rt_plugin.errors import UserError

_TSV_FILES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
_JSONL_FILES = {"train": "train.jsonl", "valid": "val.jsonl", "test": "test.jsonl"}
_INFERENCE = ("entailment", "neutral", "contradiction")

# in the order of their columns in results.csv; `rt_plugin.glue.metrics` computes them
METRICS = ("accuracy", "f1", "f1_macro", "mcc", "pearson", "spearman", "rmse", "exact_match", "choice_accuracy")
LOWER_IS_BETTER = frozenset({"rmse"})


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        name: what users type, and the folder's name.
        texts: columns (TSV) or keys (JSON lines) of the one or two texts.
        label: column or key of the label; files of a split named test* may lack it.
        labels: label names in the order of their class indices; empty for regression.
        score_range: lowest and highest score of a regression task; None for classification.
        metrics: names of `METRICS`, all of them reported.
        headline: those whose mean is the task's one number, `score`; GLUE averages where it names two.
        reader: function of `rt_plugin.glue.readers` that turns a file into examples.
        files: split -> file name. `train` and `valid` must be there where the table has them.
        subset_files: split -> name of a reduced file that `--subsets` prefers.
        folders: other names of the task's folder, relative to the GLUE folder.
        headers: split -> column names, for TSV files that have no header line.
        group: what scores are computed over, where that is not the single row: the rows of one question (MultiRC) or
            the candidates of one premise (COPA). Rows of a group follow each other.
        submission: split -> file name for the official server.
        submission_format: "tsv" (index, prediction), "jsonl" (idx, label) or "multirc" (nested JSON lines).
        benchmark: "GLUE" or "SuperGLUE", whose server takes the submission; "" where there is none.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    headline: tuple[str, ...]
    label: str = "label"
    score_range: tuple[float, float] | None = None
    reader: str = "tsv"
    files: dict[str, str] = field(default_factory=lambda: dict(_TSV_FILES))
    subset_files: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    headers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    group: str | None = None
    submission: dict[str, str] = field(default_factory=dict)
    submission_format: str = "tsv"
    benchmark: str = "GLUE"

    @property
    def is_regression(self) -> bool:
        return self.score_range is not None

    @property
    def official(self) -> str:
        """What its files are called by in an error: "official ", or "" where they are one's own."""
        return "official " if self.benchmark else ""

    @property
    def num_classes(self) -> int:
        """Outputs of the classification head: 1 for regression."""
        return len(self.labels) or 1


_COLA_COLUMNS = ("source", "label", "original_label", "sentence")

TASKS: tuple[GlueTask, ...] = (
    GlueTask(
        name="CoLA",
        texts=("sentence",),
        labels=("0", "1"),
        metrics=("mcc", "accuracy"),
        headline=("mcc",),
        headers={"train": _COLA_COLUMNS, "valid": _COLA_COLUMNS},
        submission={"test": "CoLA.tsv"},
    ),
    GlueTask(
        name="SST-2",
        texts=("sentence",),
        labels=("0", "1"),
        metrics=("accuracy",),
        headline=("accuracy",),
        submission={"test": "SST-2.tsv"},
    ),
    GlueTask(
        name="MRPC",
        texts=("#1 String", "#2 String"),
        label="Quality",
        labels=("0", "1"),
        metrics=("accuracy", "f1"),
        headline=("accuracy", "f1"),
        submission={"test": "MRPC.tsv"},
    ),
    GlueTask(
        name="STS-B",
        texts=("sentence1", "sentence2"),
        label="score",
        labels=(),
        score_range=(0.0, 5.0),
        metrics=("pearson", "spearman", "rmse"),
        headline=("pearson", "spearman"),
        submission={"test": "STS-B.tsv"},
    ),
    GlueTask(
        name="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        labels=("0", "1"),
        metrics=("accuracy", "f1"),
        headline=("accuracy", "f1"),
        subset_files={"train": "train_subset.tsv", "valid": "dev_subset.tsv"},
        submission={"test": "QQP.tsv"},
    ),
    GlueTask(
        name="MNLI",
        texts=("sentence1", "sentence2"),
        label="gold_label",
        labels=_INFERENCE,
        metrics=("accuracy",),
        headline=("accuracy",),
        files={
            "train": "train.tsv",
            "valid": "dev_matched.tsv",
            "valid_mismatched": "dev_mismatched.tsv",
            "test": "test_matched.tsv",
            "test_mismatched": "test_mismatched.tsv",
        },
        subset_files={"train": "train_from_dev_matched.tsv", "valid": "dev_from_dev_matched.tsv"},
        submission={"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
    ),
    GlueTask(
        name="QNLI",
        texts=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        headline=("accuracy",),
        subset_files={"train": "train_subset.tsv"},
        submission={"test": "QNLI.tsv"},
    ),
    GlueTask(
        name="RTE",
        texts=("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        headline=("accuracy",),
        submission={"test": "RTE.tsv"},
    ),
    GlueTask(
        name="WNLI",
        texts=("sentence1", "sentence2"),
        labels=("0", "1"),
        metrics=("accuracy",),
        headline=("accuracy",),
        submission={"test": "WNLI.tsv"},
    ),
    GlueTask(
        name="AX",
        texts=("sentence1", "sentence2"),
        labels=_INFERENCE,
        metrics=("mcc", "accuracy"),
        headline=("mcc",),
        files={"test": "diagnostic.tsv"},
        folders=("diagnostic",),
        submission={"test": "AX.tsv"},
    ),
    GlueTask(
        name="BoolQ",
        texts=("question", "passage"),
        labels=("false", "true"),
        metrics=("accuracy",),
        headline=("accuracy",),
        reader="jsonl",
        files=_JSONL_FILES,
        subset_files={"train": "train_subset.jsonl"},
        folders=("SuperGLUE/BoolQ",),
        submission={"test": "BoolQ.jsonl"},
        submission_format="jsonl",
        benchmark="SuperGLUE",
    ),
    GlueTask(
        name="MultiRC",
        texts=("passage", "question and answer"),
        labels=("0", "1"),
        metrics=("f1", "exact_match", "accuracy"),
        headline=("f1", "exact_match"),
        reader="multirc",
        files=_JSONL_FILES,
        folders=("SuperGLUE/MultiRC",),
        group="question",
        submission={"test": "MultiRC.jsonl"},
        submission_format="multirc",
        benchmark="SuperGLUE",
    ),
    GlueTask(
        name="CB",
        texts=("premise", "hypothesis"),
        labels=_INFERENCE,
        metrics=("accuracy", "f1_macro"),
        headline=("accuracy", "f1_macro"),
        reader="jsonl",
        files=_JSONL_FILES,
        folders=("SuperGLUE/CB",),
        submission={"test": "CB.jsonl"},
        submission_format="jsonl",
        benchmark="SuperGLUE",
    ),
    GlueTask(
        name="COPA",
        texts=("premise and question", "choice"),
        labels=("0", "1"),
        metrics=("choice_accuracy", "accuracy"),
        headline=("choice_accuracy",),
        reader="copa",
        files=_JSONL_FILES,
        folders=("SuperGLUE/COPA",),
        group="premise",
        submission={"test": "COPA.jsonl"},
        submission_format="jsonl",
        benchmark="SuperGLUE",
    ),
    GlueTask(
        name="WiC",
        texts=("sentence1", "sentence2"),
        labels=("false", "true"),
        metrics=("accuracy",),
        headline=("accuracy",),
        reader="wic",
        files=_JSONL_FILES,
        folders=("SuperGLUE/WiC",),
        submission={"test": "WiC.jsonl"},
        submission_format="jsonl",
        benchmark="SuperGLUE",
    ),
)

BY_NAME: dict[str, GlueTask] = {task.name: task for task in TASKS}


def task_rank(name: str) -> tuple[int, str]:
    """Sorts tasks: those of the table in its order, then others by name."""
    return (list(BY_NAME).index(name), "") if name in BY_NAME else (len(BY_NAME), name)


def find_task(name: str, own: Sequence[str] | None = None) -> GlueTask:
    """The row of the task table.

    Args:
        own: names of one's own tasks, for the error; None where only the table's can be meant.

    Raises:
        UserError: there is no such row.
    """
    if name not in BY_NAME:
        more = "" if own is None else ", or a task of your own, a folder with a task.json"
        raise UserError(f"GLUE task {name!r} is unknown, expected one of {', '.join((*BY_NAME, *(own or ())))}{more}")
    return BY_NAME[name]


def generic_task(
    num_classes: int,
    regression: bool,
    labels: Sequence[str] | None = None,
    texts: Sequence[str] = ("input0", "input1"),
) -> GlueTask:
    """A task that is not in the table, for data prepared by other means.

    Args:
        labels: in the order of the class indices; None: the indices are the names.
        texts: of a row; none where that is not known.
    """
    if regression:
        headline = ("pearson", "spearman")
        metrics = (*headline, "rmse")
        return GlueTask("custom", tuple(texts), (), metrics, headline, score_range=(0.0, 1.0), benchmark="")
    labels = tuple(str(i) for i in range(num_classes)) if labels is None else tuple(labels)
    return GlueTask("custom", tuple(texts), labels, ("accuracy",), ("accuracy",), benchmark="")
