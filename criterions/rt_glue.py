"""The fairseq criterion `rt_glue`: cross-entropy for classes, squared error for scores, without class weighting."""

import math

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from rt_plugin.errors import UserError


@register_criterion("rt_glue", dataclass=FairseqDataclass)
class RtGlueCriterion(FairseqCriterion):
    """Loss of the task `rt_glue`; in evaluation the task also gets the outputs, for metrics over the whole set.

    Args:
        task: an `RtGlueTask`.

    Raises:
        UserError: the task is another one.
    """

    def __init__(self, task):
        super().__init__(task)
        if not hasattr(task, "record_outputs"):
            raise UserError(f"--criterion rt_glue goes with --task rt_glue, found {type(task).__name__}")

    def forward(self, model, sample: dict, reduce: bool = True) -> tuple[Tensor, int, dict]:
        """Compute the loss of a batch.

        Returns:
            the summed loss (nats, or squared error of scores from 0 to 1), the number of rows, and sums for the log:
            all of them can be added up over batches and processes. Zeros for an empty batch, which a process of
            fairseq-validate gets where others have a batch more.

        Raises:
            UserError: the batch has no labels.
        """
        if not sample:
            return torch.zeros(()), 0, dict.fromkeys(("loss", "ntokens", "nsentences", "sample_size"), 0)
        if "target" not in sample:
            raise UserError(
                "this split has no labels, so it has no loss; evaluate on a split with labels, such as valid"
            )
        outputs, _ = model(
            **sample["net_input"], features_only=True, classification_head_name=self.task.cfg.classification_head_name
        )
        targets = sample["target"]
        log = {"ntokens": sample["ntokens"], "nsentences": targets.numel(), "sample_size": targets.numel()}
        if self.task.is_regression:
            loss = F.mse_loss(outputs.view(-1).float(), targets.float(), reduction="sum")
            log["loss"] = loss.detach()
        else:
            loss = F.nll_loss(F.log_softmax(outputs, dim=-1, dtype=torch.float32), targets, reduction="sum")
            log["loss"] = loss.detach() / math.log(2)
        if not self.training:
            self.task.record_outputs(sample, outputs)
        elif not self.task.is_regression:
            log["ncorrect"] = (outputs.argmax(dim=-1) == targets).sum()
        return loss, log["sample_size"], log

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log the mean loss (bits for classes, squared error for scores) and, in training, the accuracy."""
        rows = sum(log.get("sample_size", 0) for log in logging_outputs)
        loss = sum(log.get("loss", 0) for log in logging_outputs)
        metrics.log_scalar("loss", loss / rows, rows, round=6)
        if any("ncorrect" in log for log in logging_outputs):
            correct = sum(log.get("ncorrect", 0) for log in logging_outputs)
            metrics.log_scalar("accuracy", correct / rows, rows, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
