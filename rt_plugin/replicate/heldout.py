"""The masked-LM loss of models on held-out text: with masks that are the same for all, by position and by frequency.

    OUT/held_out.csv      a row a model: loss over the `<mask>` positions, and over all positions that were chosen (10 %
                          of them hold another token, 10 % their own); bits a token
    OUT/positions.csv     the loss over `<mask>` positions by position in the block; the first token behind <s> is 1
    OUT/frequencies.csv   the same by how often the token occurs in a million tokens of the training text
    OUT/positions.png, frequencies.png

The masks follow from --mask-seed and the block alone, so that models with the same dictionary guess the same tokens.
The unigram model that the rows name knows the training text's token counts (plus one) and nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rt_plugin.console import commands
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import BEST_CHECKPOINT
from rt_plugin.replicate import figures
from rt_plugin.replicate.results import HELD_OUT_FILES, checksum, write_csv

if TYPE_CHECKING:
    from rt_plugin.replicate.losses import HeldOut

_MODEL_COLUMNS = ("model", "checkpoint", "split", "mask_seed", "loss", "masked", "chosen_loss", "chosen", "accuracy")
_COLUMNS = {
    HELD_OUT_FILES[0]: (*_MODEL_COLUMNS, "unigram_loss"),
    HELD_OUT_FILES[1]: ("model", "first", "last", "tokens", "loss"),
    HELD_OUT_FILES[2]: ("model", "per_million_from", "below", "tokens", "loss"),
}


def write(results: Mapping[str, tuple[HeldOut, str]], split: str, mask_seed: int, out: Path) -> None:
    """Write the three CSV files; `results`: name of the model -> its losses and its checkpoint's checksum."""
    models, positions, frequencies = [], [], []
    for name, (r, digits) in results.items():
        losses = [round(x, 5) for x in (r.loss, r.chosen_loss, r.accuracy, r.unigram_loss)]
        models.append((name, digits, split, mask_seed, losses[0], r.masked, losses[1], r.chosen, *losses[2:]))
        positions += [(name, low, high - 1, n, round(loss, 5)) for low, high, n, loss in r.positions]
        frequencies += [(name, low, high, n, round(loss, 5)) for low, high, n, loss in r.frequencies]
    of_files = list(zip(HELD_OUT_FILES, (models, positions, frequencies), strict=True))
    for file, rows in reversed(of_files):  # held_out.csv last: where it is, the others are
        write_csv(out / file, _COLUMNS[file], [dict(zip(_COLUMNS[file], row, strict=True)) for row in rows])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("held-out", __doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", type=Path, help="folders of trained models")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="the corpus that they were trained on")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="for the CSV files and plots")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="of the models (default: those of their folders)")
    parser.add_argument("--split", default="test", help="of the corpus (default: %(default)s)")
    parser.add_argument(
        "--checkpoint", default=BEST_CHECKPOINT, metavar="FILE", help="its name in each folder (default: %(default)s)"
    )
    parser.add_argument("--mask-seed", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--cpu", action="store_true", help="though there is a GPU")
    parser.add_argument("--no-plots", action="store_true", help="write the CSV files only")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        UserError: see `losses.measure`; or names do not fit the models.
    """
    labels = args.labels or [folder.resolve().name for folder in args.models]
    if len(labels) != len(args.models) or len(set(labels)) < len(labels):
        raise UserError(f"{len(args.models)} models are called {', '.join(labels)}; give each its name with --labels")
    import torch

    from rt_plugin.model_folder.checkpoint import checkpoint_path
    from rt_plugin.replicate.losses import measure  # torch and fairseq take seconds to import

    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    results = {}
    for label, folder in zip(labels, args.models, strict=True):
        found = measure(folder, args.data, args.mask_seed, args.split, args.checkpoint, device)
        results[label] = (found, checksum(checkpoint_path(folder, args.checkpoint)))
        print(
            f"{label}: {found.loss:.3f} bits over {found.masked:,} <mask> positions of {args.split}, accuracy "
            f"{found.accuracy:.1%}; unigram {found.unigram_loss:.3f} bits",
            flush=True,
        )
    write(results, args.split, args.mask_seed, args.out)
    if not args.no_plots:
        figures.draw(figures.of_held_out(args.out), args.out)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `held-out`; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("held-out", lambda: run(args))
