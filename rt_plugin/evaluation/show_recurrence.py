"""What the recurrence of a model has learned: its parameters, its gates, and how far back its states remember.

    OUT/layers.csv       by layer: kind, direction, mean lag, share from 4 or more positions back, share of closed gates
    OUT/memory.csv       by layer and lag: |d c[i] / d x1[i - lag]|, averaged over TEXT; mean over the channels, and
                         the channels at 5, 50 and 95 %
    OUT/parameters.csv   by layer: mean, deviation and quantiles over the channels of alpha, beta, c_bias, gate_bias (of
                         a short-conv: its weights), and of the gate's values over TEXT
    OUT/report.md, memory.png, parameters.png   the same for people

TEXT has one sentence or paragraph a line; its beginning is read in blocks as long as the model takes, as in
pretraining, but with nothing masked. rt_plugin.evaluation.memory has the equations.

Example: rt-plugin show-recurrence examples/checkpoints/recurrent_roberta_mini examples/quickstart/valid.txt \\
             --out runs/recurrence
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rt_plugin.console import commands
from rt_plugin.errors import UserError
from rt_plugin.inference.arguments import add_checkpoint


def show(args: argparse.Namespace) -> None:
    """The command's work."""
    from rt_plugin import hub
    from rt_plugin.evaluation import recurrence_report, recurrence_tables

    model = hub.from_pretrained(str(args.model), args.checkpoint)
    layers, tokens = recurrence_tables.measure_text(model, args.text, args.blocks, args.lags)
    try:
        name = args.name or args.model.resolve().name
        recurrence_tables.write_tables(name, layers, tokens, args.out)
        print(recurrence_report.write_report(args.out, args.out))
    except OSError as error:
        raise UserError(f"{args.out}: cannot be written ({error.strerror}); choose another --out") from None
    commands.report(f"{args.out}: {', '.join((*recurrence_report.FILES, *recurrence_tables.FILES))}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("show-recurrence", __doc__)
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model folder")
    parser.add_argument("text", metavar="TEXT", type=Path, help="UTF-8 text that the model has not been trained on")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder for tables and figures")
    add_checkpoint(parser)
    parser.add_argument(
        "--blocks", type=commands.positive, default=64, metavar="N", help="of text to read (default: %(default)s)"
    )
    parser.add_argument(
        "--lags", type=commands.positive, default=32, metavar="N", help="positions back (default: %(default)s)"
    )
    parser.add_argument("--name", help="of the model in the report (default: its folder's)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("show-recurrence", lambda: show(args))
