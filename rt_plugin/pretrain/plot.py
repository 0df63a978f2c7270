"""Draws the curves of several trainings against updates, tokens and hours, and tabulates where they ended.

Tokens have a panel where the runs differ in how many they read an update.

Example: rt-plugin plot runs/mini runs/mini-alternate runs/mini-roberta --out runs/curves.png
"""

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rt_plugin.console import commands, figures
from rt_plugin.console.files import writing
from rt_plugin.console.tables import plain_table
from rt_plugin.errors import UserError
from rt_plugin.pretrain.log import read_json_records, read_log

X_AXES = {"update": "updates", "tokens": "million tokens", "hours": "hours"}
MEASURES = {"loss": "loss, bits per masked token", "perplexity": "perplexity", "accuracy": "accuracy"}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("plot", __doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a --save-dir of rt-plugin pretrain, or a log of fairseq-train",
    )
    parser.add_argument("--out", type=Path, default="training.png", help="PNG, SVG or PDF (default: %(default)s)")
    parser.add_argument("--measure", choices=MEASURES, default="loss", help="default: %(default)s")
    parser.add_argument("--labels", nargs="+", help="names of the runs (default: those of their folders)")
    args = parser.parse_args(argv)
    if args.labels and len(args.labels) != len(args.runs):
        parser.error(f"--labels: {len(args.labels)} for {len(args.runs)} runs")
    return args


def read_run(path: Path) -> list[dict]:
    """A run's records in order, of one update and split the latest, with `tokens` (millions) and `hours` so far.

    Raises:
        UserError: there is no log, or no record in it.
    """
    log = path / "log.jsonl" if path.is_dir() else path
    if not log.is_file():
        raise UserError(f"{log}: no such file; give a --save-dir of rt-plugin pretrain, or a log")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    records = read_json_records(lines) if log.suffix == ".jsonl" else read_log(lines)
    latest = {(record["update"], record["split"]): record for record in records if record["split"] != "epoch"}
    if not latest:
        raise UserError(f"{log}: no record of an update in it; fairseq-train writes them with --log-format json")
    return with_totals([latest[key] for key in sorted(latest)])


def with_totals(records: list[dict]) -> list[dict]:
    """Add `tokens` and `hours` to records in order: from the tokens an update, and from fairseq's clock, which counts
    all attempts of a training; a validation has those of the update before."""
    update = tokens = hours = 0
    totals = []
    for record in records:
        if record["split"] == "train":
            tokens += (record["update"] - update) * record.get("tokens_per_update", 0) / 1e6
            hours = max(hours, record.get("seconds", 0) / 3600)
            update = record["update"]
        totals.append({**record, "tokens": tokens, "hours": hours})
    return totals


def plot(runs: dict[str, list[dict]], measure: str, path: Path) -> None:
    """Training thin, validation with dots; one panel for each way to count effort."""
    axes_names = _x_axes(runs)
    colours = figures.colours(list(runs))
    title = f"{MEASURES[measure].split(',')[0].capitalize()} (thin: in training, dots: validation)"
    with figures.panels(path, len(axes_names), title, height=2.8, sharey=True) as panels:
        for axes, (key, name) in zip(panels, axes_names.items(), strict=True):
            for label, records in runs.items():
                for split, style in (("train", {"lw": 0.8, "alpha": 0.5}), ("valid", {"marker": ".", "label": label})):
                    chosen = [r for r in records if r["split"] == split and measure in r]
                    axes.plot([r[key] for r in chosen], [r[measure] for r in chosen], color=colours[label], **style)
            axes.set_xlabel(name)
        panels[0].set_ylabel(MEASURES[measure])


def _x_axes(runs: dict[str, list[dict]]) -> dict[str, str]:
    """Those of `X_AXES` that say something new: with the same tokens an update in all runs, the updates count both."""
    tokens = [1e6 * records[-1]["tokens"] / max(1, records[-1]["update"]) for records in runs.values()]
    if max(tokens) > 1.01 * min(tokens):
        return X_AXES
    each = f" of {sum(tokens) / len(tokens):,.0f} tokens" if min(tokens) else ""
    return {"update": f"updates{each}", "hours": X_AXES["hours"]}


def table(runs: dict[str, list[dict]]) -> list[dict]:
    """For each run where it is: updates, tokens, hours, last validation loss and perplexity."""
    rows = []
    for label, records in runs.items():
        valid = [r for r in records if r["split"] == "valid"]
        last = valid[-1] if valid else {}
        rows.append(
            {
                "run": label,
                "updates": records[-1]["update"],
                "million_tokens": round(records[-1]["tokens"], 3),
                "hours": round(records[-1]["hours"], 3),
                "validation_update": last.get("update", ""),
                "validation_loss_bits": last.get("loss", ""),
                "validation_perplexity": last.get("perplexity", ""),
            }
        )
    return rows


def draw(args: argparse.Namespace) -> None:
    """Write plot and table, and print the table.

    Raises:
        UserError: two runs have one name; or see `read_run`.
    """
    labels = args.labels or [(path if path.is_dir() else path.resolve().parent).name for path in args.runs]
    if len(set(labels)) < len(labels):
        raise UserError(f"two runs are called {max(labels, key=labels.count)}; give them names with --labels")
    runs = {label: read_run(path) for label, path in zip(labels, args.runs, strict=True)}
    plot(runs, args.measure, args.out)
    rows = table(runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with writing(args.out.with_suffix(".csv")) as file:
        file.write(text.getvalue().encode())
    print(plain_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    print(f"{args.out} and {args.out.with_suffix('.csv')}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("plot", lambda: draw(args))
