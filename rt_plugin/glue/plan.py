"""What a sweep is to run: one run for each task, learning rate and seed, with its command."""

import argparse
import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rt_plugin._location import USER_DIR
from rt_plugin.console import commands
from rt_plugin.console.options import check_values
from rt_plugin.errors import UserError
from rt_plugin.glue.prepared import dictionary_files, read_glue_file, task_in
from rt_plugin.glue.results import SCORE, epochs_in_log, read_dev_metrics, run_folder
from rt_plugin.glue.specs import BY_NAME, GlueTask, find_task, task_rank
from rt_plugin.model_folder.checkpoint import checkpoint_path, model_options
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import DICTIONARY_FILE, GLUE_FILE, TOKENIZER_FILE

WARMUP_SHARE = 0.06
SORTED_BATCHES = 50
_WORKED_OUT = (
    "after --: the number of updates is worked out from --epochs and --batch-size, and the learning rate's schedule "
    "from it; leave it out"
)
_REFUSED = {  # options of fairseq-train that would contradict the schedule or the record of the sweep -> why
    "--batch-size": "after --: give --batch-size before -- instead",
    "--max-sentences": "after --: give --batch-size before -- instead",
    "--max-epoch": "after --: give --epochs before -- instead",
    "--max-update": "after --: give --epochs before -- instead",
    "--lr": "after --: give --lr before -- instead",
    "--seed": "after --: give --seeds before -- instead",
    "--save-dir": "after --: give OUT before -- instead",
    "--finetune-from-model": "after --: give --model before -- instead",
    **dict.fromkeys(("--update-freq", "--max-tokens", "--total-num-update"), _WORKED_OUT),
}


@dataclass(frozen=True)
class PlannedRun:
    """One fine-tuning.

    Attributes:
        task, lr, seed: which one.
        folder: its --save-dir.
        command: fairseq-train and its arguments.
        epochs: that it shall run.
        rows: of the train set.
        labels: label name -> rows of the dev set.
    """

    task: GlueTask
    lr: float
    seed: int
    folder: Path
    command: list[str]
    epochs: int
    rows: int
    labels: dict[str, int]

    @property
    def name(self) -> str:
        return f"{self.task.name} lr {self.lr:g} seed {self.seed}"

    def work_left(self) -> float:
        """Rows that it has yet to see."""
        return self.rows * max(0.0, self.epochs - self.epochs_done())

    def epochs_done(self) -> float:
        """With the part of the present one."""
        evaluated = max((entry["epoch"] for entry in read_dev_metrics(self.folder)), default=0)
        return max(evaluated, epochs_in_log(self.folder))


def plan(args: argparse.Namespace) -> list[PlannedRun]:
    """The runs of the command line, in the order of the CSV.

    Raises:
        UserError: data or checkpoint are missing or do not belong together, or an option cannot stand after `--`.
    """
    commands.refuse_options(args.fairseq_options, _REFUSED)
    check_values({"lr": list(args.lr), "seeds": list(args.seeds)})
    model = model_options(checkpoint_path(args.model, args.checkpoint))
    tasks = chosen_tasks(args.data, args.tasks)
    for task in tasks:
        check_tokenizer(args.data / task.name, args.model)
    return [
        plan_run(args, task, lr, seed, model)
        for task, lr, seed in itertools.product(tasks, sorted(set(args.lr)), sorted(set(args.seeds)))
    ]


def check_tokenizer(data: Path, model: Path) -> None:
    """Refuse a prepared task whose token ids mean other pieces than the model's.

    Raises:
        UserError: it is one.
    """
    pairs = {
        DICTIONARY_FILE: (dictionary_files(data)[0], lambda path: load_dictionary(path).symbols),
        TOKENIZER_FILE: (data / TOKENIZER_FILE, Path.read_bytes),
    }
    for name, (there, read) in pairs.items():
        if there.is_file() and (model / name).is_file() and read(there) != read(model / name):
            raise UserError(
                f"{data}: was prepared with another {name} than that in {model}, so its token ids mean other pieces; "
                f"prepare it again: rt-plugin prepare-glue --model {model}"
            )


def plan_run(args: argparse.Namespace, task: GlueTask, lr: float, seed: int, model: list[str]) -> PlannedRun:
    """One run with its command; `model`: the options that name the architecture."""
    data = args.data / task.name
    folder = run_folder(args.out, task.name, lr, seed)
    splits = read_glue_file(data)["splits"]
    rows = splits["train"]["rows"]
    command = [
        *("fairseq-train", str(data), "--user-dir", user_dir(), "--task", "rt_glue", "--criterion", "rt_glue", *model),
        *("--finetune-from-model", str(checkpoint_path(args.model, args.checkpoint))),
        *("--save-dir", str(folder), "--seed", str(seed)),
        *hyperparameters(lr, rows, args.epochs, args.batch_size),
        *("--best-checkpoint-metric", SCORE, "--maximize-best-checkpoint-metric"),
        *("--valid-subset", ",".join(split for split in splits if split.startswith("valid"))),
        *("--no-epoch-checkpoints", "--log-format", "json", "--log-interval", "50", "--num-workers", "0"),
        *(("--distributed-world-size", "1") if args.gpus else ("--cpu",)),  # by hand, too, where more GPUs are seen
        *args.fairseq_options,
    ]
    return PlannedRun(task, lr, seed, folder, command, args.epochs, rows, splits["valid"]["labels"])


def chosen_tasks(data: Path, names: Sequence[str] | None) -> list[GlueTask]:
    """The named tasks, or all with a train and a dev set that DATA holds, in the order of the task table.

    Raises:
        UserError: DATA or the folder of a named task is missing, or no task is there.
    """
    there = sorted(path.parent.name for path in data.glob(f"*/{GLUE_FILE}"))
    wanted = names or [name for name in (*BY_NAME, *there) if name in there]
    prepared = {name: read_glue_file(data / name) for name in wanted}
    found = [name for name in wanted if {"train", "valid"} <= set((prepared[name] or {}).get("splits", ()))]
    if names and (missing := [name for name in names if name not in found]):
        if prepared[missing[0]] is None:
            find_task(missing[0], [name for name in there if name not in BY_NAME])  # a mistyped name is said first
        raise UserError(
            f"{data / missing[0]}: no prepared train and dev set of {missing[0]} there; "
            "prepare them with rt-plugin prepare-glue"
        )
    if not found:
        raise UserError(f"{data}: no prepared task there; expected the OUT folder of rt-plugin prepare-glue")
    tasks = {name: BY_NAME.get(name) or task_in(prepared[name]) for name in found}
    return sorted(tasks.values(), key=lambda task: task_rank(task.name))


def hyperparameters(lr: float, rows: int, epochs: int, batch_size: int) -> list[str]:
    """The options that the literature's recipe needs (see `rt_plugin.glue.finetune`)."""
    updates = -(-rows // batch_size) * epochs
    return [
        *("--lr", f"{lr:g}", "--batch-size", str(batch_size), "--required-batch-size-multiple", "1"),
        *("--group-by-length", str(SORTED_BATCHES * batch_size)),
        *("--max-epoch", str(epochs), "--lr-scheduler", "polynomial_decay"),
        *("--warmup-updates", str(round(WARMUP_SHARE * updates)), "--total-num-update", str(updates)),
        *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--adam-eps", "1e-6", "--weight-decay", "0.1"),
        *("--clip-norm", "0", "--dropout", "0.1", "--attention-dropout", "0.1"),
    ]


def user_dir() -> str:
    """The plugin's folder, as short as it can be written from here."""
    with contextlib.suppress(ValueError):
        return str(USER_DIR.relative_to(Path.cwd()))
    return str(USER_DIR)
