"""The fairseq task `rt_glue`: fine-tune on a GLUE task, or on other sentences and sentence pairs in the same layout."""

import contextlib
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING, OmegaConf, open_dict
from torch import Tensor

from rt_plugin.console.files import continue_log
from rt_plugin.errors import UserError
from rt_plugin.glue import prepared
from rt_plugin.glue.dataset import GlueDataset
from rt_plugin.glue.head import check_pooling, leave_out, take_marks, task_before
from rt_plugin.glue.layer_rates import layer_rates, mark
from rt_plugin.glue.metrics import CollectedOutputs, evaluate
from rt_plugin.glue.pooling import AUTO, PoolingHook, check_marks, settle
from rt_plugin.glue.results import METRICS_FILE, SCORE
from rt_plugin.glue.specs import LOWER_IS_BETTER, GlueTask
from rt_plugin.model_folder.checkpoint import (
    check_token_ids,
    checkpoint_positions,
    starting_checkpoint,
)
from rt_plugin.model_folder.companions import WithCompanions
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import (
    DICTIONARY_FILE,
    GLUE_FILE,
    LABEL_DICTIONARY_FILE,
    NORMALIZATION_FILE,
    TOKENIZER_FILE,
    copy_files,
)
from rt_plugin.model_folder.pooling import FIRST, POOLINGS
from rt_plugin.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

DEFAULT_MAX_POSITIONS = 512
SMALLEST_MAX_POSITIONS = 6
_LOSS = "loss"  # fairseq's own metric, and its choice unless told otherwise


# Optional[...], because fairseq's parser does not know `int | None`
# ruff: noqa: UP045


@dataclass
class RtGlueConfig(FairseqDataclass):
    """The options of the task."""

    data: str = field(
        default=MISSING, metadata={"help": "folder written by rt-plugin prepare-glue (OUT/<TASK>), or a model folder"}
    )
    glue_task: Optional[str] = field(
        default=None, metadata={"help": "name of the GLUE task (default: read from glue.json in the data folder)"}
    )
    num_classes: Optional[int] = field(
        default=None, metadata={"help": "number of classes, for data without glue.json that is no GLUE task"}
    )
    regression_target: bool = field(
        default=False, metadata={"help": "predict a score from 0 to 1, for data without glue.json that is no GLUE task"}
    )
    max_positions: Optional[int] = field(
        default=None,
        metadata={"help": "tokens of an input; longer ones are cut (default: the positions of the checkpoint, or 512)"},
    )
    group_by_length: int = field(
        default=0,
        metadata={
            "help": "training rows of the random order that are sorted by length at a time, before they are cut into "
            "batches, so that batches need less padding; 50 times --batch-size is usual, 0: random batches"
        },
    )
    classification_head_name: str = field(
        default="sentence_classification_head", metadata={"help": "name of the classification head to train"}
    )
    pooling: ChoiceEnum((*POOLINGS, AUTO)) = field(
        default=AUTO,
        metadata={
            "help": "what the classification head reads: first (the first position), mean or max (of all that are no "
            "padding, <s> and </s> among them), pair (u, v, |u-v|, u*v of the means over two texts), apart (the same "
            "of texts that are read one by one), aligned (and how far each text is from what the other has nearest to "
            "it), or auto (pair for two texts, first for one); what was chosen stays with the model",
        },
    )
    mark_shared: bool = field(
        default=False,
        metadata={
            "help": "add a learned vector to the embedding of each token of two texts: one where the other text has "
            "the same token, another where it has not; stays with the model"
        },
    )
    layer_lr_decay: float = field(
        default=1.0,
        metadata={
            "help": "learning rate of a layer as a share of that of the layer above; the head, on top, has the full "
            "rate, the embeddings the lowest (1: one rate for all; 0.8 is usual)"
        },
    )
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    # Only a training looks at these four; they stay in the checkpoint, and loading it must not need the files.
    save_dir: str = II("checkpoint.save_dir")
    restore_file: str = II("checkpoint.restore_file")
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    continue_once: Optional[str] = II("checkpoint.continue_once")
    seed: int = II("common.seed")


@register_task("rt_glue", dataclass=RtGlueConfig)
class RtGlueTask(WithCompanions, FairseqTask):
    """Classification or regression of sentences and sentence pairs.

    Args:
        cfg: options.
        glue_task: labels and metrics.
        dictionary: of the inputs, with <mask>.
        label_dictionary: class names after the special symbols; None for regression.
    """

    def __init__(
        self,
        cfg: RtGlueConfig,
        glue_task: GlueTask,
        dictionary: Dictionary,
        label_dictionary: Dictionary | None,
    ):
        super().__init__(cfg)
        self.glue_task = glue_task
        self.dictionary = dictionary
        self.label_dictionary = label_dictionary
        self.num_classes = glue_task.num_classes
        self.is_regression = glue_task.is_regression
        self.score_range = glue_task.score_range
        self._positions = cfg.max_positions or DEFAULT_MAX_POSITIONS
        self._collected = CollectedOutputs()
        self._evaluated_split: str | None = None
        self._metrics_file: Path | None = None
        self._epoch: int | None = None
        # fairseq-train reduces after every batch and ends with post_validate; fairseq-validate reduces once
        self._is_training = False
        self.keep_companions({name: path for path, name in self._files() if name != GLUE_FILE})

    @classmethod
    def setup_task(cls, cfg: RtGlueConfig, from_checkpoint: bool = False, **kwargs) -> "RtGlueTask":
        """Read dictionaries and task from the data folder or, for a loaded checkpoint, from a model folder.

        Raises:
            UserError: the folder or one of its files is missing, or they do not belong together.
        """
        folder = Path(cfg.data)
        if not folder.is_dir():
            raise UserError(f"data folder {folder}: no such folder; prepare it with rt-plugin prepare-glue")
        dictionary_path, label_path = prepared.dictionary_files(folder)
        dictionary = load_dictionary(dictionary_path)
        if not from_checkpoint:
            check_options(cfg)
            if (folder / TOKENIZER_FILE).is_file():
                Tokenizer.load(folder).check_dictionary(dictionary.symbols, str(dictionary_path))
        dictionary.add_symbol("<mask>")
        glue_task = prepared.task_of(folder, cfg.glue_task, cfg.num_classes, cfg.regression_target)
        if not from_checkpoint:
            check_best_checkpoint(cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric, glue_task)
        _settle_pooling(cfg, glue_task, from_checkpoint)
        labels = None if glue_task.is_regression else prepared.load_labels(label_path, glue_task)
        logger.info("task %s, %d symbols, classes: %s", glue_task.name, len(dictionary), glue_task.labels or "score")
        return cls(cfg, glue_task, dictionary, labels)

    @property
    def label_names(self) -> list[str] | None:
        """Class names in the order of the class indices; None for regression."""
        if self.is_regression:
            return None
        return prepared.label_names(self.label_dictionary, self.num_classes)

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary

    def max_positions(self) -> int:
        return self._positions

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Build the model with the positions of the checkpoint that the training starts from, and its head.

        Raises:
            UserError: --max-positions is more than that checkpoint has, its token ids are not those of the data, or its
                head was trained on this task with another --pooling or --mark-shared.
        """
        start = None if from_checkpoint else self._starting_checkpoint()
        head = self.cfg.classification_head_name
        before = None if start is None else task_before(start, self.cfg.save_dir)
        is_another = before not in (None, self.glue_task.name)
        if start is not None:
            check_token_ids(self.dictionary, Path(self.cfg.data), start)
            if not is_another:
                check_pooling(start, head, self.cfg.pooling, self.cfg.mark_shared)
        positions = self._model_positions(cfg, from_checkpoint)
        self._positions = min(self.cfg.max_positions or positions, positions)
        with open_dict(cfg) if OmegaConf.is_config(cfg) else contextlib.nullcontext():
            cfg.max_positions = positions
        model = super().build_model(cfg, from_checkpoint)
        model.register_classification_head(head, num_classes=self.num_classes)
        pooling, marks = str(self.cfg.pooling), bool(self.cfg.mark_shared)
        if pooling != FIRST or marks:
            PoolingHook(model, head, pooling, marks, self.dictionary.pad(), self.dictionary.eos())
        if is_another:
            logger.info(
                "%s was fine-tuned on %s: its head is left out, %s gets a new one", start, before, self.glue_task.name
            )
            leave_out(model, head)
            take_marks(model, head, start)
        if self.cfg.layer_lr_decay != 1:
            mark(model, self.cfg.layer_lr_decay)
        return model

    def optimizer_step(self, optimizer, model, update_num):
        with contextlib.nullcontext() if self.cfg.layer_lr_decay == 1 else layer_rates(optimizer):
            super().optimizer_step(optimizer, model, update_num)

    def _starting_checkpoint(self) -> str | None:
        cfg = self.cfg
        return starting_checkpoint(cfg.save_dir, cfg.restore_file, cfg.finetune_from_model, cfg.continue_once)

    def _model_positions(self, model_cfg, from_checkpoint: bool) -> int:
        wanted = self.cfg.max_positions
        if from_checkpoint:
            return getattr(model_cfg, "max_positions", None) or wanted or DEFAULT_MAX_POSITIONS
        path = self._starting_checkpoint()
        there = checkpoint_positions(path, self.dictionary.pad()) if path is not None else None
        if there is None:
            return wanted or DEFAULT_MAX_POSITIONS
        if wanted is not None and wanted > there:
            raise UserError(
                f"--max-positions {wanted} is more than the {there} positions of {path}; "
                f"use --max-positions {there} or less (longer inputs are cut), or leave the option out"
            )
        return there

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> GlueDataset:
        """Load a split.

        Raises:
            UserError: the split is not there, its files differ in length, or a label is none of the task's.
        """
        folder = Path(self.cfg.data)
        inputs = prepared.load_inputs(folder, split, self.dictionary)
        if self.is_regression:
            targets = prepared.load_scores(folder, split)
        else:
            targets = prepared.load_classes(folder, split, self.label_dictionary, self.num_classes)
        groups = prepared.load_groups(folder, split)
        lengths = [len(part) for part in (*inputs, targets, groups) if part is not None]
        if len(set(lengths)) != 1:
            raise UserError(f"{folder}: the files of split {split!r} have {lengths} rows; prepare the data again")
        order = {"shuffle_seed": self.cfg.seed, "sorted_rows": self.cfg.group_by_length} if split == "train" else {}
        self.datasets[split] = GlueDataset(inputs, self.dictionary, self.max_positions(), targets, groups, **order)
        logger.info("loaded %d rows of %s", len(self.datasets[split]), split)
        return self.datasets[split]

    def dataset(self, split: str) -> GlueDataset:
        # fairseq asks for a split right before it evaluates it, and tells post_validate nothing about it
        self._evaluated_split = split
        return super().dataset(split)

    def write_model_folder(self, save_dir: str) -> None:
        """Put what a checkpoint needs beside its data folder into `save_dir`; called when a training starts."""
        copy_files(self._files(), save_dir)
        if not (Path(self.cfg.data) / GLUE_FILE).is_file() and self.glue_task.texts:  # data prepared by other means
            prepared.write_glue_file(Path(save_dir), self.glue_task, {})
        self._metrics_file = Path(save_dir) / METRICS_FILE

    def _files(self) -> list[tuple[Path, str]]:
        """What of the data folder belongs beside a checkpoint, with its name there."""
        folder = Path(self.cfg.data)
        dictionary_path, label_path = prepared.dictionary_files(folder)
        labels = [] if self.is_regression else [(label_path, LABEL_DICTIONARY_FILE)]
        others = [(folder / name, name) for name in (TOKENIZER_FILE, NORMALIZATION_FILE, GLUE_FILE)]
        return [(dictionary_path, DICTIONARY_FILE), *labels, *others]

    def record_outputs(self, sample: dict, outputs: Tensor) -> None:
        """Keep the outputs (B, C) of a dev batch for the metrics; called by the criterion."""
        self._collected.add(sample["id"], outputs)

    def begin_valid_epoch(self, epoch: int, model) -> None:
        self._is_training = True
        self._epoch = epoch
        self._collected.clear()

    def reduce_metrics(self, logging_outputs: list[dict], criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            return
        if self._is_training:
            # fairseq compares stats[best_checkpoint_metric] with the best before it calls post_validate
            for name in _metric_names(self.glue_task):
                metrics.log_scalar(name, self._worst())
            return
        for name, value in self._evaluate().items():
            _log_metric(name, value)

    def post_validate(self, model, stats: dict, agg) -> None:
        """Put the metrics over the whole dev set into `stats`, which fairseq-train reads next."""
        values = self._evaluate()
        self._append_metrics(stats, values)
        best = max if self.cfg.maximize_best_checkpoint_metric else min
        for name, value in values.items():
            stats[name] = "undefined" if math.isnan(value) else value
            if name == self.cfg.best_checkpoint_metric:
                stats[name] = self._worst() if math.isnan(value) else value
                if f"best_{name}" in stats:
                    stats[f"best_{name}"] = best(stats[f"best_{name}"], stats[name])

    def _worst(self) -> float:
        return -math.inf if self.cfg.maximize_best_checkpoint_metric else math.inf

    def _evaluate(self) -> dict[str, float]:
        """The task's metrics and `score`, the mean of the headline ones, over the rows seen since the last call."""
        rows, outputs = self._collected.gather()
        self._collected.clear()
        dataset = self.datasets[self._evaluated_split]
        targets = dataset.targets[rows]
        groups = None if dataset.groups is None else dataset.groups[rows]
        if self.is_regression:
            outputs, targets = self.to_score(outputs), self.to_score(targets)
        values = evaluate(self.glue_task.metrics, outputs, targets, groups)
        values[SCORE] = math.fsum(values[name] for name in self.glue_task.headline) / len(self.glue_task.headline)
        return values

    def to_score(self, outputs: np.ndarray) -> np.ndarray:
        """Model outputs, about 0 to 1, on the task's own scale (STS-B: 0 to 5)."""
        low, high = self.score_range
        return low + (high - low) * outputs

    def _append_metrics(self, stats: dict, values: dict[str, float]) -> None:
        """One JSON line in the model folder: fairseq's own log rounds to six digits."""
        if self._metrics_file is None:
            return
        line = {
            "split": self._evaluated_split,
            "epoch": self._epoch,
            "updates": stats.get("num_updates"),
            "train_loss": metrics.get_smoothed_value("train", "loss"),  # the mean over the epoch so far
            "loss": float(stats["loss"]),
        }
        line |= {name: None if math.isnan(value) else value for name, value in values.items()}
        with continue_log(self._metrics_file, keep_rest=False) as file:
            file.write(json.dumps(line) + "\n")


def _settle_pooling(cfg: RtGlueConfig, glue_task: GlueTask, from_checkpoint: bool) -> None:
    """Put what --pooling auto means here into the options, and into those of the training, which a checkpoint keeps.

    A checkpoint that says nothing, and so gets the default, is older than the option: its head reads the first
    position.
    """
    if from_checkpoint and cfg.pooling == AUTO:
        cfg.pooling = FIRST
    cfg.pooling = settle(str(cfg.pooling), len(glue_task.texts), glue_task.name)
    if cfg.mark_shared:
        check_marks(len(glue_task.texts), glue_task.name)
    training = cfg._get_parent() if OmegaConf.is_config(cfg) else None
    if training is not None:
        training.task.pooling = cfg.pooling


def _metric_names(glue_task: GlueTask) -> list[str]:
    return [*glue_task.metrics, SCORE]


def _log_metric(name: str, value: float) -> None:
    if math.isnan(value):
        metrics.log_derived(name, lambda meters: "undefined")
    else:
        metrics.log_scalar(name, value)


def check_options(cfg: RtGlueConfig) -> None:
    """Refuse options that cannot be meant.

    Raises:
        UserError: --max-positions leaves no room for a pair; --group-by-length is negative; or --layer-lr-decay is no
            share.
    """
    if cfg.max_positions is not None and cfg.max_positions < SMALLEST_MAX_POSITIONS:
        raise UserError(
            f"--max-positions is {cfg.max_positions}, expected {SMALLEST_MAX_POSITIONS} or more "
            "(four special symbols and a token of each text)"
        )
    if cfg.group_by_length < 0:
        raise UserError(
            f"--group-by-length is {cfg.group_by_length}, expected a number of rows, or 0 for random batches"
        )
    if not 0 < cfg.layer_lr_decay <= 1:
        raise UserError(
            f"--layer-lr-decay is {cfg.layer_lr_decay:g}, expected more than 0 and at most 1 (one rate for all layers)"
        )


def check_best_checkpoint(metric: str, maximize: bool, glue_task: GlueTask) -> None:
    """Refuse a metric that is not there to choose the best checkpoint by, and the wrong end of it.

    Args:
        metric, maximize: --best-checkpoint-metric, --maximize-best-checkpoint-metric.

    Raises:
        UserError: the task has no such metric, which fairseq notices after an epoch, with a KeyError; or the worst
            checkpoint would be kept as the best, which fairseq does without a word.
    """
    names = _metric_names(glue_task)
    if metric not in (*names, _LOSS):
        raise UserError(
            f"--best-checkpoint-metric {metric}: {glue_task.name} has no such metric; expected {', '.join(names)} or "
            f"{_LOSS}"
        )
    if maximize != (metric not in LOWER_IS_BETTER | {_LOSS}):
        found, remedy = ("with", "leave that option out, or name another metric") if maximize else ("without", "add it")
        raise UserError(
            f"--best-checkpoint-metric {metric} {found} --maximize-best-checkpoint-metric would keep the worst "
            f"checkpoint; {remedy}"
        )
