#!/usr/bin/env python
"""Measure what 8 bits cost a model: minimal pairs and a GLUE task, in PyTorch, as an ONNX graph, and as one in int8.

    rt-plugin export MODEL runs/float32 --format onnx
    rt-plugin export MODEL runs/int8 --format onnx --precision int8
    python scripts/measure_int8.py MODEL runs/float32 runs/int8 --pairs examples/minimal_pairs/blimp_sample.jsonl
    python scripts/measure_int8.py CLASSIFIER runs/c-float32 runs/c-int8 --rows examples/quickstart/QNLI/dev.tsv

MODEL is a masked language model, CLASSIFIER one fine-tuned on QNLI, whose rows are index, question, sentence, label.
Prints a table and, with --out, writes it as CSV; beside each accuracy, of how many decisions the graph's differ from
PyTorch's.
"""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import checkout

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rt_plugin.inference.batches import equal_length_batches
from rt_plugin.inference.interface import CLASSIFICATION_HEAD
from rt_plugin.inference.likelihood import PseudoLikelihood
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder.checkpoint import find_checkpoint
from rt_plugin.model_folder.files import BEST_CHECKPOINT

COLUMNS = ("what", "form", "megabytes", "accuracy", "decisions", "differing")


class Graph:
    """An ONNX graph in the place of fairseq's model, for what asks for logits only."""

    def __init__(self, folder: Path, positions: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self._positions = positions
        self.encoder = SimpleNamespace(output_layer=lambda logits: logits)

    def max_positions(self) -> int:
        return self._positions

    def __call__(self, tokens: torch.Tensor, features_only: bool = True):
        arrays = {"input_ids": tokens.numpy(), "attention_mask": np.ones(tokens.shape, dtype=np.int64)}
        return torch.from_numpy(self._session.run(None, arrays)[0]), None


def parse_arguments():
    parser = checkout.parser(__doc__)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("graphs", type=Path, nargs="+", help="folders that rt-plugin export --format onnx made of it")
    parser.add_argument("--pairs", type=Path, help="minimal pairs, JSON lines as BLiMP's")
    parser.add_argument("--rows", type=Path, help="labelled rows of QNLI, as its dev.tsv")
    parser.add_argument("--first", type=int, help="of the pairs, or of the rows (default: all)")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    return parser.parse_args()


def right_pairs(loaded, pairs: list[dict]) -> np.ndarray:
    """Of each pair, whether the right sentence has the higher pseudo-log-likelihood."""
    scorer = PseudoLikelihood(loaded)
    sentences = [scorer.encode(pair[name]) for pair in pairs for name in ("sentence_good", "sentence_bad")]
    scores = np.array([values.sum() for values in scorer(sentences)]).reshape(-1, 2)
    return scores[:, 0] > scores[:, 1]


def right_rows(loaded, graph: Graph | None, rows: list[list[str]]) -> np.ndarray:
    """Of each row, whether its label is the most probable one."""
    tokens = loaded.encode([(row[1], row[2]) for row in rows], truncate=True)
    labels = loaded.task.label_names
    found = np.zeros(len(rows), dtype=int)
    for batch in equal_length_batches([len(one) for one in tokens]):
        inputs = torch.stack([tokens[i] for i in batch])
        scores = loaded.predict(CLASSIFICATION_HEAD, inputs) if graph is None else graph(inputs)[0]
        found[batch] = scores.argmax(-1).numpy()
    return np.array([labels[i] == row[3] for i, row in zip(found, rows, strict=True)])


def measure(args) -> list[dict]:
    loaded = RecurrentRobertaModel.from_pretrained(str(args.model))
    positions = loaded.model.max_positions()
    pairs = [json.loads(line) for line in args.pairs.read_text(encoding="utf-8").splitlines()] if args.pairs else []
    pairs = pairs[: args.first]
    lines = args.rows.read_text(encoding="utf-8").splitlines()[1:] if args.rows else []
    rows, table, known = [line.split("\t") for line in lines[: args.first]], [], {}
    for folder in (None, *args.graphs):
        graph = None if folder is None else Graph(folder, positions)
        size = (
            (find_checkpoint(args.model, BEST_CHECKPOINT) if folder is None else folder / "model.onnx").stat().st_size
        )
        right = {}
        if pairs:
            stand_in = SimpleNamespace(
                model=graph or loaded.model, text=loaded.text, task=loaded.task, device=torch.device("cpu")
            )
            right["minimal pairs"] = right_pairs(stand_in, pairs)
        if rows:
            with torch.no_grad():
                right["rows"] = right_rows(loaded, graph, rows)
        for what, found in right.items():
            values = (
                what,
                "PyTorch" if folder is None else folder.name,
                f"{size / 1e6:.1f}",
                f"{100 * found.mean():.1f}",
            )
            differing = int((found != known.setdefault(what, found)).sum())
            table.append(dict(zip(COLUMNS, (*values, len(found), differing), strict=True)))
            print("  ".join(str(value) for value in table[-1].values()), flush=True)
    return table


def main() -> None:
    args = parse_arguments()
    if not (args.pairs or args.rows):
        raise SystemExit("measure_int8.py: give --pairs or --rows")
    table = measure(args)
    if args.out:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
