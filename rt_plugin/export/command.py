"""A trained model as people pass it on: weights without the optimizer's state, in half precision, with a model card.

    OUT/checkpoint_best.pt        the weights; with --format safetensors, the one for passing on, in its place
    OUT/model.safetensors, rt_plugin.json   the weights and, as JSON, their configuration: nothing is unpickled
    OUT/config.json, *_recurrent_roberta.py         with --format huggingface: what transformers loads, code included
    OUT/model.onnx                with --format onnx: one graph for any batch and length, for onnxruntime
    OUT/dict.txt, sentencepiece.bpe.model, text_normalization.json   what is needed to use them
    OUT/label_dict.txt, glue.json   the same for a fine-tuned model
    OUT/SHA256SUMS                checksums of all these, which loading compares
    OUT/README.md                 the model card: data, training, losses, examples, limits, licence, checksums

Absolute paths that the checkpoint remembers are cut down to their last part. Load OUT with
RecurrentRobertaModel.from_pretrained, fine-tune it like any model folder.

Example: rt-plugin export runs/mini exported/mini --format safetensors --licence mit --notes data_and_licence.md
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rt_plugin.console import commands
from rt_plugin.console.checksums import forget, write_checksums
from rt_plugin.console.files import replacing, sha256
from rt_plugin.errors import UserError
from rt_plugin.model_folder import safetensors
from rt_plugin.model_folder.files import (
    BESIDE_CHECKPOINTS,
    BEST_CHECKPOINT,
    CONFIGURATION_FILE,
    SAFETENSORS_FILE,
    copy_files,
    data_folders,
)

if TYPE_CHECKING:
    import torch

EXPORTED_FILE = BEST_CHECKPOINT  # what from_pretrained loads unless told otherwise
PRECISIONS = ("float16", "bfloat16", "float32", "int8")
# format -> the files that it writes, the weights first; what is beside them is the same in all
FORMATS = {
    "fairseq": (EXPORTED_FILE,),
    "safetensors": (SAFETENSORS_FILE, CONFIGURATION_FILE),
    "huggingface": (SAFETENSORS_FILE, "config.json"),
    "onnx": ("model.onnx", "config.json"),
}
UNKNOWN = "unknown"
_EMBEDDING, _OUTPUT_LAYER = "sentence_encoder.embed_tokens.weight", "lm_head.weight"  # one parameter of two names
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("export", __doc__)
    parser.add_argument("model", metavar="SAVE_DIR", type=Path, help="the --save-dir of a training")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument("--checkpoint", default=BEST_CHECKPOINT, help="of SAVE_DIR (default: %(default)s)")
    parser.add_argument("--format", choices=tuple(FORMATS), default="fairseq", help="default: %(default)s")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the weights in the file (default: float16; of onnx float32); int8 is for onnx alone",
    )
    parser.add_argument(
        "--output",
        choices=("head", "features"),
        default="head",
        help="what an onnx graph gives: the logits, or the encoder's vectors (default: %(default)s)",
    )
    card = parser.add_argument_group("for the model card")
    card.add_argument("--notes", type=Path, metavar="FILE", help="Markdown: data, licence, use")
    card.add_argument(
        "--licence", default=UNKNOWN, metavar="ID", help="as the Hugging Face hub names it, such as mit or cc-by-sa-4.0"
    )
    card.add_argument(
        "--data", type=Path, metavar="DIR", help="of rt-plugin prepare-corpus (default: that of the training's command)"
    )
    card.add_argument(
        "--minimal-pairs", type=Path, metavar="DIR", help="what rt-plugin minimal-pairs wrote of the model"
    )
    card.add_argument("--examples", type=Path, metavar="FILE", help="sentences with a <mask>, to be filled in")
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> None:
    """Write the folder `args.out`.

    Raises:
        UserError: a file is missing or unreadable, `out` is `model` or a file or cannot be written, it holds weights in
            another format, or weights do not fit the precision.
    """
    import torch

    from rt_plugin.export import card
    from rt_plugin.model_folder.checkpoint import check_history, find_checkpoint, read_checkpoint

    out, precision = args.out, _precision(args)
    source = find_checkpoint(args.model, args.checkpoint)
    _check_target(args)
    if not _LICENCE.fullmatch(args.licence):
        raise UserError(f"--licence {args.licence}: expected a name as the Hugging Face hub has them, such as mit")
    about = card.gather(args, source)
    state = read_checkpoint(source)
    check_history(state, source)
    slim = {
        "args": None,
        "cfg": _without_absolute_paths(state["cfg"]),
        "model": _tie(_cast(state["model"], getattr(torch, "float32" if precision == "int8" else precision), source)),
        "criterion": None,
        "task_state": state.get("task_state") or {},
        "optimizer_history": state["optimizer_history"][-1:],
        "extra_state": {k: v for k, v in state["extra_state"].items() if k in ("train_iterator", "val_loss", "best")},
    }
    about.command = _command(args.model) or state.get("command", "")
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        forget(out, [*FORMATS[args.format], *BESIDE_CHECKPOINTS])  # until all is there again
        about.precision = precision
        names = _write(args, {**slim, "command": about.command}, source, precision)
        there = [name for name in names if (out / name).is_file()]
        about.digests = {name: sha256(out / name) for name in there}
        write_checksums(out, about.digests)
    text = card.write(about, slim, out, args.format).encode()
    with _writing(out), replacing(out / card.CARD_FILE) as file:
        file.write(text)
    size = (out / names[0]).stat().st_size
    print(f"{out / names[0]}: {size / 1e6:.1f} MB, {source.stat().st_size / 1e6:.1f} MB before")


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); give another folder, or make room"
        ) from None


def _precision(args: argparse.Namespace) -> str:
    precision = args.precision or ("float32" if args.format == "onnx" else "float16")
    if (precision == "int8") > (args.format == "onnx"):
        raise UserError(f"--precision int8 with --format {args.format}: only an onnx graph can have it")
    if args.format == "onnx" and precision not in ("float32", "int8"):
        raise UserError(f"--precision {precision} with --format onnx: expected float32 or int8")
    if args.output != "head" and args.format != "onnx":
        raise UserError(f"--output {args.output} with --format {args.format}: only an onnx graph has a choice")
    return precision


def _write(args: argparse.Namespace, state: dict, source: Path, precision: str) -> list[str]:
    """Write all but the card and the checksums; returns the files' names, the weights first."""
    import torch

    if args.format == "onnx":
        from rt_plugin.huggingface.onnx_file import write_onnx

        return write_onnx(state, source, args.model, args.out, precision, args.output)
    if args.format == "huggingface":
        from rt_plugin.huggingface.folder import write_folder

        return write_folder(state, source, args.model, args.out)
    copy_files([(args.model / name, name) for name in BESIDE_CHECKPOINTS], args.out, remove=True)
    if args.format == "safetensors":
        safetensors.write(state, args.out)
    else:
        del state["command"]  # in the card
        with replacing(args.out / EXPORTED_FILE) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # which torch makes of a full disk
                raise error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error)) from None
    return [*FORMATS[args.format], *BESIDE_CHECKPOINTS]


def _check_target(args: argparse.Namespace) -> None:
    if args.out.resolve() == args.model.resolve():
        raise UserError(f"{args.out}: is the folder of the training itself; give another one")
    if args.out.is_file():
        raise UserError(f"{args.out}: is a file; give the folder to write")
    for form, names in FORMATS.items():
        if form != args.format and all((args.out / name).exists() for name in names):
            raise UserError(
                f"{args.out}: holds {names[0]}, the format {form}; give another folder, or remove that file"
            )


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
        return os.pathsep.join(os.path.basename(os.path.normpath(path)) for path in data_folders(value))
    return value


def _command(model: Path) -> str:
    """What `rt-plugin pretrain` started, with the paths of this machine cut down; nothing where that is not known."""
    try:
        words = shlex.split((model / "command.txt").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return shlex.join(_without_absolute_paths(word) for word in words)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("export", lambda: export(args))
