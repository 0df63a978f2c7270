"""Which vector of an encoded text a checkpoint's classification head reads: `--pooling` of the task that trained it.

What the names mean is told, and done, in `rt_plugin.glue.pooling`.
"""

from collections.abc import Mapping

FIRST, PAIR, APART, ALIGNED = "first", "pair", "apart", "aligned"
OF_TWO = {PAIR: 4, APART: 4, ALIGNED: 6}  # for two texts -> how many vectors of the encoder's size a head reads
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
