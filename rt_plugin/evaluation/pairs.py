"""Minimal pairs as JSON lines: reading them by paradigm, and the statistics of getting them right.

The layout is BLiMP's (Warstadt et al. 2020, arXiv 1912.00582) and that of the BabyLM evaluation: `sentence_good` and
`sentence_bad`. `UID` names the paradigm, else the file does; `linguistics_term`, else `field`, names the phenomenon.
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

from rt_plugin.errors import UserError
from rt_plugin.text.raw import read_lines

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_NAME = "a name of letters, digits, '-', '_' and '.'"  # it becomes that of a file
_SAMPLE_SEED = 20191202  # any: a sample of a paradigm is the same in every run


@dataclass(frozen=True)
class Pair:
    """An acceptable sentence, one that is not, and the file and line that they come from."""

    good: str
    bad: str
    path: Path
    line: int


@dataclass(frozen=True)
class Paradigm:
    """The pairs of one kind; `phenomenon` is what it is a case of, or empty."""

    name: str
    phenomenon: str
    pairs: tuple[Pair, ...]

    def sample(self, limit: int | None) -> "Paradigm":
        """At most `limit` of the pairs: always the same ones, in their order."""
        if limit is None or limit >= len(self.pairs):
            return self
        chosen = sorted(random.Random(_SAMPLE_SEED).sample(range(len(self.pairs)), limit))
        return replace(self, pairs=tuple(self.pairs[i] for i in chosen))


def read_paradigms(path: Path) -> list[Paradigm]:
    """The paradigms of a file, or of all files *.jsonl of a folder, by name.

    Raises:
        UserError: there is no such file, or none in the folder, or a line is broken (file, line, found, expected).
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no files *.jsonl there; expected JSON lines with sentence_good and sentence_bad")
    pairs: dict[str, list[Pair]] = {}
    phenomena: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(read_lines(file), start=1):
            if not line.strip():
                continue
            values = _values(file, number, line)
            name = values.get("UID") or _name_of(file)
            phenomenon = values.get("linguistics_term") or values.get("field") or ""
            if not _is_name(name):
                raise UserError(f"{file}, line {number}: found UID {name!r}, expected {_NAME}")
            if phenomena.setdefault(name, phenomenon) != phenomenon:
                raise UserError(
                    f"{file}, line {number}: found phenomenon {phenomenon!r}, expected {phenomena[name]!r} as in the "
                    f"paradigm's lines before; give the paradigms different names (UID)"
                )
            pairs.setdefault(name, []).append(Pair(values["sentence_good"], values["sentence_bad"], file, number))
    return [Paradigm(name, phenomena[name], tuple(pairs[name])) for name in sorted(pairs)]


def _values(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}, line {number}: found {line[:60]!r}, expected a JSON object")
    for key in ("sentence_good", "sentence_bad"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise UserError(f"{path}, line {number}: found {key} {values.get(key)!r}, expected a sentence")
    return values


def _is_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name) is not None


def _name_of(path: Path) -> str:
    """The paradigm of lines without UID."""
    name = path.name.split(".")[0]
    if not _is_name(name):
        raise UserError(
            f"{path}: the file's name is the paradigm's where lines have no UID: found {name!r}, expected {_NAME}; "
            "rename the file"
        )
    return name


def digest(paradigms: Iterable[Paradigm]) -> str:
    """The first digits of a SHA-256 over all sentences: whether two runs had the same data."""
    sha = hashlib.sha256()
    for paradigm in paradigms:
        for pair in paradigm.pairs:
            sha.update(json.dumps([paradigm.name, pair.good, pair.bad]).encode())
    return sha.hexdigest()[:16]


@dataclass(frozen=True)
class Accuracy:
    """A share of pairs, or a mean of such shares, with its 95 % interval.

    Attributes:
        pairs, correct, ties: counts; a tie is not correct.
        accuracy, low, high: from 0 to 1.
    """

    pairs: int
    correct: int
    ties: int
    accuracy: float
    low: float
    high: float


def accuracy_of(scores: Iterable[tuple[float, float]]) -> Accuracy:
    """How often the good sentence scores higher than the bad one, with Wilson's interval (1927).

    Args:
        scores: (of the good sentence, of the bad one), at least one.
    """
    differences = [good - bad for good, bad in scores]
    n, correct = len(differences), sum(d > 0 for d in differences)
    share = correct / n
    center = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # where all are right or all wrong, one end is the share itself, but for rounding
    low, high = min(share, max(0.0, center - half)), max(share, min(1.0, center + half))
    return Accuracy(n, correct, sum(d == 0 for d in differences), share, low, high)


def mean_of(parts: Sequence[Accuracy]) -> Accuracy:
    """The unweighted mean; its interval is put together from the parts' (MOVER; Zou and Donner 2008, Stat. Med. 27).

    It tells of the choice of pairs within the paradigms, not of the choice of paradigms, nor of the training's luck.
    """
    mean = sum(part.accuracy for part in parts) / len(parts)
    below = math.sqrt(sum((part.accuracy - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.accuracy) ** 2 for part in parts)) / len(parts)
    counts = (sum(getattr(part, name) for part in parts) for name in ("pairs", "correct", "ties"))
    return Accuracy(*counts, mean, mean - below, mean + above)


def paired_difference(
    scores: Iterable[Sequence[tuple[float, float]]], others: Iterable[Sequence[tuple[float, float]]]
) -> tuple[float, float, float]:
    """Mean accuracy over paradigms of one model minus another's on the same pairs, and its 95 % interval.

    Args:
        scores, others: for each paradigm, the (good, bad) scores of the same pairs in the same order.
    """
    means, variance = [], 0.0
    for own, other in zip(scores, others, strict=True):
        steps = [(a > b) - (c > d) for (a, b), (c, d) in zip(own, other, strict=True)]
        mean = sum(steps) / len(steps)
        means.append(mean)
        variance += sum((step - mean) ** 2 for step in steps) / max(1, len(steps) - 1) / len(steps)
    mean, half = sum(means) / len(means), _Z * math.sqrt(variance) / len(means)
    return mean, mean - half, mean + half
