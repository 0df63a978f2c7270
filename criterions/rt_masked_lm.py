"""Masked-LM loss over the masked positions, with perplexity, accuracy and the share of masked tokens."""

import math

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch.nn import functional as F

from rt_plugin.errors import UserError


@register_criterion("rt_masked_lm", dataclass=FairseqDataclass)
class RtMaskedLMCriterion(FairseqCriterion):
    """Cross-entropy of the tokens that were masked; only their positions are projected to the vocabulary.

    Logged, as sums over all processes and batches: loss in bits per masked token, perplexity (2 to the loss),
    `accuracy` (per cent of masked tokens whose most probable token is right), `masked` (per cent of tokens masked).
    "Masked" are all that are to be guessed, a tenth of which stay as they are, and a tenth become random tokens. In
    validation, `mask_loss` and `mask_ppl` are of those that `<mask>` stands for.

    Args:
        cfg: has no options.
        task: an `RtMaskedLMTask`, or another that masks.

    Raises:
        UserError: the task masks nothing.
    """

    def __init__(self, cfg: FairseqDataclass, task):
        super().__init__(task)
        if not hasattr(task, "mask_idx"):
            raise UserError(f"--criterion rt_masked_lm goes with --task rt_masked_lm, found {type(task).__name__}")
        self.mask_idx = task.mask_idx

    def forward(self, model, sample, reduce=True):
        """Return (loss in nats summed over masked tokens, their number, sums to be logged).

        Zeros for an empty batch, which a process of fairseq-validate gets where others have a batch more.
        """
        if not sample:
            names = ("loss", "ncorrect", "ntokens", "nsentences", "sample_size")
            names += () if self.training else ("mask_loss", "mask_tokens")
            return torch.zeros(()), 0, dict.fromkeys(names, 0)
        masked = sample["target"].ne(self.padding_idx)
        targets = sample["target"][masked]
        logits, _ = model(**sample["net_input"], masked_tokens=masked)
        # of no masked token at all this is 0, with gradients of 0: every parameter still takes part on every process
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        sums = {
            "loss": loss.detach(),
            "ncorrect": logits.argmax(dim=-1).eq(targets).sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": targets.numel(),
        }
        if not self.training:
            hidden = sample["net_input"]["src_tokens"][masked] == self.mask_idx
            sums["mask_loss"] = F.cross_entropy(logits[hidden].float(), targets[hidden], reduction="sum")
            sums["mask_tokens"] = hidden.sum()
        return loss, targets.numel(), sums

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log the measures of several batches and processes from their sums."""
        loss, correct, tokens, masked = (
            float(sum(log.get(key, 0) for log in logging_outputs))
            for key in ("loss", "ncorrect", "ntokens", "sample_size")
        )
        if not masked:  # an update whose batches hold no masked token, or a process with only padding batches
            metrics.log_scalar("loss", 0.0, 0, round=3)  # counts nothing; without it fairseq logs -1, which counts
            return
        metrics.log_scalar("loss", loss / masked / math.log(2), masked, round=3)
        metrics.log_scalar("accuracy", 100 * correct / masked, masked, round=2)
        metrics.log_scalar("masked", 100 * masked / tokens, tokens, round=2)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["loss"].avg))
        hidden = float(sum(log.get("mask_tokens", 0) for log in logging_outputs))
        if hidden:
            nats = float(sum(log["mask_loss"] for log in logging_outputs))
            metrics.log_scalar("mask_loss", nats / hidden / math.log(2), hidden, round=3)
            metrics.log_derived("mask_ppl", lambda meters: utils.get_perplexity(meters["mask_loss"].avg))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
