"""What a checkpoint may say about itself: its configuration, rebuilt from the options that are known, with their types.

fairseq builds whatever a configuration names, and many of its classes evaluate their options as Python. So nothing of a
checkpoint's configuration is taken over because it is there: names must be those of architectures, tasks and
criterions that are known to evaluate nothing, and values must have the type of a known option. Text is kept where an
option has choices, or is a name; paths, addresses and the modules to import never are.
"""

import argparse
import ast
import dataclasses
import enum
import functools
import os
import re
import types
import typing
from collections.abc import Callable

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

from rt_plugin import trust
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import TOKENIZER_FILE

# Architectures are let in by the class that they build: exactly these. What a subclass does with its options is not
# known here, so that it is let in by name only.
_MODELS = ("recurrent_roberta", "roberta")
_TASKS = ("rt_masked_lm", "rt_glue", "masked_lm", "sentence_prediction")
_CRITERIONS = (*_TASKS, "cross_entropy")
# Options whose text is a name; all other text is kept only where it is one of an option's choices.
_NAMES = (
    *("best_checkpoint_metric", "train_subset", "valid_subset", "glue_task", "classification_head_name"),
    "shorten_data_split_list",
)
_NAME = re.compile(r"[\w.,@+-]{0,200}")
_LAYERS = re.compile(r"\d{1,4}(,\d{1,4}){0,999}")
# Where the weights do not tell: more than anybody has, and small enough to fail at once.
_MOST = {"layers": 1000, "width": 2**17, "positions": 2**20}


def rebuilt(checkpoint: dict, path: str | os.PathLike) -> dict | None:
    """The configuration of a checkpoint, in plain types; None where it has none.

    Groups of fairseq's options are complete: what is not kept has its default. The model stays what it was, a Namespace
    or a dict. Of bpe, only sentencepiece with the file beside the checkpoint is kept, and no tokenizer.

    Args:
        checkpoint: what was read, with "cfg", or "args" of an old fairseq, which goes before.
        path: of the checkpoint.

    Raises:
        UserError: an architecture, a task or a criterion is not let in, or an option of the model is none.
    """
    stored = checkpoint.get("cfg") if checkpoint.get("args") is None else _of_arguments(checkpoint["args"], path)
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: its configuration is a {type(stored).__name__}, expected groups of options")
    new = {"_name": None}
    for group, field in FairseqConfig.__dataclass_fields__.items():
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            new[group] = _group(field.type, _items(stored.get(group), group, path))
    if stored.get("model") is not None:
        options = _model(_items(stored["model"], "model", path), checkpoint.get("model") or {}, path)
        new["model"] = argparse.Namespace(**options) if isinstance(stored["model"], argparse.Namespace) else options
    for kind, known, registry, dataclass_registry in (
        ("task", _TASKS, TASK_REGISTRY, TASK_DATACLASS_REGISTRY),
        ("criterion", _CRITERIONS, CRITERION_REGISTRY, CRITERION_DATACLASS_REGISTRY),
    ):
        if stored.get(kind) is not None:
            values = _items(stored[kind], kind, path)
            _check_name(
                values.get("_name"), kind, lambda name, known=known, there=registry: name in {*known} & {*there}, path
            )
            new[kind] = values if values["_name"] not in known else _named(values, dataclass_registry, literals=False)
    for kind in ("optimizer", "lr_scheduler"):
        values = _items(stored.get(kind), kind, path)
        registry = REGISTRIES[kind]["dataclass_registry"]
        new[kind] = _named(values, registry, literals=True) if values.get("_name") in registry else None
    bpe = _items(stored.get("bpe"), "bpe", path)
    beside = os.path.join(os.path.dirname(os.path.abspath(path)), TOKENIZER_FILE)
    kept = bpe.get("_name") == "sentencepiece" and os.path.isfile(beside)
    new["bpe"] = {"_name": "sentencepiece", "sentencepiece_model": beside} if kept else None
    return {**new, "scoring": None, "tokenizer": None}


def _items(values, group: str, path) -> dict:
    """A group of options as a dict, whatever it was stored as."""
    if isinstance(values, argparse.Namespace):
        return dict(vars(values))
    if values is None:
        return {}
    if isinstance(values, str):  # of an argparse group without options
        return {"_name": values}
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: the group {group} of its configuration is a {type(values).__name__}, expected options"
        )
    return dict(values)


def _of_arguments(args, path) -> dict:
    """Groups, of the arguments that an old fairseq stored, all on one level."""
    values = _items(args, "args", path)
    groups = dict.fromkeys(FairseqConfig.__dataclass_fields__, values)
    groups["model"] = argparse.Namespace(**values)
    for kind in ("task", "criterion", "optimizer", "lr_scheduler", "bpe"):
        name = values.get(kind)
        groups[kind] = None if name is None else {**values, "_name": name}
    return groups


def _check_name(name, kind: str, is_known: Callable[[str], bool], path) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"{path}: its configuration names no {kind}; expected a checkpoint saved by fairseq")
    if not is_known(name) and not trust.is_allowed(name):
        raise UserError(
            f"{path}: its configuration names the {kind} {name!r}, which is not let in: what fairseq builds from a "
            f"file can run the code in it; {trust.how_to_allow(name)}"
        )


def _group(options: type, values: dict) -> dict:
    """All options of a dataclass: the values given where they fit, else the defaults; without what has none."""
    kinds = _hints(options)
    group = {}
    for name, field in options.__dataclass_fields__.items():
        if name == "_name":
            continue
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        default = default.value if isinstance(default, enum.Enum) else default
        value = values.get(name)
        given = name in values and (value == default or _fits(value, kinds[name], name))
        if given or (isinstance(default, float) and type(value) is int):
            group[name] = value
        elif not (isinstance(default, str) and (default == "???" or "${" in default)):
            group[name] = default
        if isinstance(group.get(name), str) and "${" in group[name]:
            del group[name]
    return group


def _named(values: dict, registry: dict[str, type], literals: bool) -> dict:
    """The options of a registered class.

    Args:
        literals: keep text that is a number, or several, which optimizers evaluate.
    """
    options = registry.get(values["_name"])
    if options is None:
        return {"_name": values["_name"]}
    kept = {name: value for name, value in values.items() if literals and _is_literal(value)}
    group = _group(options, values)
    group |= {name: value for name, value in kept.items() if name in options.__dataclass_fields__}
    return {"_name": values["_name"], **group}


def _is_literal(value) -> bool:
    """Whether text is a number, or a tuple or list of numbers."""
    if not isinstance(value, str) or len(value) > 200:
        return False
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return all(type(item) in (int, float) for item in (found if isinstance(found, (tuple, list)) else (found,)))


@functools.cache
def _hints(options: type) -> dict:
    return typing.get_type_hints(options)


def _fits(value, kind, name: str) -> bool:
    """Whether a value may stand for an option of this type."""
    if kind is typing.Any:
        return value is None or type(value) in (bool, int, float) or _fits(value, str, name)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, one, name) for one in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        return isinstance(value, (list, tuple)) and len(value) < 10_000 and all(_fits(one, item, name) for one in value)
    if kind is float:
        return type(value) in (int, float)
    if kind is str:
        return isinstance(value, str) and name in _NAMES and _NAME.fullmatch(value) is not None
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return isinstance(value, str) and value in [one.value for one in kind]
    return isinstance(kind, type) and type(value) is kind and kind in (int, bool, type(None))


def _model(values: dict, weights: dict, path) -> dict:
    """The model's options."""
    names = [values[key] for key in ("_name", "arch") if values.get(key) is not None] or [None]
    for name in names:
        _check_name(name, "architecture", _is_own_architecture, path)
    if len({_model_class(name) for name in names}) != 1:
        raise UserError(f"{path}: its configuration names two architectures, {' and '.join(map(repr, names))}")
    if not _is_own_architecture(names[0]):
        return values  # let in by the user, with whatever it says
    kinds = _model_options(names[0])
    unknown = [key for key in values if str(key).startswith("recurrence_") and key not in kinds]
    if unknown:
        raise UserError(
            f"{path}: there is no option {unknown[0]} (it is {values[unknown[0]]!r} there); is the checkpoint of a "
            "later version of rt_plugin?"
        )
    kept = {key: values[key] for key in ("arch", "_name") if values.get(key) is not None}
    for key in values.keys() & kinds.keys():
        if values[key] is not None and not kinds[key](values[key]):
            raise UserError(f"{path}: its model's option {key} is {str(values[key])[:100]!r}, which it cannot be")
        kept[key] = values[key]
    _check_sizes(kept, weights, path)
    return {key: kept[key] for key in values if key in kept}


def _model_class(name: str) -> type | None:
    return ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)


def _is_own_architecture(name: str) -> bool:
    return name in ARCH_CONFIG_REGISTRY and _model_class(name) in [MODEL_REGISTRY.get(model) for model in _MODELS]


@functools.cache
def _model_options(architecture: str) -> dict[str, Callable[[object], bool]]:
    """The options of an architecture -> whether a value is one of theirs."""
    defaults = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[architecture](defaults)
    kinds = {key: _like(value) for key, value in vars(defaults).items() if type(value) in (bool, int, float)}
    parser = argparse.ArgumentParser(add_help=False)
    _model_class(architecture).add_args(parser)
    for action in parser._actions:
        if action.choices:
            kinds[action.dest] = (
                _is_name if action.dest.startswith("recurrence_") else functools.partial(_among, action.choices)
            )
        elif action.type is int:
            kinds[action.dest] = _is_whole
        elif action.type is float:
            kinds[action.dest] = _like(0.0)
        elif action.nargs == 0:
            kinds[action.dest] = _like(False)
    return kinds | {"encoder_layers_to_keep": _is_layers, "tokens_per_sample": _is_whole, "max_positions": _is_whole}


def _is_whole(value) -> bool:
    return type(value) is int


def _like(example) -> Callable[[object], bool]:
    accepted = (bool,) if isinstance(example, bool) else (int, float)
    return lambda value: type(value) in accepted


def _among(choices, value) -> bool:
    return isinstance(value, str) and value in choices


def _is_name(value) -> bool:  # the model itself names the choices of the recurrence
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_layers(value) -> bool:
    return isinstance(value, str) and _LAYERS.fullmatch(value) is not None


def _check_sizes(options: dict, weights: dict, path) -> None:
    """Refuse sizes that are not those of the weights, before anything of that size is built.

    Raises:
        UserError: one is larger; the line has both numbers.
    """
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}
    layers = {int(found[1]) for name in shapes if (found := re.search(r"\blayers\.(\d+)\.", name))}
    width = _largest(shapes, "embed_tokens.weight", 1, _MOST["width"])
    limits = {
        "encoder_layers": max(layers) + 1 if layers and not options.get("encoder_layers_to_keep") else _MOST["layers"],
        "encoder_embed_dim": width,
        "encoder_attention_heads": width,
        "encoder_ffn_embed_dim": _largest(shapes, "fc1.weight", 0, _MOST["width"]),
        "recurrence_dim": _largest(shapes, "recurrence.out_proj.weight", 1, _MOST["width"]),
        "max_positions": _largest(shapes, "embed_positions.weight", 0, _MOST["positions"]),
        "tokens_per_sample": _MOST["positions"],
        "quant_noise_pq_block_size": _MOST["width"],
    }
    for name, limit in limits.items():
        value = options.get(name)
        if value is not None and not 0 <= value <= limit:
            raise UserError(f"{path}: its configuration says {name} {value}, but its weights have at most {limit}")


def _largest(shapes: dict, ending: str, dimension: int, otherwise: int) -> int:
    found = [shape[dimension] for name, shape in shapes.items() if name.endswith(ending) and len(shape) > dimension]
    return max(found, default=otherwise)
