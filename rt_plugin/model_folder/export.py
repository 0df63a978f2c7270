"""A trained model as people pass it on: weights without the optimizer's state, in half precision, with a model card.

    OUT/checkpoint_best.pt        the weights
    OUT/dict.txt, sentencepiece.bpe.model, text_normalization.json   what is needed to use them
    OUT/label_dict.txt, glue.json   the same for a fine-tuned model
    OUT/SHA256SUMS                checksums of all these, which loading compares
    OUT/README.md                 architecture, training, validation loss or score, the command

Absolute paths that the checkpoint remembers are cut down to their last part. Load OUT with
RecurrentRobertaModel.from_pretrained, fine-tune it like any model folder.

Example: rt-plugin export runs/mini exported/mini --notes data_and_licence.md
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rt_plugin.console import commands
from rt_plugin.console.checksums import forget, write_checksums
from rt_plugin.console.files import replacing, sha256
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import BESIDE_CHECKPOINTS, BEST_CHECKPOINT, copy_files

if TYPE_CHECKING:
    import torch

EXPORTED_FILE = BEST_CHECKPOINT  # what from_pretrained loads unless told otherwise
PRECISIONS = ("float16", "bfloat16", "float32")
_EMBEDDING, _OUTPUT_LAYER = "sentence_encoder.embed_tokens.weight", "lm_head.weight"  # one parameter of two names


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("export", __doc__)
    parser.add_argument("model", metavar="SAVE_DIR", type=Path, help="the --save-dir of a training")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--checkpoint", default=BEST_CHECKPOINT, help="of SAVE_DIR (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float16", help="default: %(default)s")
    parser.add_argument("--notes", type=Path, metavar="FILE", help="Markdown for the model card: data, licence, use")
    return parser.parse_args(argv)


def export(model: Path, out: Path, checkpoint: str, precision: str, notes: Path | None) -> None:
    """Write the folder `out`.

    Raises:
        UserError: a file is missing or unreadable, `out` is `model` or a file or cannot be written, or weights do not
            fit the precision.
    """
    import torch

    from rt_plugin.model_folder.checkpoint import find_checkpoint, read_checkpoint

    source = find_checkpoint(model, checkpoint)
    if out.resolve() == model.resolve():
        raise UserError(f"{out}: is the folder of the training itself; give another one")
    if out.is_file():
        raise UserError(f"{out}: is a file; give the folder to write")
    text = _read_notes(notes) if notes else ""
    state = read_checkpoint(source)
    slim = {
        "args": None,
        "cfg": _without_absolute_paths(state["cfg"]),
        "model": _tie(_cast(state["model"], getattr(torch, precision), source)),
        "criterion": None,
        "task_state": state.get("task_state") or {},
        "optimizer_history": state["optimizer_history"][-1:],
        "extra_state": {k: v for k, v in state["extra_state"].items() if k in ("train_iterator", "val_loss", "best")},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        forget(out, [EXPORTED_FILE, *BESIDE_CHECKPOINTS])  # until all is there again
        copy_files([(model / name, name) for name in BESIDE_CHECKPOINTS], out)
        with replacing(out / EXPORTED_FILE) as file:
            torch.save(slim, file)
        digests = {name: sha256(out / name) for name in (EXPORTED_FILE, *BESIDE_CHECKPOINTS) if (out / name).is_file()}
        size = (out / EXPORTED_FILE).stat().st_size
        card = _model_card(out.name, slim, precision, size, digests[EXPORTED_FILE], _command(model), text)
        with replacing(out / "README.md") as file:
            file.write(card.encode())
        write_checksums(out, digests)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
        reason = getattr(error, "strerror", "is the disk full?")
        raise UserError(f"{out}: cannot be written ({reason}); give another folder, or make room") from None
    print(f"{out / EXPORTED_FILE}: {size / 1e6:.1f} MB, {source.stat().st_size / 1e6:.1f} MB before")


def _read_notes(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--notes {file}: cannot be read ({error}); expected Markdown in UTF-8") from None


def _cast(weights: dict[str, torch.Tensor], dtype: torch.dtype, source: Path) -> dict[str, torch.Tensor]:
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    broken = [name for name, value in cast.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{source}: {len(broken)} weights are not finite in {str(dtype).split('.')[1]} ({broken[0]} is the first); "
            "use --precision float32, and see whether the training diverged"
        )
    return cast


def _tie(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Let the output layer be the embedding again where it is, so that it is written and counted once."""
    tied = dict(weights)
    for name, value in weights.items():
        head = f"{name.removesuffix(_EMBEDDING)}{_OUTPUT_LAYER}"
        if name.endswith(_EMBEDDING) and head in weights and weights[head].equal(value):
            tied[head] = value
    return tied


def _without_absolute_paths(value):
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**_without_absolute_paths(vars(value)))
    if isinstance(value, dict):
        return {name: _without_absolute_paths(item) for name, item in value.items()}
    if isinstance(value, str) and os.path.isabs(value):
        return os.pathsep.join(os.path.basename(os.path.normpath(path)) for path in value.split(os.pathsep))
    return value


def _command(model: Path) -> str:
    """What `rt-plugin pretrain` started, with the paths of this machine cut down; nothing where that is not known."""
    try:
        words = shlex.split((model / "command.txt").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return shlex.join(_without_absolute_paths(word) for word in words)


def _number_of_parameters(weights: dict[str, torch.Tensor]) -> int:
    tensors = {id(value): value for name, value in weights.items() if not name.endswith(".version")}  # fairseq's mark
    return sum(value.numel() for value in tensors.values())


def _get(group, name: str):
    return getattr(group, name, None) if isinstance(group, argparse.Namespace) else group.get(name)


def _model_card(name: str, state: dict, precision: str, size: int, digest: str, command: str, notes: str) -> str:
    cfg = state["cfg"]
    model, optimization = cfg["model"], cfg["optimization"]
    metric, value = cfg["checkpoint"]["best_checkpoint_metric"], state["extra_state"].get("val_loss")
    unit = "; bits a masked token" if (_get(cfg["task"], "_name"), metric) == ("rt_masked_lm", "loss") else ""
    options = [f"{key}: {_get(model, key)}" for key in ("recurrence_direction", "recurrence_step_size")]
    rate = optimization["lr"][0] if isinstance(optimization["lr"], (list, tuple)) else optimization["lr"]
    rows = {
        "architecture": f"`{_get(model, 'arch') or _get(model, '_name')}`",
        "options": ", ".join(option.replace("recurrence_", "") for option in options if "None" not in option),
        "parameters": f"{_number_of_parameters(state['model']):,}",
        "updates": f"{state['optimizer_history'][-1]['num_updates']:,}",
        "learning rate": f"{rate:g}",
        f"validation {metric}": "" if value is None else f"{value:.3f} (in training{unit})",
        "file": f"{precision}, {size / 1e6:.1f} MB",
        "SHA-256": f"`{digest}`",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value)
    text = f"# {name}\n\n| | |\n| --- | --- |\n{table}"
    if command:
        text += f"\nTrained by\n\n    {command}\n"
    text += (
        "\nLoad it in Python:\n\n    from rt_plugin.model import RecurrentRobertaModel\n"
        f'    model = RecurrentRobertaModel.from_pretrained("{name}")\n'
    )
    return f"{text}\n{notes}" if notes else text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("export", lambda: export(args.model, args.out, args.checkpoint, args.precision, args.notes))
