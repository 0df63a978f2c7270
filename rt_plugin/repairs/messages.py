"""Parts of error messages that several repairs share."""

import os

from rt_plugin.model_folder.checkpoint import checkpoint_names


def first_line(error: BaseException | None) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else type(error).__name__


def after_divergence(folder: str | os.PathLike) -> str:
    """What can be done about a training into `folder` whose loss, gradients or weights are not finite."""
    names = checkpoint_names(folder)
    saved = f"resume from the checkpoints of before ({', '.join(names)} in {folder})" if names else "start again"
    return f"{saved} with a lower --lr, a longer --warmup-updates, --clip-norm 1, or --bf16 instead of --fp16"
