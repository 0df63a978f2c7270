"""What the quickstart's trainings logged: read, tabulated (text, Markdown, CSV, JSON) and plotted."""

import collections
import csv
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.console import figures
from rt_plugin.console.tables import markdown_table, plain_table
from rt_plugin.pretrain.log import read_log

COLUMNS = {  # key of a row -> heading and format
    "model": ("model", "{}"),
    "parameters": ("parameters", "{:,}"),
    "pretraining_updates": ("pretraining updates", "{:,}"),
    "validation_loss_bits": ("validation loss, bits", "{:.3f}"),
    "perplexity": ("perplexity", "{:.1f}"),
    "unigram_perplexity": ("unigram perplexity", "{:.1f}"),
    "finetuning_updates": ("fine-tuning updates", "{:,}"),
    "dev_accuracy": ("QNLI dev accuracy", "{:.1%}"),
    "majority_class": ("majority class", "{:.1%}"),
    "pretraining_minutes": ("pretraining, minutes", "{:.1f}"),
    "finetuning_minutes": ("fine-tuning, minutes", "{:.1f}"),
}
_PARAMETERS = re.compile(r"num\. shared model params: ([\d,]+)")


def read_training(path: Path) -> dict:
    """A training's log: `parameters`, `seconds`, and `train` and `valid`, the records by update (later ones win)."""
    text = path.read_text(encoding="utf-8", errors="replace")
    records = read_log(text.split("\n"))
    found = _PARAMETERS.search(text)
    return {
        "parameters": int(found[1].replace(",", "")) if found else None,
        "seconds": max((record.get("seconds", 0) for record in records), default=0),
        **{
            split: {record["update"]: record for record in records if record["split"] == split}
            for split in ("train", "valid")
        },
    }


def majority_share(pairs: Path) -> float:
    """The share of the most frequent label in a GLUE file whose header names a column `label`."""
    with pairs.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        counts = collections.Counter(row["label"] for row in rows)
    return max(counts.values()) / counts.total()


def result_row(model: str, pretraining: dict, finetuning: dict, unigram: dict, majority: float) -> dict:
    """A row of the table: both trainings after their last update."""
    last_pretrained, last_finetuned = (max(t["valid"].items())[1] for t in (pretraining, finetuning))
    return {
        "model": model,
        "parameters": pretraining["parameters"],
        "pretraining_updates": last_pretrained["update"],
        "validation_loss_bits": last_pretrained["loss"],
        "perplexity": last_pretrained["perplexity"],
        "unigram_perplexity": unigram["unigram_perplexity"],
        "finetuning_updates": last_finetuned["update"],
        "dev_accuracy": last_finetuned["accuracy"],
        "majority_class": majority,
        "pretraining_minutes": pretraining["seconds"] / 60,
        "finetuning_minutes": finetuning["seconds"] / 60,
    }


def write_report(folder: Path, logs: dict[str, tuple[Path, Path]], pairs: Path) -> None:
    """Print the table; write it as results.txt, .md, .csv and .json, and the curves as loss_curve.png.

    Args:
        folder: of the run; holds unigram.json.
        logs: for each model the logs of its pretraining and its fine-tuning.
        pairs: the dev set.
    """
    unigram = json.loads((folder / "unigram.json").read_text())
    majority = majority_share(pairs)
    trainings = {model: tuple(map(read_training, paths)) for model, paths in logs.items()}
    rows = [result_row(model, *both, unigram, majority) for model, both in trainings.items()]
    cells = [[form.format(row[key]) for key, (_, form) in COLUMNS.items()] for row in rows]
    headings = [heading for heading, _ in COLUMNS.values()]

    (heading, *models), *measures = zip(headings, *cells, strict=True)  # turned round: a line a measure
    text = plain_table([heading, *models], measures)
    print(text, flush=True)
    (folder / "results.txt").write_text(text + "\n")
    (folder / "results.md").write_text(markdown_table(headings, cells) + "\n")
    (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    plot_curves(folder / "loss_curve.png", trainings, unigram["unigram_bits"], majority)
    print(f"\nplot: {folder / 'loss_curve.png'}   table: {folder}/results.md, .csv, .json", flush=True)


def plot_curves(path: Path, trainings: dict[str, tuple[dict, dict]], unigram_bits: float, majority: float) -> None:
    """Pretraining loss and dev accuracy over the updates, one colour a model, with what is reached without a model."""
    colours = figures.colours(list(trainings))
    with figures.panels(path, 2, "Quickstart (thin: in training, dots: validation)", height=2.8) as panels:
        loss_axes, accuracy_axes = panels
        for model, (pretraining, finetuning) in trainings.items():
            _plot(loss_axes, pretraining["train"], "loss", color=colours[model], lw=0.8, alpha=0.6)
            _plot(loss_axes, pretraining["valid"], "loss", color=colours[model], marker="o", label=model)
            _plot(accuracy_axes, finetuning["valid"], "accuracy", color=colours[model], marker="o", label=model)
        loss_axes.axhline(unigram_bits, color="grey", ls=":", label="unigram model")
        accuracy_axes.axhline(majority, color="grey", ls="--", label="majority class")
        loss_axes.set(title="Pretraining", xlabel="updates", ylabel="loss, bits per masked token")
        accuracy_axes.set(title="Fine-tuning on QNLI", xlabel="updates", ylabel="dev accuracy")


def _plot(axes, records: dict[int, dict], key: str, **style) -> None:
    updates = sorted(records)
    axes.plot(updates, [records[update][key] for update in updates], **style)
