"""A fine-tuned model at work: examples -> outputs -> predictions and their metrics."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq.data import ListDataset

from rt_plugin import hub
from rt_plugin.console import commands
from rt_plugin.console.progress import Progress
from rt_plugin.errors import UserError
from rt_plugin.glue.dataset import GlueDataset
from rt_plugin.glue.metrics import evaluate
from rt_plugin.glue.readers import Example
from rt_plugin.glue.specs import GlueTask
from rt_plugin.inference.batches import equal_length_batches
from rt_plugin.model_folder.files import DICTIONARY_FILE
from rt_plugin.text.encode import IdEncoder


class Predictor:
    """A fine-tuned model folder, ready to predict.

    Args:
        folder: the --save-dir of a fine-tuning with the task `rt_glue`.
        checkpoint: the name of a checkpoint in it.
        batch_size: rows at a time; it changes the speed, not the predictions.
        cpu: leave a GPU alone; default: the first one, where there is one.

    Raises:
        UserError: a file is missing, or the model is not fine-tuned.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: str,
        batch_size: int,
        cpu: bool = False,
    ):
        loaded = hub.from_pretrained(str(folder), checkpoint)
        if not hasattr(loaded.task, "glue_task"):
            raise UserError(
                f"{folder}: {checkpoint} is not fine-tuned; give the --save-dir of a fine-tuning with rt_glue"
            )
        self.task: GlueTask = loaded.task.glue_task
        self._loaded = loaded.cuda() if torch.cuda.is_available() and not cpu else loaded
        self._encoder = IdEncoder(loaded.text, loaded.task.source_dictionary, folder / DICTIONARY_FILE)
        self._batch_size = batch_size

    def outputs(self, examples: Sequence[Example], report: Callable[[str], None] = commands.report) -> np.ndarray:
        """(N, C) logits in the order of the examples; (N, 1) scores on the task's own scale for regression.

        Args:
            report: takes lines of progress.
        """
        dataset = self._dataset(examples)
        outputs = np.zeros((len(examples), self.task.num_classes))
        with Progress("predicting", len(examples), report=report) as progress:
            for rows in equal_length_batches(dataset.sizes.tolist(), rows=self._batch_size):
                outputs[rows] = self._forward(dataset.collater([dataset[row] for row in rows]))
                progress.advance(len(rows))
        return self._loaded.task.to_score(outputs) if self.task.is_regression else outputs

    def _dataset(self, examples: Sequence[Example]) -> GlueDataset:
        texts = list(zip(*(example.texts for example in examples), strict=True))
        inputs = []
        for column in texts:
            tokens = [self._encoder.encode(text) for text in column]
            inputs.append(ListDataset(tokens, np.array([len(ids) for ids in tokens])))
        return GlueDataset(inputs, self._encoder.dictionary, self._loaded.task.max_positions())

    def _forward(self, batch: dict) -> np.ndarray:
        inputs = {name: value.to(self._loaded.device) for name, value in batch["net_input"].items()}
        head = self._loaded.task.cfg.classification_head_name
        with torch.no_grad():
            logits, _ = self._loaded.model(**inputs, features_only=True, classification_head_name=head)
        return logits.float().cpu().numpy()


def predictions(task: GlueTask, outputs: np.ndarray, examples: Sequence[Example]) -> list[str]:
    """Label names, or scores within the task's range; of the candidates of one COPA premise exactly one is "1".

    Raises:
        UserError: an output is no finite number.
    """
    broken = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if len(broken):
        raise UserError(f"row {broken[0]}: the model's output is not finite; has its training diverged?")
    if task.is_regression:
        return [f"{score:.3f}" for score in np.clip(outputs[:, 0], *task.score_range)]
    return [task.labels[c] for c in _classes(task, outputs, examples)]


def probabilities(task: GlueTask, outputs: np.ndarray, examples: Sequence[Example]) -> np.ndarray:
    """(N,) the probability of the label that `predictions` names.

    Of COPA's candidates exactly one is right, and the probability is that under this condition: alone, a candidate has
    the odds exp(margin) of being right, and among the others a probability in proportion to its odds.
    """
    classes = _classes(task, outputs, examples)
    if "choice_accuracy" not in task.metrics:
        return torch.from_numpy(outputs).softmax(dim=1).numpy()[np.arange(len(classes)), classes]
    right = np.zeros(len(examples))
    for rows in _groups(examples):
        right[rows] = torch.from_numpy(_margins(outputs)[rows]).softmax(dim=0).numpy()
    return np.where(classes == 1, right, 1 - right)


def _classes(task: GlueTask, outputs: np.ndarray, examples: Sequence[Example]) -> np.ndarray:
    if "choice_accuracy" not in task.metrics:
        return outputs.argmax(axis=1)
    classes = np.zeros(len(examples), dtype=int)
    for rows in _groups(examples):
        classes[rows[_margins(outputs)[rows].argmax()]] = 1
    return classes


def _margins(outputs: np.ndarray) -> np.ndarray:
    return outputs[:, 1] - outputs[:, 0]


def _groups(examples: Sequence[Example]) -> list[np.ndarray]:
    """The rows of each premise."""
    groups = np.array([example.group for example in examples])
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


def metrics_of(task: GlueTask, written: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """The task's metrics, by name, of what `predictions` gave; none where a row has no label."""
    if any(example.label is None for example in examples):
        return {}
    if task.is_regression:
        outputs = np.array([[float(score)] for score in written])
    else:
        outputs = np.eye(task.num_classes)[[task.labels.index(name) for name in written]]
    labels = np.array([example.label for example in examples])
    groups = np.array([example.group for example in examples]) if task.group else None
    return evaluate(task.metrics, outputs, labels, groups)
