"""Which values the options of a training may have: one table, for fairseq's commands and for the verbs that start them.

Imports the standard library and the error type only.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rt_plugin.errors import UserError


class Allowed(NamedTuple):
    """What values an option takes; `holds` is False for nan, since it compares so that no comparison is true."""

    holds: Callable[[float], bool]
    expected: str


def most_workers() -> int:
    """Processes that a machine bears that do nothing but read data: generous, so that a slip of the hand is told."""
    return max(64, 8 * (os.cpu_count() or 1))


_POSITIVE = Allowed(lambda x: 0 < x < math.inf, "a number above 0")
_NOT_NEGATIVE = Allowed(lambda x: 0 <= x < math.inf, "a number, 0 or above")
_COUNT = Allowed(lambda x: x >= 1, "a whole number, 1 or above")
_LENGTH = Allowed(lambda x: x >= 4, "a whole number, 4 or above")  # <s>, and 3 tokens that a long sentence is cut into
_SHARE = Allowed(lambda x: 0 <= x < 1, "a share from 0 to below 1")
_WORKERS = Allowed(lambda x: 0 <= x <= most_workers(), f"a number from 0 to {most_workers()} on this machine")
_SEED = Allowed(lambda x: 0 <= x < 2**32, "a whole number from 0 to 4294967295")

# name as fairseq has it, with underscores -> its values; a name stands for the same thing in every group of options
ALLOWED: dict[str, Allowed] = {
    **dict.fromkeys(("lr", "learning_rate"), _POSITIVE),
    **dict.fromkeys(("clip_norm", "weight_decay", "warmup_updates", "max_update", "max_epoch"), _NOT_NEGATIVE),
    **dict.fromkeys(("batch_size", "max_tokens", "batch_size_valid", "max_tokens_valid", "update_freq"), _COUNT),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "pooler_dropout"), _SHARE),
    **dict.fromkeys(("encoder_layerdrop", "quant_noise_pq"), _SHARE),
    **dict.fromkeys(("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim"), _COUNT),
    **dict.fromkeys(("encoder_attention_heads", "max_positions"), _COUNT),
    "tokens_per_sample": _LENGTH,
    **dict.fromkeys(("num_workers", "workers"), _WORKERS),
    **dict.fromkeys(("seed", "seeds"), _SEED),
}


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse what an option cannot mean.

    Args:
        values: name of an option, with underscores -> value, or several of them; None where it is not given. Names that
            `ALLOWED` lacks, and values that are no numbers, are passed over.

    Raises:
        UserError: a value is out of its range, or nan.
    """
    for name, value in values.items():
        allowed = ALLOWED.get(name)
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if allowed and isinstance(one, (int, float)) and not allowed.holds(one):
                raise UserError(f"--{name.replace('_', '-')} {one:g}: expected {allowed.expected}")


def check_folder(option: str, path: Path) -> None:
    """Refuse a folder that cannot be made, because it or one above it is a file.

    Raises:
        UserError: it is so.
    """
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                what = "is a file" if place == path else f"{place} is a file"
                raise UserError(f"{option} {path}: {what}; give a folder")
            return
