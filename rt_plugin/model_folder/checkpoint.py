"""The architecture of a checkpoint as options of fairseq-train, which reads none of it from the checkpoint itself."""

import argparse
from pathlib import Path

import torch
from fairseq.models import ARCH_CONFIG_REGISTRY

from rt_plugin.errors import UserError

# What decides which function the weights compute. Not here: regularisation, which a fine-tuning chooses for itself, and
# the number of positions, which the task `rt_glue` takes from the checkpoint.
_STRUCTURE = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("activation_fn", "pooler_activation_fn", "encoder_normalize_before", "untie_weights_roberta"),
    *("recurrence_dim", "recurrence_step_size", "recurrence_gate", "recurrence_direction", "recurrence_type"),
)


def stored_options(checkpoint: Path) -> dict:
    """The model's options as the checkpoint stores them; the weights are not read.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint; give the model folder, or another file with --checkpoint")
    try:
        stored = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["cfg"]["model"]
    except Exception as error:  # whatever a file that is no checkpoint makes of torch.load
        raise UserError(f"{checkpoint}: not a fairseq checkpoint ({type(error).__name__})") from None
    return vars(stored) if isinstance(stored, argparse.Namespace) else dict(stored)


def model_options(checkpoint: Path) -> list[str]:
    """`--arch NAME` and the options in which the checkpoint's model differs from that architecture.

    Without them a model pretrained with, say, `--recurrence-direction alternate` would be fine-tuned as a forward one,
    with no error, because its weights fit.

    Raises:
        UserError: the file is missing or cannot be read, or its architecture is unknown.
    """
    values = stored_options(checkpoint)
    architecture = values.get("arch") or values.get("_name")
    if architecture not in ARCH_CONFIG_REGISTRY:
        raise UserError(
            f"{checkpoint}: its architecture {architecture!r} is unknown; expected one registered in fairseq"
        )
    defaults = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[architecture](defaults)
    options = ["--arch", architecture]
    for name in _STRUCTURE:
        value = values.get(name)
        if value is None or value is False or value == getattr(defaults, name, None):
            continue
        option = "--" + name.replace("_", "-")
        options += [option] if value is True else [option, str(value)]
    return options
