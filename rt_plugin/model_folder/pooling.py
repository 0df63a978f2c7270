"""What a checkpoint's classification head reads: which vector of an encoded text, `--pooling` of the task that trained
it, and whether the encoder marks shared tokens for it, `--mark-shared`.

What the two mean is told, and done, in `rt_plugin.glue.pooling`.
"""

from collections.abc import Mapping

FIRST, PAIR, APART, ALIGNED = "first", "pair", "apart", "aligned"
OF_TWO = {PAIR: 4, APART: 4, ALIGNED: 6}  # for two texts -> how many vectors of the encoder's size a head reads
MARKS = "marks.weight"  # of a head, in a checkpoint
POOLINGS = (FIRST, "mean", "max", *OF_TWO)


def vectors(pooling: str) -> int:
    """How many vectors of the encoder's size a head reads side by side."""
    return OF_TWO.get(pooling, 1)


def pooling_of(task: Mapping) -> str:
    """Which of `POOLINGS` a head was trained with, or whatever else its task's options say.

    Args:
        task: the options of the task in a checkpoint; one older than `--pooling` says nothing, and its head reads the
            first position.
    """
    return str(task.get("pooling") or FIRST)


def has_marks(task: Mapping) -> bool:
    """Whether a head was trained with marks; `task` as of `pooling_of`."""
    return bool(task.get("mark_shared"))
