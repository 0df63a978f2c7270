"""What the user lets in by name although it is refused otherwise, in Python or through RT_PLUGIN_ALLOW."""

import contextlib
import os

VARIABLE = "RT_PLUGIN_ALLOW"
_allowed: list[str] = []


def allow(*names: str) -> contextlib.AbstractContextManager:
    """Let checkpoints name these architectures, tasks or criterions, too; `"download"` lets fairseq download.

    What is let in runs as its code and the checkpoint's options want: name only what you would run from the author of
    the checkpoint. For fairseq's commands, set the environment variable RT_PLUGIN_ALLOW to names joined by commas.

    Args:
        names: as fairseq's registries have them, such as "transformer_lm".

    Returns:
        A context; used with `with`, the names are let in until the block ends, else until the process does.
    """
    _allowed.extend(names)
    taken_back = contextlib.ExitStack()
    for name in names:
        taken_back.callback(_allowed.remove, name)
    return taken_back


def is_allowed(name: str) -> bool:
    """Whether the user lets in `name`."""
    return name in _allowed or name in os.environ.get(VARIABLE, "").replace(" ", "").split(",")


def how_to_allow(name: str) -> str:
    """What an error says to those who trust what was refused."""
    return f"if you trust it, let it in with rt_plugin.allow({name!r}) or, for commands, {VARIABLE}={name}"
