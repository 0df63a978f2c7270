"""The checkpoints of a model folder: reading one, finding one, and what one says of its model.

Every checkpoint that this package reads by itself comes through `read_checkpoint`.
"""

import argparse
import itertools
import os
from pathlib import Path

from fairseq.data import Dictionary
from fairseq.file_io import PathManager
from fairseq.models import ARCH_CONFIG_REGISTRY

from rt_plugin.console.checksums import check_listed
from rt_plugin.console.processes import is_first_of_machine
from rt_plugin.errors import UserError
from rt_plugin.model_folder import companions, configuration, container
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import (
    BEST_CHECKPOINT,
    CONFIGURATION_FILE,
    DICTIONARY_FILE,
    LAST_CHECKPOINT,
    SAFETENSORS_FILE,
)
from rt_plugin.model_folder.safetensors import is_safetensors

# What decides which function the weights compute. Not here: regularisation, which a fine-tuning chooses for itself, and
# the number of positions, which the task `rt_glue` takes from the checkpoint.
_STRUCTURE = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("activation_fn", "pooler_activation_fn", "encoder_normalize_before", "untie_weights_roberta"),
    *("recurrence_dim", "recurrence_step_size", "recurrence_gate", "recurrence_direction", "recurrence_type"),
)
# What weights of the same sizes compute something else with; the last one where there is a head of a fine-tuning.
_SIZES = ("encoder_layers", "encoder_embed_dim")
_FUNCTION = (
    *("encoder_attention_heads", "activation_fn", "encoder_normalize_before", "layernorm_embedding"),
    *("no_scale_embedding", "encoder_learned_pos", "no_token_positional_embeddings", "untie_weights_roberta"),
)
_POOLER = "pooler_activation_fn"
_CRASH_FILE = "crash.pt"  # what fairseq leaves of a training that diverged: nothing to go on from


def read_checkpoint(path: str | os.PathLike, mapped: bool = True) -> dict:
    """A fairseq checkpoint: "model" (name -> weight, on the CPU), "cfg", "extra_state" and what else was saved.

    Only plain data are unpickled (`weights_only`), and the configuration is rebuilt from options that are known
    (`configuration.rebuilt`), so a checkpoint of somebody else's cannot run code. The files beside it must be those
    that it was trained with.

    Args:
        mapped: map the file, so that weights that nobody looks at are not kept in memory; else all are read, and
            must be finite.

    Raises:
        UserError: the file is missing, damaged, or is no checkpoint of fairseq; its configuration names what is not
            let in; or dictionary, tokenizer or normalisation in its folder are others.
    """
    checkpoint = _read(Path(path), mapped)
    companions.check_beside(checkpoint, Path(path))
    return checkpoint


def _read(path: Path, mapped: bool) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give the model folder, or another file with --checkpoint")
    if is_first_of_machine():
        check_listed(path.parent, [path.name, *([CONFIGURATION_FILE] if is_safetensors(path) else [])])
    checkpoint = container.load(path, mapped)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise UserError(f'{path}: not a fairseq checkpoint (it holds no weights named "model")')
    container.check_weights(checkpoint["model"], path, finite=not mapped)
    return {**checkpoint, "args": None, "cfg": configuration.rebuilt(checkpoint, path)}


def check_history(checkpoint: dict, path: str | os.PathLike) -> None:
    """Refuse a checkpoint that has weights, but not what else fairseq asks for when it loads one.

    Raises:
        UserError: the history of its updates or its state is not there, or of another kind.
    """
    history = checkpoint.get("optimizer_history", [checkpoint])  # the oldest have all of it on one level
    if not isinstance(history, list) or not history or not all(isinstance(one, dict) for one in history):
        raise UserError(f'{path}: not a fairseq checkpoint (its "optimizer_history" is no list of updates)')
    if not {"lr_scheduler_state", "best_loss"} & history[-1].keys():
        raise UserError(f'{path}: not a fairseq checkpoint (its "optimizer_history" has no state of a schedule)')
    if not isinstance(checkpoint.get("extra_state", checkpoint if "epoch" in checkpoint else None), dict):
        raise UserError(f'{path}: not a fairseq checkpoint (its "extra_state" is missing, or no table)')


def companion_digests(path: str | os.PathLike) -> companions.Digests | None:
    """The SHA-256 of the files that a checkpoint was trained with, as it says, or the list of its folder; else None.

    Raises:
        UserError: as for `read_checkpoint`, but for the files beside it.
    """
    stored = companions.stored_digests(_read(Path(path), mapped=True), path)
    return stored or companions.listed_digests(Path(path).parent)


def checkpoint_names(folder: str | os.PathLike) -> list[str]:
    """The names of the checkpoints in a folder, sorted."""
    found = itertools.chain(Path(folder).glob("*.pt"), Path(folder).glob("*.safetensors"))
    return sorted(path.name for path in found if path.name != _CRASH_FILE)


def checkpoint_path(folder: str | os.PathLike, name: str) -> Path:
    """Where the checkpoint `name` of a folder is: model.safetensors where that is the usual one and is missing.

    Raises:
        UserError: the name is a path; dictionary, tokenizer and what else is read would be those of this folder.
    """
    folder = Path(folder)
    if Path(name).name != name:
        raise UserError(
            f"checkpoint {name}: found a path, expected the name of a file in {folder}; give the folder that holds it "
            "as the model"
        )
    other = folder / SAFETENSORS_FILE
    return other if name == BEST_CHECKPOINT and not (folder / name).exists() and other.is_file() else folder / name


def find_checkpoint(folder: str | os.PathLike, name: str) -> Path:
    """The checkpoint `name` of a folder, see `checkpoint_path`.

    Raises:
        UserError: there is none, the line names those that are there; or the name is a path.
    """
    path = checkpoint_path(folder, name)
    if not path.is_file():
        found = ", ".join(checkpoint_names(folder)) or "none"
        raise UserError(f"{folder}: no {name} there; checkpoints in this folder: {found}")
    return path


def starting_checkpoint(
    save_dir: str,
    restore_file: str = LAST_CHECKPOINT,
    finetune_from_model: str | None = None,
    continue_once: str | None = None,
) -> str | None:
    """The checkpoint that a training starts from, in the order of fairseq's load_checkpoint; None: from scratch.

    Args:
        save_dir, restore_file, finetune_from_model, continue_once: the options of these names.

    Raises:
        UserError: an option names a file that is not there (fairseq would train from scratch).
    """
    last = os.path.join(save_dir, LAST_CHECKPOINT)
    if restore_file != LAST_CHECKPOINT:
        option, wanted = "--restore-file", restore_file
    elif PathManager.exists(last):
        return last
    elif continue_once is not None:
        option, wanted = "--continue-once", continue_once
    elif finetune_from_model is not None:
        option, wanted = "--finetune-from-model", finetune_from_model
    else:
        return None
    if not PathManager.isfile(wanted):
        raise UserError(f"{option} {wanted}: no such file; give the path of a checkpoint, or leave the option out")
    return wanted


def stored_options(checkpoint: Path) -> dict:
    """The model's options as the checkpoint stores them.

    Raises:
        UserError: the file is missing, cannot be read, or stores none.
    """
    return _options_of(read_checkpoint(checkpoint), checkpoint)


def _options_of(checkpoint: dict, path: Path) -> dict:
    groups = checkpoint["cfg"] or {}
    if "model" not in groups:
        raise UserError(f"{path}: holds no options of its model; expected a checkpoint saved by fairseq 0.12")
    stored = groups["model"]
    return vars(stored) if isinstance(stored, argparse.Namespace) else dict(stored)


def model_options(checkpoint: Path) -> list[str]:
    """`--arch NAME` and the options in which the checkpoint's model differs from that architecture.

    fairseq-train reads none of it from the checkpoint: without them a model pretrained with, say,
    `--recurrence-direction alternate` would be fine-tuned as a forward one, with no error, because its weights fit.

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


def refuse_another_function(path: str | os.PathLike, options: argparse.Namespace) -> None:
    """Refuse to go on from a checkpoint whose weights fit a model, but compute something else in it.

    Weights of other sizes do not fit: loading them says so.

    Args:
        options: of the model that is to be trained.

    Raises:
        UserError: an option that decides what the weights compute differs; the line names it.
    """
    try:
        checkpoint = read_checkpoint(path)
        there = argparse.Namespace(**_options_of(checkpoint, Path(path)))
    except UserError:
        return  # loading it will say more
    architecture = getattr(there, "arch", None) or getattr(there, "_name", None)
    if architecture in ARCH_CONFIG_REGISTRY:
        ARCH_CONFIG_REGISTRY[architecture](there)
    if any(getattr(there, name, None) != getattr(options, name, None) for name in _SIZES):
        return
    has_head = any("classification_heads." in name for name in checkpoint["model"])
    differing = [
        name
        for name in (*_FUNCTION, *([_POOLER] if has_head else []))
        if hasattr(there, name) and hasattr(options, name) and getattr(there, name) != getattr(options, name)
    ]
    if differing:
        then = " ".join(_as_option(name, getattr(there, name)) for name in differing)
        now = " ".join(_as_option(name, getattr(options, name)) for name in differing)
        raise UserError(f"{path} was trained with {then}, this run has {now}; give {then}")


def _as_option(name: str, value) -> str:
    option = "--" + name.replace("_", "-")
    return {True: option, False: f"no {option}"}[value] if isinstance(value, bool) else f"{option} {value}"


def checkpoint_positions(path: str | os.PathLike, pad: int) -> int | None:
    """How many positions a checkpoint's model has, or None where that cannot be told.

    Args:
        pad: the dictionary's index of padding, which fairseq's position embeddings leave out.
    """
    try:
        weights = read_checkpoint(path)["model"]
    except UserError:
        return None  # fairseq's own loading, which follows, says more
    for name, weight in weights.items():
        if name.endswith("embed_positions.weight"):
            return weight.shape[0] - pad - 1
    return None


def check_token_ids(
    dictionary: Dictionary, data: Path, checkpoint: str | os.PathLike, advice: str | None = None
) -> None:
    """Compare the data's dictionary, with <mask>, with the one beside the checkpoint, if there is one.

    Args:
        advice: what to do where they differ; default: prepare GLUE data with the checkpoint's tokenizer.

    Raises:
        UserError: the data were prepared with another tokenizer; its ids mean other pieces to the checkpoint.
    """
    path = Path(checkpoint).with_name(DICTIONARY_FILE)
    if not path.is_file():
        return
    other = load_dictionary(path)
    other.add_symbol("<mask>")
    pairs = itertools.zip_longest(dictionary.symbols, other.symbols)
    different = next((i for i, (here, there) in enumerate(pairs) if here != there), None)
    if different is not None:
        raise UserError(
            f"data folder {data}: token {different} is {dictionary[different]!r}, but {other[different]!r} in {path} "
            f"beside the checkpoint; {advice or f'prepare the data with rt-plugin prepare-glue --model {path.parent}'}"
        )
