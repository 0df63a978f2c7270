"""The metrics of the GLUE tasks, by the names that `rt_plugin.glue.specs` uses; scikit-learn and scipy compute them.

Values are fractions, not per cent. An undefined value is nan.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def evaluate(
    names: Sequence[str], outputs: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """Compute metrics over a whole data set.

    Args:
        names: keys of `FUNCTIONS`.
        outputs: (N, C) class scores, or (N, 1) for regression.
        targets: (N,) class indices, or (N,) scores for regression.
        groups: (N,) the group that each row belongs to; for `exact_match` and `choice_accuracy`.

    Returns:
        name -> value; nan where it is undefined (no rows, outputs that are not finite, a correlation with a constant).
    """
    if len(targets) == 0 or not np.isfinite(outputs).all():
        return dict.fromkeys(names, math.nan)
    return {name: float(FUNCTIONS[name](outputs, targets, groups)) for name in names}


def _scikit_learn():
    from sklearn import metrics  # with scipy, a third of the time that a model takes to import and load

    return metrics


def _accuracy(outputs, targets, groups):
    return _scikit_learn().accuracy_score(targets, outputs.argmax(axis=1))


def _f1(outputs, targets, groups):
    return _scikit_learn().f1_score(targets, outputs.argmax(axis=1), zero_division=0.0)


def _f1_macro(outputs, targets, groups):
    return _scikit_learn().f1_score(targets, outputs.argmax(axis=1), average="macro", zero_division=0.0)


def _mcc(outputs, targets, groups):
    return _scikit_learn().matthews_corrcoef(targets, outputs.argmax(axis=1))


def _pearson(outputs, targets, groups):
    return _correlation("pearsonr", outputs[:, 0], targets)


def _spearman(outputs, targets, groups):
    return _correlation("spearmanr", outputs[:, 0], targets)


def _rmse(outputs, targets, groups):
    return math.sqrt(np.mean((outputs[:, 0] - targets) ** 2))


def _correlation(name: str, predictions: np.ndarray, targets: np.ndarray) -> float:
    from scipy import stats

    if len(targets) < 2:
        return math.nan
    with warnings.catch_warnings():
        # scipy warns of constant input and returns nan, which is what is reported
        warnings.simplefilter("ignore")
        return getattr(stats, name)(predictions, targets).statistic


def _exact_match(outputs, targets, groups):
    """Share of the groups whose rows are all right (MultiRC's EM)."""
    right = outputs.argmax(axis=1) == targets
    return np.mean([right[rows].all() for rows in _rows_by_group(groups)])


def _choice_accuracy(outputs, targets, groups):
    """Share of the groups in which the row scored highest for class 1 is the one labelled 1 (COPA)."""
    margin = outputs[:, 1] - outputs[:, 0]
    return np.mean([targets[rows[margin[rows].argmax()]] == 1 for rows in _rows_by_group(groups)])


def _rows_by_group(groups: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(order, starts)


FUNCTIONS: dict[str, Callable] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
    "rmse": _rmse,
    "exact_match": _exact_match,
    "choice_accuracy": _choice_accuracy,
}


class CollectedOutputs:
    """The model's outputs over a dev set, row by row, in all processes.

    A row counts once, however often it is seen: with several processes, fairseq fills up the last batches of some with
    rows of the first.
    """

    def __init__(self):
        self._outputs: dict[int, np.ndarray] = {}

    def add(self, ids: Tensor, outputs: Tensor) -> None:
        """Keep outputs (B, C) of the rows `ids` (B,)."""
        values = outputs.detach().cpu().double().numpy()
        self._outputs.update(zip(ids.tolist(), values, strict=True))

    def gather(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (N,), ascending, and outputs (N, C) of all processes; all of them must call this."""
        merged = self._outputs
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            parts = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, self._outputs)
            merged = {row: values for part in parts for row, values in part.items()}
        rows = np.array(sorted(merged), dtype=np.int64)
        return rows, np.array([merged[row] for row in rows.tolist()])

    def clear(self) -> None:
        self._outputs = {}
