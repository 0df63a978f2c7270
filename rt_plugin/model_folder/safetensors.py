"""A checkpoint without pickle: weights in safetensors, its configuration and history as JSON beside it.

    model.safetensors   the weights by their names; one that has two names is stored once, under the first
    rt_plugin.json      options of model, task and training in their types, the other names, and what a card says

Read, the two are what fairseq's file is, so that all that reads a checkpoint reads them.
"""

import argparse
import importlib
import json
import math
from pathlib import Path

from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import CONFIGURATION_FILE, SAFETENSORS_FILE

FORMAT, VERSION = "rt_plugin checkpoint", 1
_GROUPS = ("model", "task", "criterion", "optimizer", "lr_scheduler", "optimization", "checkpoint", "common")
_HISTORY = ("task_state", "optimizer_history", "extra_state")
_MOST_BYTES = 1 << 24  # of the configuration; some KB are usual


def is_safetensors(path: Path) -> bool:
    """Whether a file is read as this format: by its name."""
    return path.suffix == ".safetensors"


def write(state: dict, folder: Path) -> None:
    """Write a checkpoint, as fairseq's file would hold it, into a folder.

    Args:
        state: "model", "cfg" in plain types, "task_state", "optimizer_history", "extra_state".

    Raises:
        OSError: it cannot be written.
        UserError: the package safetensors is missing.
    """
    names: dict[tuple, str] = {}  # where a weight lies in memory -> its first name
    weights, tied = {}, {}
    for name, weight in state["model"].items():
        place = (weight.data_ptr(), tuple(weight.shape), weight.dtype) if weight.numel() else (name,)
        if place in names:
            tied[name] = names[place]
        else:
            names[place] = name
            weights[name] = weight.contiguous()
    content = _package(folder, "torch").save(weights, metadata={"format": "pt"})
    configuration = {
        **{"format": FORMAT, "version": VERSION, "weights": SAFETENSORS_FILE, "tied": tied},
        **{group: _plain(state["cfg"].get(group)) for group in _GROUPS},
        **{name: _plain(state.get(name)) for name in _HISTORY},
        "command": str(state.get("command", "")),
    }
    text = json.dumps(configuration, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, data in ((SAFETENSORS_FILE, content), (CONFIGURATION_FILE, text.encode())):
        with replacing(folder / name) as file:
            file.write(data)


def read(path: Path) -> dict:
    """The checkpoint of a safetensors file, with the configuration beside it, as fairseq's file would hold it.

    Raises:
        UserError: one of the two is missing, damaged or something else, or the package safetensors is missing.
    """
    stored = _read_configuration(path.with_name(CONFIGURATION_FILE))
    package = _package(path, "torch")
    try:
        weights = package.load_file(path)
    except Exception as error:  # safetensors has an error of its own, and others
        raise UserError(
            f"{path} cannot be read ({path.stat().st_size:,} bytes; {error}): it is cut off or damaged; get it again"
        ) from None
    for name, other in stored["tied"].items():
        if not isinstance(other, str) or other not in weights or name in weights:
            raise UserError(
                f"{path}: {CONFIGURATION_FILE} says that {name} is {other}, which cannot be; get both again"
            )
        weights[name] = weights[other]
    groups = {group: stored.get(group) for group in _GROUPS}
    if isinstance(groups["model"], dict):
        groups["model"] = argparse.Namespace(**groups["model"])
    history = {name: stored.get(name) or {} for name in _HISTORY}
    command = stored["command"] if isinstance(stored.get("command"), str) else ""
    return {"args": None, "cfg": groups, "model": weights, **history, "command": command}


def _read_configuration(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {SAFETENSORS_FILE} needs it: get the folder again")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many")
        stored = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected the JSON that rt-plugin export writes") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise UserError(f'{path}: not a configuration of rt-plugin export (it has no "format": "{FORMAT}")')
    if stored.get("version") != VERSION:
        raise UserError(
            f"{path}: version {stored.get('version')!r}, expected {VERSION}; use the version of rt-plugin that wrote it"
        )
    if not isinstance(stored.get("tied"), dict):
        raise UserError(f'{path}: "tied" is no table of names; get the file again')
    history = stored.get("optimizer_history")
    if not isinstance(history, list) or not history or not all(isinstance(one, dict) for one in history):
        raise UserError(f'{path}: "optimizer_history" is no list of updates; get the file again')
    for name in ("task_state", "extra_state"):
        if not isinstance(stored.get(name), (dict, type(None))):
            raise UserError(f'{path}: "{name}" is no table; get the file again')
    return stored


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _plain(value):
    """Namespaces as dicts, and None for a number that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, argparse.Namespace):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _package(path: Path, module: str):
    try:
        return importlib.import_module(f"safetensors.{module}")
    except ModuleNotFoundError:
        raise UserError(f"{path}: this format needs the package safetensors: pip install safetensors") from None
