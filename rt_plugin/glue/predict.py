"""Predictions of fine-tuned models: for the rows of a file, or as a submission to the official server.

`rows` writes a TSV file, one line a row in the order of the input: index (from 0), prediction (a label's name, or a
score) and, for labels, its probability. The input has the task's official layout; --texts names other columns of a TSV
file with a header, or other keys of a JSON lines file. If the rows have labels, the metrics of the written predictions
are printed, too: of STS-B's clipped scores, and of COPA with one right choice a premise in its accuracy as well.

`submission` writes the zip file of the test sets of the models' tasks; a model tuned on MNLI also predicts AX.
"""

import argparse
import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rt_plugin.console import commands
from rt_plugin.console.files import check_output, writing
from rt_plugin.errors import UserError
from rt_plugin.glue.readers import Example, json_lines, read_examples, source_folder
from rt_plugin.glue.specs import BY_NAME, TASKS, GlueTask
from rt_plugin.inference.arguments import add_checkpoint
from rt_plugin.text.records import kind_of

if TYPE_CHECKING:
    from rt_plugin.glue.predictor import Predictor

BATCH_SIZE = 64


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
    if not texts and not task.texts:
        raise UserError("how many texts the model reads is not told in its folder: give their columns with --texts")
    if texts and task.texts and len(texts) != len(task.texts):
        raise UserError(f"--texts {' '.join(texts)}: {len(texts)} given, the model reads {len(task.texts)}")
    if not texts and task.reader not in ("tsv", "jsonl"):
        return task
    reader = "jsonl" if kind_of(path) == "json" else "tsv"
    return dataclasses.replace(task, reader=reader, **({"texts": tuple(texts), "headers": {}} if texts else {}))


def _examples(task: GlueTask, split: str, path: Path) -> list[Example]:
    """The rows of a file, at least one; this command leaves no broken row out."""
    examples = list(read_examples(task, split, path, advice="correct the file"))
    if not examples:
        raise UserError(f"{path}: no rows; expected some to predict")
    return examples


def predict_rows(args: argparse.Namespace) -> None:
    """The subcommand `rows`."""
    from rt_plugin.glue.predictor import Predictor, metrics_of, predictions, probabilities

    model = Predictor(args.model, args.checkpoint, args.batch_size, args.cpu)
    task = input_task(model.task, args.input, args.texts)
    examples = _examples(task, args.split, args.input)
    outputs = model.outputs(examples)
    names = predictions(task, outputs, examples)
    columns = [range(len(names)), names]
    if not task.is_regression:
        columns.append([f"{value:.4f}" for value in probabilities(task, outputs, examples)])
    header = ("index", "prediction", "probability")[: len(columns)]
    lines = ("\t".join(map(str, row)) + "\n" for row in (header, *zip(*columns, strict=True)))
    with writing(args.out) as file:
        file.write("".join(lines).encode())
    values = [f"{name} {value:.4f}" for name, value in metrics_of(task, names, examples).items()]
    print("; ".join([f"{args.out}: {len(names):,} rows", *([", ".join(values)] if values else [])]))


def write_submission(args: argparse.Namespace) -> None:
    """The subcommand `submission`."""
    from rt_plugin.glue.predictor import Predictor

    files = {}
    for folder in args.models:
        model = Predictor(folder, args.checkpoint, args.batch_size, args.cpu)
        if not model.task.submission:
            raise UserError(
                f"{folder}: the model is of {model.task.name}, which no official server takes; leave it out, or "
                "predict its rows with rt-plugin predict-glue rows"
            )
        for task in (model.task, *([BY_NAME["AX"]] if model.task.name == "MNLI" else [])):
            for name, text in submission_files(model, task, args.glue_dir):
                if name in files:
                    raise UserError(f"{folder}: a second model for {task.name}; give one model a task")
                files[name] = text
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # without the time: the same predictions, the same file
    with writing(args.out) as file:
        file.write(content.getvalue())
    print(f"{args.out}: {', '.join(files)}")
    for benchmark in dict.fromkeys(task.benchmark for task in TASKS):
        wanted = [name for task in TASKS if task.benchmark == benchmark for name in task.submission.values()]
        missing = [name for name in wanted if name not in files]
        if missing and len(missing) < len(wanted):
            rest = ", ".join(missing)
            commands.report(f"the official server of {benchmark} wants all of its files; these are missing: {rest}")


def submission_files(model: "Predictor", task: GlueTask, glue_dir: Path) -> Iterator[tuple[str, str]]:
    """(name, content) of the task's files of a submission.

    Raises:
        UserError: a test set is missing. AX, which users may not have, is passed over.
    """
    from rt_plugin.glue.predictor import predictions

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
    ids = [_idx(path, json.loads(line)) for _, line in json_lines(path)]
    candidates = len(names) // len(ids)
    for i, idx in enumerate(ids):
        own = names[i * candidates : (i + 1) * candidates]
        yield json.dumps({"idx": idx, "label": own[0] if candidates == 1 else own.index("1")})


def _multirc_lines(task: GlueTask, path: Path, names: Sequence[str]) -> Iterator[str]:
    left = iter(names)
    for _, line in json_lines(path):
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


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("predict-glue", __doc__)
    common = argparse.ArgumentParser(add_help=False)
    commands.add_version(common)
    add_checkpoint(common)
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
    check_output(args.out, getattr(args, "input", None))
    args.action(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    return commands.run("predict-glue", lambda: _predict(args))
