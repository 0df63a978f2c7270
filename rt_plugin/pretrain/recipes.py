"""Pretraining recipes, as data. Imports the standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a model is pretrained: Adam, linear warm-up to the learning rate, linear decay to 0.

    Attributes:
        size: of the architecture, "tiny" to "large".
        tokens_per_sample: the longest sequence, in tokens, <s> included.
        batch_tokens: tokens of an update, over all devices and steps.
        updates, warmup_updates, learning_rate: of the schedule.
        adam_betas, adam_eps, weight_decay, clip_norm: of the optimizer; a clip_norm of 0 clips nothing.
        dropout: also of attention.
        source: where the numbers are from.
    """

    size: str
    tokens_per_sample: int
    batch_tokens: int
    updates: int
    warmup_updates: int
    learning_rate: float
    adam_betas: tuple[float, float] = (0.9, 0.98)
    adam_eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 0.0
    dropout: float = 0.1
    source: str = ""


# Devlin et al. 2019, arXiv 1810.04805, appendix A.2: 256 sequences of 512 tokens, 1,000,000 steps. (BERT takes the
# first 90 % of the steps at 128 tokens; here all have 512.)
_BERT = {
    "tokens_per_sample": 512,
    "batch_tokens": 256 * 512,
    "updates": 1_000_000,
    "warmup_updates": 10_000,
    "learning_rate": 1e-4,
    "adam_betas": (0.9, 0.999),
    "source": "BERT, arXiv 1810.04805, appendix A.2",
}
# Liu et al. 2019, arXiv 1907.11692, table 9: 8,192 sequences of 512 tokens, 500,000 steps
_ROBERTA = {
    "tokens_per_sample": 512,
    "batch_tokens": 8192 * 512,
    "updates": 500_000,
    "source": "RoBERTa, arXiv 1907.11692, table 9",
}
# Ours, for corpora of some hundred MB and machines without many GPUs. tiny and mini are run (docs/pretraining.md has
# mini), at a learning rate that both the recurrent model and the Transformer train at; small and medium are guesses.
_SMALL = {"clip_norm": 1.0, "source": "this project's, for small corpora"}

RECIPES = {
    "tiny": Recipe("tiny", 128, 4_096, 5_000, 500, 1.5e-3, dropout=0.0, **_SMALL),
    "mini": Recipe("mini", 128, 4_096, 5_000, 500, 1.5e-3, dropout=0.0, **_SMALL),
    "small": Recipe("small", 256, 32_768, 20_000, 2_000, 1e-3, **_SMALL),
    "medium": Recipe("medium", 256, 65_536, 50_000, 5_000, 7e-4, **_SMALL),
    "base": Recipe("base", warmup_updates=24_000, learning_rate=6e-4, **_ROBERTA),
    "large": Recipe("large", warmup_updates=30_000, learning_rate=4e-4, **_ROBERTA),
    "bert-base": Recipe("base", **_BERT),
    "bert-large": Recipe("large", **_BERT),
}
