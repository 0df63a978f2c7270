"""A folder for transformers -> a model folder of fairseq: what `rt-plugin export --format huggingface` wrote, or what
transformers' `save_pretrained` made of it after more training.

OUT gets checkpoint_best.pt, dict.txt, the tokenizer and, for a classifier, label_dict.txt and glue.json. Nothing of the
folder's code is run, and the weights are read from model.safetensors alone. Load OUT with
RecurrentRobertaModel.from_pretrained, or go on training from it with --finetune-from-model.

Example: rt-plugin import-huggingface trained/by-transformers runs/back
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rt_plugin.console import commands
from rt_plugin.console.checksums import forget
from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import (
    BESIDE_CHECKPOINTS,
    BEST_CHECKPOINT,
    DICTIONARY_FILE,
    GLUE_FILE,
    LABEL_DICTIONARY_FILE,
    NORMALIZATION_FILE,
    TOKENIZER_FILE,
    copy_files,
)
from rt_plugin.model_folder.pooling import FIRST, MARKS, POOLINGS

if TYPE_CHECKING:
    from rt_plugin.huggingface.layout import Head

_HEAD = "sentence_classification_head"
_LABELS = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' own, which it leaves out of the file
_CONFIGURATION, _WEIGHTS, _TOKENIZER = "config.json", "model.safetensors", "tokenizer_config.json"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("import-huggingface", __doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="with config.json and model.safetensors")
    parser.add_argument("out", metavar="OUT", type=Path, help="the model folder to write")
    return parser.parse_args(argv)


def import_folder(folder: Path, out: Path) -> None:
    """Write the model folder `out`.

    Raises:
        UserError: a file is missing or damaged, or the model is none that fairseq's RoBERTa or ours computes alike.
    """
    import torch

    from rt_plugin.huggingface import layout
    from rt_plugin.model_folder import configuration
    from rt_plugin.model_folder.dictionary import load_dictionary
    from rt_plugin.text.tokenizer import Tokenizer

    if out.resolve() == folder.resolve() or out.is_file():
        raise UserError(f"{out}: give another folder to write")
    values = _json(folder / _CONFIGURATION)
    for name in (TOKENIZER_FILE, DICTIONARY_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: no {name} there; expected what rt-plugin export wrote, or what transformers saved of it, "
                "tokenizer and model"
            )
    dictionary = load_dictionary(folder / DICTIONARY_FILE)
    Tokenizer.load(folder).check_dictionary(dictionary.symbols, str(folder / DICTIONARY_FILE))
    dictionary.add_symbol("<mask>")
    try:
        options = layout.options_of(values)
        head = _head(values)
        weights = layout.from_folder(_weights(folder / _WEIGHTS), values["model_type"], head)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    except (KeyError, IndexError, ValueError, RuntimeError) as error:  # of weights that are of other shapes
        raise UserError(
            f"{folder}: {_WEIGHTS} is not of the model of {_CONFIGURATION} ({error}); get both again"
        ) from None
    rows = weights["encoder.sentence_encoder.embed_tokens.weight"].shape[0]
    if rows != len(dictionary):
        raise UserError(f"{folder}: the model has {rows} tokens, {DICTIONARY_FILE} with <mask> {len(dictionary)}")
    longest = _longest(folder / _TOKENIZER, options["max_positions"])
    state = {
        "args": None,
        "cfg": _groups(options, head, longest),
        "model": weights,
        "criterion": None,
        "task_state": {},
        "optimizer_history": [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}],
        "extra_state": {},
    }
    configuration.rebuilt(state, folder / _CONFIGURATION)  # what loading would refuse is not written
    if head and head.glue:
        _check_task(head, state["cfg"]["task"], folder)
    if head:
        _check_outputs(head, weights, folder)
    try:
        forget(out, [BEST_CHECKPOINT, *BESIDE_CHECKPOINTS])  # of what was exported to this folder before
        tokenizer_files = (DICTIONARY_FILE, TOKENIZER_FILE, NORMALIZATION_FILE)
        copy_files([(folder / name, name) for name in tokenizer_files], out, remove=True)
        _write_task(head, out)
        with replacing(out / BEST_CHECKPOINT) as file:
            torch.save(state, file)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another folder, or make room") from None
    print(f"{out / BEST_CHECKPOINT}: {(out / BEST_CHECKPOINT).stat().st_size / 1e6:.1f} MB, {options['_name']}")


def _json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of a model for transformers") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected JSON") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is a {type(values).__name__}, expected a JSON object")
    return values


def _weights(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"no {path.name} there; save the model in one file, with safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} cannot be read ({error}); copy it again") from None
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{path.name}: {len(broken)} weights are not finite, {broken[0]} the first; did the training diverge?"
        )
    return weights


def _head(values: dict) -> Head | None:
    """The classifier that config.json tells of; None where it tells of none.

    Raises:
        UserError: a value of it is none that it can have.
    """
    from rt_plugin.huggingface.layout import Head

    architectures, labels = values.get("architectures") or [], values.get("id2label") or _LABELS
    pooling, marks, glue = values.get("pooling", FIRST), values.get("mark_shared", False), values.get("rt_glue")
    expected = (
        ("architectures", architectures, list),
        ("id2label", labels, dict),
        ("pooling", pooling, str),
        ("mark_shared", marks, bool),
        ("rt_glue", glue, dict | None),
    )
    for name, value, kind in expected:
        if not isinstance(value, kind):
            raise UserError(f"{_CONFIGURATION} has no usable {name!r}; export the model again")
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        return None
    if pooling not in POOLINGS:
        raise UserError(f"{_CONFIGURATION}: pooling is {pooling!r}, expected one of {', '.join(POOLINGS)}")
    return Head(_HEAD, pooling, marks, _class_names(labels, values.get("problem_type")), glue)


def _class_names(labels: dict, problem: str | None) -> list[str] | None:
    """The names of the classes in order; None for a regression, for which transformers need not write its problem."""
    if problem not in (None, "regression", "single_label_classification"):
        raise UserError(
            f"{_CONFIGURATION}: problem_type is {problem!r}, expected regression or single_label_classification: a "
            "classifier of fairseq gives a text one label"
        )
    if problem == "regression" and len(labels) > 1:
        raise UserError(f"{_CONFIGURATION}: a regression with {len(labels)} outputs, expected one")
    if len(labels) == 1:
        return None
    names = [labels.get(str(number)) for number in range(len(labels))]
    if not all(isinstance(name, str) and name.strip() and name.splitlines() == [name] for name in names):
        raise UserError(f"{_CONFIGURATION}: id2label is {labels}, expected names of the classes 0, 1, ...")
    return names


def _check_task(head: Head, options: dict, folder: Path) -> None:
    """Refuse a head with other outputs than the task that glue.json would name.

    Args:
        options: of the task.

    Raises:
        UserError: as said.
    """
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    name = options["_name"]
    with tempfile.TemporaryDirectory() as place:
        copy_files([(folder / DICTIONARY_FILE, DICTIONARY_FILE)], place)
        _write_task(head, Path(place))
        try:
            config = TASK_DATACLASS_REGISTRY[name](**{**options, "data": place})
            agrees = TASK_REGISTRY[name].setup_task(config, from_checkpoint=True).label_names == head.labels
        except UserError:
            agrees = False
    if not agrees:
        what = f"the classes {', '.join(head.labels)}" if head.labels else "a score"
        raise UserError(
            f"{folder}: the model of {_CONFIGURATION} gives {what}, but the task of its rt_glue is "
            f"{head.glue.get('task')!r}, with other labels; if it was trained on another task, set rt_glue to null"
        )


def _check_outputs(head: Head, weights: dict, folder: Path) -> None:
    """Refuse a head without weights, or with those of other outputs.

    Raises:
        UserError: as said.
    """
    prefix = f"classification_heads.{head.name}."
    matrix = weights.get(f"{prefix}out_proj.weight")
    found, named = 0 if matrix is None else matrix.shape[0], len(head.labels or [None])
    if found != named:
        raise UserError(
            f"{folder}: {_CONFIGURATION} names a classifier of {named} outputs, {_WEIGHTS} holds "
            f"{f'one of {found}' if found else 'none'}; get both again"
        )
    if (f"{prefix}{MARKS}" in weights) != head.marks:
        there = "lacks" if head.marks else "has"
        raise UserError(
            f"{folder}: {_CONFIGURATION} says mark_shared {str(head.marks).lower()}, and {_WEIGHTS} {there} marks; get "
            "both again"
        )


def _longest(path: Path, positions: int) -> int:
    longest = _json(path).get("model_max_length") if path.is_file() else None
    return min(longest, positions) if type(longest) is int and longest > 0 else positions


def _groups(options: dict, head: Head | None, longest: int) -> dict:
    if head is None:
        task = {"_name": "rt_masked_lm", "sample_break_mode": "complete_doc", "tokens_per_sample": longest}
        return {"model": argparse.Namespace(**options), "task": task, "criterion": {"_name": "rt_masked_lm"}}
    task = {
        "_name": "rt_glue",
        "classification_head_name": head.name,
        "pooling": head.pooling,
        "mark_shared": head.marks,
        "max_positions": longest,
        "num_classes": len(head.labels) if head.labels else None,
        "regression_target": head.labels is None,
    }
    return {"model": argparse.Namespace(**options), "task": task, "criterion": {"_name": "rt_glue"}}


def _write_task(head: Head | None, out: Path) -> None:
    """Write label_dict.txt and glue.json, and take away those that the model does not have."""
    labels = "".join(f"{label} 1\n" for label in head.labels) if head and head.labels else ""
    glue = json.dumps(head.glue, indent=2) + "\n" if head and head.glue else ""
    for name, content in ((LABEL_DICTIONARY_FILE, labels), (GLUE_FILE, glue)):
        if not content:
            (out / name).unlink(missing_ok=True)
            continue
        with replacing(out / name) as file:
            file.write(content.encode())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("import-huggingface", lambda: import_folder(args.folder, args.out))
