"""Predictions of fine-tuned models: for the rows of a file, or as a submission to the official server.

`rows` writes a TSV file, one line a row in the order of the input: index (from 0), prediction (a label's name, or a
score) and, for labels, the probability. The input has the task's official layout; --texts names other columns of a TSV
file with a header, or other keys of a JSON lines file. If the rows have labels, the metrics are printed, too.

`submission` writes the zip file of the test sets of the models' tasks; a model tuned on MNLI also predicts AX.
"""

import argparse
import dataclasses
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq.data import ListDataset

from rt_plugin import hub
from rt_plugin.console import commands
from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.glue import metrics as glue_metrics
from rt_plugin.glue.dataset import GlueDataset
from rt_plugin.glue.prepare import TextTools, source_folder
from rt_plugin.glue.readers import Example, read_examples
from rt_plugin.glue.specs import BY_NAME, TASKS, GlueTask
from rt_plugin.model_folder.files import DICTIONARY_FILE
from rt_plugin.text.raw import read_lines

BATCH_SIZE = 64
_SECONDS_BETWEEN_PROGRESS = 5.0


class Predictor:
    """A fine-tuned model folder, ready to predict.

    Args:
        folder: the --save-dir of a fine-tuning with the task `rt_glue`.
        checkpoint: the name of a checkpoint in it.
        gpu: run on the first GPU instead of the CPU.
        batch_size: rows at a time; it changes the speed, not the predictions.

    Raises:
        UserError: a file is missing, or the model is not fine-tuned.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: str = "checkpoint_best.pt",
        gpu: bool = False,
        batch_size: int = BATCH_SIZE,
    ):
        loaded = hub.from_pretrained(str(folder), checkpoint)
        if not hasattr(loaded.task, "glue_task"):
            raise UserError(
                f"{folder}: {checkpoint} is not fine-tuned; give the --save-dir of a fine-tuning with rt_glue"
            )
        self.task: GlueTask = loaded.task.glue_task
        self._loaded = loaded.cuda() if gpu else loaded
        self._tools = TextTools(loaded.text, loaded.task.source_dictionary, folder / DICTIONARY_FILE)
        self._batch_size = batch_size

    def outputs(self, examples: Sequence[Example], report: Callable[[str], None] = commands.report) -> np.ndarray:
        """(N, C) logits in the order of the examples; (N, 1) scores on the task's own scale for regression.

        Args:
            report: takes lines of progress.
        """
        dataset = self._dataset(examples)
        order = dataset.ordered_indices()  # of similar length together: less padding
        outputs = np.zeros((len(examples), self.task.num_classes))
        last = time.monotonic()
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            outputs[rows] = self._forward(dataset.collater([dataset[row] for row in rows]))
            if time.monotonic() - last > _SECONDS_BETWEEN_PROGRESS:
                last = time.monotonic()
                report(f"  {start + len(rows):,} of {len(order):,} rows")
        return self._loaded.task.to_score(outputs) if self.task.is_regression else outputs

    def _dataset(self, examples: Sequence[Example]) -> GlueDataset:
        texts = list(zip(*(example.texts for example in examples), strict=True))
        inputs = []
        for column in texts:
            tokens = [self._tools.encode(text) for text in column]
            inputs.append(ListDataset(tokens, np.array([len(ids) for ids in tokens])))
        return GlueDataset(inputs, self._tools.dictionary, self._loaded.task.max_positions())

    def _forward(self, batch: dict) -> np.ndarray:
        inputs = {name: value.to(self._loaded.device) for name, value in batch["net_input"].items()}
        head = self._loaded.task.cfg.classification_head_name
        with torch.no_grad():
            logits, _ = self._loaded.model(**inputs, features_only=True, classification_head_name=head)
        return logits.float().cpu().numpy()


def predictions(task: GlueTask, outputs: np.ndarray, examples: Sequence[Example]) -> list[str]:
    """Label names, or scores within the task's range; of the candidates of one COPA premise exactly one is "1"."""
    if task.is_regression:
        return [f"{score:.3f}" for score in np.clip(outputs[:, 0], *task.score_range)]
    classes = outputs.argmax(axis=1)
    if "choice_accuracy" in task.metrics:
        margins = outputs[:, 1] - outputs[:, 0]
        groups = np.array([example.group for example in examples])
        classes = np.zeros(len(examples), dtype=int)
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            classes[rows[margins[rows].argmax()]] = 1
    return [task.labels[c] for c in classes]


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """(N,) the probability of the most probable class."""
    return torch.from_numpy(outputs).softmax(dim=1).amax(dim=1).numpy()


def input_task(task: GlueTask, path: Path, texts: Sequence[str] | None) -> GlueTask:
    """The task as its rows stand in a file: JSON lines or TSV by the file's name, with other columns if given.

    Raises:
        UserError: not as many columns as the model has texts, or the task's rows cannot stand alone.
    """
    if texts and task.group:
        raise UserError(
            f"--texts {' '.join(texts)}: rows of {task.name} belong together by {task.group}, which columns do not "
            "tell; write them in the official layout and leave --texts out"
        )
    if texts and len(texts) != len(task.texts):
        raise UserError(f"--texts {' '.join(texts)}: {len(texts)} given, the model reads {len(task.texts)}")
    if not texts and task.reader not in ("tsv", "jsonl"):
        return task
    reader = "jsonl" if path.suffix in (".jsonl", ".json") else "tsv"
    return dataclasses.replace(task, reader=reader, **({"texts": tuple(texts), "headers": {}} if texts else {}))


def _examples(task: GlueTask, split: str, path: Path) -> list[Example]:
    """The rows of a file, at least one; this command leaves no broken row out."""
    examples = list(read_examples(task, split, path, advice="correct the file"))
    if not examples:
        raise UserError(f"{path}: no rows; expected some to predict")
    return examples


def predict_rows(args: argparse.Namespace) -> None:
    """The subcommand `rows`."""
    model = Predictor(args.model, args.checkpoint, _on_gpu(args), args.batch_size)
    task = input_task(model.task, args.input, args.texts)
    examples = _examples(task, args.split, args.input)
    outputs = model.outputs(examples)
    names = predictions(task, outputs, examples)
    columns = [range(len(names)), names]
    if not task.is_regression:
        columns.append([f"{value:.4f}" for value in probabilities(outputs)])
    header = ("index", "prediction", "probability")[: len(columns)]
    lines = ("\t".join(map(str, row)) + "\n" for row in (header, *zip(*columns, strict=True)))
    _write(args.out, "".join(lines).encode())
    print(f"{args.out}: {len(names):,} rows{_metrics(task, outputs, examples)}")


def _metrics(task: GlueTask, outputs: np.ndarray, examples: Sequence[Example]) -> str:
    if any(example.label is None for example in examples):
        return ""
    labels = np.array([example.label for example in examples])
    groups = np.array([example.group for example in examples]) if task.group else None
    values = glue_metrics.evaluate(task.metrics, outputs, labels, groups)
    return "; " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def write_submission(args: argparse.Namespace) -> None:
    """The subcommand `submission`."""
    files = {}
    for folder in args.models:
        model = Predictor(folder, args.checkpoint, _on_gpu(args), args.batch_size)
        for task in (model.task, *([BY_NAME["AX"]] if model.task.name == "MNLI" else [])):
            for name, text in submission_files(model, task, args.glue_dir):
                if name in files:
                    raise UserError(f"{folder}: a second model for {task.name}; give one model a task")
                files[name] = text
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # without the time: the same predictions, the same file
    _write(args.out, content.getvalue())
    print(f"{args.out}: {', '.join(files)}")
    missing = [name for task in TASKS for name in task.submission.values() if name not in files]
    commands.report(f"for the official servers, which want all of theirs, these are missing: {', '.join(missing)}")


def submission_files(model: Predictor, task: GlueTask, glue_dir: Path) -> Iterator[tuple[str, str]]:
    """(name, content) of the task's files of a submission.

    Raises:
        UserError: a test set is missing. AX, which users may not have, is passed over.
    """
    folder = source_folder(task, glue_dir)
    for split, name in task.submission.items():
        path = (folder or glue_dir / task.name) / task.files[split]
        if not path.is_file():
            if task.name == "AX":
                commands.report(f"no {path}, so {name} is left out")
                continue
            raise UserError(f"{path}: no such file; expected the official {split} set of {task.name}")
        commands.report(f"{task.name}: {path}")
        examples = _examples(task, split, path)
        names = predictions(task, model.outputs(examples), examples)
        yield name, "".join(f"{line}\n" for line in SUBMISSION_FORMATS[task.submission_format](task, path, names))


def _tsv_lines(task: GlueTask, path: Path, names: Sequence[str]) -> Iterator[str]:
    yield "index\tprediction"
    for index, name in enumerate(names):
        yield f"{index}\t{name}"


def _jsonl_lines(task: GlueTask, path: Path, names: Sequence[str]) -> Iterator[str]:
    """The ids are those of the source; of several candidates a line (COPA), the number of the chosen one is wanted."""
    ids = [_idx(path, json.loads(line)) for line in read_lines(path)]
    candidates = len(names) // len(ids)
    for i, idx in enumerate(ids):
        own = names[i * candidates : (i + 1) * candidates]
        yield json.dumps({"idx": idx, "label": own[0] if candidates == 1 else own.index("1")})


def _multirc_lines(task: GlueTask, path: Path, names: Sequence[str]) -> Iterator[str]:
    left = iter(names)
    for line in read_lines(path):
        row = json.loads(line)
        questions = [
            {
                "idx": _idx(path, question),
                "answers": [{"idx": _idx(path, answer), "label": int(next(left))} for answer in question["answers"]],
            }
            for question in row["passage"]["questions"]
        ]
        yield json.dumps({"idx": _idx(path, row), "passage": {"questions": questions}})


def _idx(path: Path, row: dict) -> int:
    if "idx" not in row:
        raise UserError(f"{path}: found the keys {', '.join(row)}, expected also 'idx'; take the official test set")
    return row["idx"]


SUBMISSION_FORMATS = {"tsv": _tsv_lines, "jsonl": _jsonl_lines, "multirc": _multirc_lines}


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot write the file ({error.strerror})") from None


def _on_gpu(args: argparse.Namespace) -> bool:
    return not args.cpu and torch.cuda.is_available()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("predict-glue", __doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--checkpoint", default="checkpoint_best.pt", metavar="FILE", help="default: %(default)s")
    common.add_argument(
        "--batch-size", type=commands.positive, default=BATCH_SIZE, metavar="ROWS", help="default: %(default)s"
    )
    common.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    subcommands = parser.add_subparsers(required=True)
    rows = subcommands.add_parser("rows", parents=[common], help="predict the rows of a file")
    rows.add_argument("model", metavar="MODEL", type=Path, help="folder of a fine-tuned model")
    rows.add_argument("input", metavar="INPUT", type=Path, help="TSV or JSON lines")
    rows.add_argument("out", metavar="OUT", type=Path, help="TSV to write")
    rows.add_argument(
        "--texts", nargs="+", metavar="COLUMN", help="of the one or two texts (default: the official names)"
    )
    rows.add_argument(
        "--split", default="test", help="layout of which official file, CoLA's differ (default: %(default)s)"
    )
    rows.set_defaults(action=predict_rows)
    submission = subcommands.add_parser("submission", parents=[common], help="predict the official test sets")
    submission.add_argument("glue_dir", metavar="GLUE_DIR", type=Path, help="folder with the official files")
    submission.add_argument("out", metavar="OUT", type=Path, help="zip file to write")
    submission.add_argument(
        "models", metavar="MODEL", nargs="+", type=Path, help="folders of fine-tuned models, one a task"
    )
    submission.set_defaults(action=write_submission)
    return parser.parse_args(argv)


def _predict(args: argparse.Namespace) -> None:
    if args.out.is_dir():  # found now, and not after minutes of predictions
        raise UserError(f"{args.out}: is a folder; give the name of the file to write")
    args.action(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("predict-glue", lambda: _predict(args))
