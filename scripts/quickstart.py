#!/usr/bin/env python
"""The whole path on the sample data: tokenizer, pretraining, fine-tuning, use. Started by scripts/quickstart.sh.

Every command is shown before it runs and can be repeated by hand from the folder of the checkout. Results go to
runs/quickstart-<size>/. A run that was stopped continues where it was when it is started again.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from quickstart_report import write_report

import checkout
from rt_plugin.console.files import last_line
from rt_plugin.console.progress import duration
from rt_plugin.errors import UserError
from rt_plugin.pretrain.fairseq import command_line
from rt_plugin.pretrain.log import read_log

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = Path("examples/quickstart")
LOG_INTERVAL = 20  # updates
VALIDATE_INTERVAL = 100  # updates; a checkpoint each time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What depends on the size of the model; batches are in sequences, lengths in tokens."""

    size: str
    vocab_size: int
    tokens_per_sample: int
    batch: int
    updates: int
    learning_rate: float
    finetune_batch: int
    finetune_updates: int
    finetune_learning_rate: float


# tiny fits into ten minutes on two cores; mini and small are guesses from it, for machines with more. With a learning
# rate of 4e-3 tiny learned faster after 80 updates of warm-up, but after 60 not at all: 1.5e-3 keeps clear of that.
SETTINGS = {
    "tiny": Settings("tiny", 8000, 128, 32, 600, 1.5e-3, 32, 376, 5e-4),
    "mini": Settings("mini", 8000, 128, 64, 3000, 1e-3, 32, 564, 2e-4),
    "small": Settings("small", 8000, 128, 128, 5000, 5e-4, 32, 564, 1e-4),
}
SHORT = {"updates": 20, "finetune_updates": 10}
MODELS = ("recurrent_roberta", "roberta")


class StageError(Exception):
    """A command failed; the message says which one and where its output is."""


def parse_arguments() -> argparse.Namespace:
    parser = checkout.parser(__doc__, prog="quickstart.sh")
    parser.add_argument("--size", choices=SETTINGS, default="tiny", help="size of the model (default: %(default)s)")
    parser.add_argument("--gpu", action="store_true", help="train on a CUDA device, in half precision")
    parser.add_argument("--compare", action="store_true", help="also train the roberta of the same size, for the table")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier run of this size left; start over")
    parser.add_argument("--short", action="store_true", help="a few updates of everything, to test an installation")
    parser.add_argument("--check-options", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


class Run:
    """One run's folder and commands.

    Args:
        folder: of the results, relative to the checkout.
        settings: sizes and lengths of training.
        gpu: train on a CUDA device.
    """

    def __init__(self, folder: Path, settings: Settings, gpu: bool):
        self.folder = folder
        self.settings = settings
        self.gpu = gpu
        self.data = folder / "data-bin"
        self.tokenizer = folder / "tokenizer"
        self.pairs = folder / "glue"

    def start(self, fresh: bool) -> None:
        """Make the folder; with `fresh` empty it first, else check that it was made with the same settings.

        Raises:
            StageError: its settings differ.
        """
        if fresh:
            shutil.rmtree(self.folder, ignore_errors=True)
        path = self.folder / "settings.json"
        # the device too: a training cannot go on in another precision
        settings = json.dumps({**dataclasses.asdict(self.settings), "gpu": self.gpu}, indent=2)
        if path.exists() and path.read_text() != settings:
            raise StageError(f"{self.folder} was made with other settings; start over with --fresh")
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(settings)

    def pretrained(self, model: str) -> Path:
        return self.folder / f"pretrained-{model}"

    def finetuned(self, model: str) -> Path:
        return self.folder / f"finetuned-{model}"

    def stage(self, title: str, *commands: str, log: Path | None = None, updates: int = 0) -> None:
        """Run the commands of a stage, unless an earlier run finished it.

        Args:
            log: a training's log; its progress is shown in short.
            updates: of that training.
        """
        done = self.folder / "done" / title.replace(" ", "-")
        print(f"\n== {title}{': done before' if done.exists() else ''}", flush=True)
        for command in commands:
            print(f"$ {command}", flush=True)
            if not done.exists():
                run_command(command, log, updates)
        done.parent.mkdir(exist_ok=True)
        done.touch()

    def prepare_text(self) -> None:
        """Train the tokenizer, encode the text, binarise it."""
        encode = f"rt-plugin encode-text --tokenizer {self.tokenizer} {EXAMPLES}"
        self.stage(
            "train the tokenizer",
            f"rt-plugin train-tokenizer {EXAMPLES}/train.txt --folder {self.tokenizer} "
            f"--vocab-size {self.settings.vocab_size}",
        )
        self.stage(
            "encode and binarise the text",
            f"{encode}/train.txt {self.folder}/train.pieces",
            f"{encode}/valid.txt {self.folder}/valid.pieces",
            f"{fairseq_command('preprocess')} --only-source --srcdict {self.tokenizer}/dict.txt --destdir {self.data} "
            f"--trainpref {self.folder}/train.pieces --validpref {self.folder}/valid.pieces",
            f"cp {self.tokenizer}/sentencepiece.bpe.model {self.tokenizer}/text_normalization.json {self.data}",
        )
        self.stage(
            "measure the unigram perplexity",
            f"rt-plugin unigram {self.data} {self.blocks()} --out {self.folder}/unigram.json",
        )

    def prepare_pairs(self) -> None:
        """Encode the sentence pairs with the tokenizer and the dictionary of pretraining."""
        self.stage(
            "prepare the sentence pairs",
            f"rt-plugin prepare-glue {EXAMPLES} {self.pairs} --model {self.data} --tasks QNLI",
        )

    def pretrain(self, model: str) -> None:
        s = self.settings
        self.train(
            f"pretrain {model}_{s.size}",
            self.pretrained(model),
            s.updates,
            f"{self.data} --task rt_masked_lm --criterion rt_masked_lm --arch {model}_{s.size} {self.blocks()} "
            f"--batch-size {s.batch} --lr {s.learning_rate} --dropout 0 --attention-dropout 0 "
            f"--validate-interval-updates {VALIDATE_INTERVAL} --save-interval-updates {VALIDATE_INTERVAL} "
            "--keep-interval-updates 1",
        )

    def finetune(self, model: str) -> None:
        s = self.settings
        self.train(
            f"fine-tune {model}_{s.size} on QNLI",
            self.finetuned(model),
            s.finetune_updates,
            f"{self.pairs}/QNLI --task rt_glue --criterion rt_glue --arch {model}_{s.size} "
            f"--finetune-from-model {self.pretrained(model)}/checkpoint_last.pt "
            f"--batch-size {s.finetune_batch} --lr {s.finetune_learning_rate} --dropout 0.1 --attention-dropout 0.1 "
            "--best-checkpoint-metric accuracy --maximize-best-checkpoint-metric",
        )

    def train(self, title: str, save_dir: Path, updates: int, options: str) -> None:
        """Run fairseq-train; it resumes from checkpoint_last.pt in `save_dir` by itself."""
        self.stage(
            title,
            f"{fairseq_command('train')} --user-dir rt_plugin {options} --save-dir {save_dir} --no-epoch-checkpoints "
            "--optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1 "
            f"--lr-scheduler polynomial_decay --warmup-updates {updates // 6} --total-num-update {updates} "
            f"--max-update {updates} --seed 1 --log-format json --log-interval {LOG_INTERVAL} "
            + ("--fp16 --distributed-world-size 1" if self.gpu else "--cpu --num-workers 0"),
            log=log_of(save_dir),
            updates=updates,
        )

    def blocks(self) -> str:
        return f"--tokens-per-sample {self.settings.tokens_per_sample} --sample-break-mode complete_doc"


def fairseq_command(name: str) -> str:
    """How to start `fairseq-NAME`; from Python 3.14 on it cannot be called by itself."""
    return shlex.join(command_line(name))


def log_of(save_dir: Path) -> Path:
    return save_dir.with_name(save_dir.name + ".log")


def run_command(command: str, log: Path | None = None, updates: int = 0) -> None:
    """Run a command in the checkout; of a training show progress only, all else goes to its log.

    Raises:
        StageError: the command failed.
    """
    arguments = shlex.split(command)
    status = run_training(arguments, log, updates) if log else run_quietly(arguments)
    if status != 0:
        where = f": {last_line(log, 'it said nothing')} (more in {log})" if log else ""
        raise StageError(f"{arguments[0]} ended with status {status}{where}")


def run_quietly(arguments: list[str]) -> int:
    """Run a command without fairseq's log on the terminal; return its exit status."""
    return subprocess.run(arguments, check=False, env={**os.environ, "LOGLEVEL": "WARNING"}).returncode


def run_training(arguments: list[str], log: Path, updates: int) -> int:
    """Run fairseq-train, append its output to `log`, show progress; return its exit status."""
    with log.open("a", encoding="utf-8") as file, started(arguments) as process:
        for line in process.stdout:
            file.write(line)
            file.flush()
            for record in read_log([line]):
                if record["split"] != "epoch":
                    print(progress_line(record, updates), flush=True)
        return process.wait()


@contextlib.contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen]:
    """A running command, which ends with this program."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def progress_line(record: dict, updates: int) -> str:
    """One line for people: what a log record says, and how long the rest of the training will take."""
    words = [f"  {record['split']:5} update {record['update']:5}/{updates}  loss {record['loss']:.3f} bits"]
    if "perplexity" in record:
        words.append(f"perplexity {record['perplexity']:.1f}")
    if "accuracy" in record:
        words.append(f"accuracy {record['accuracy']:.1%}")
    if record.get("updates_per_second"):
        left = (updates - record["update"]) / record["updates_per_second"]
        words.append(f"about {duration(left)} left")
    return "  ".join(words)


def run_alone(args: argparse.Namespace, run: Run) -> None:
    """Take the folder for this process, and do all of it.

    Raises:
        UserError: another process has the folder.
        StageError: see `Run.start` and `run_command`.
    """
    from rt_plugin.console.locks import only_user_of  # needs what setup.sh installs

    busy = "another quickstart works there; wait for it, or stop it"
    with only_user_of(run.folder, busy, run.folder.with_suffix(".lock")):
        run_all(args, run)


def run_all(args: argparse.Namespace, run: Run) -> None:
    run.start(args.fresh)
    run.prepare_text()
    run.prepare_pairs()
    models = MODELS if args.compare else MODELS[:1]
    for model in models:
        run.pretrain(model)
        run.finetune(model)
    use = f"python {EXAMPLES}/use_models.py {run.pretrained(MODELS[0])} {run.finetuned(MODELS[0])}"
    print(f"\n== use the models\n$ {use}", flush=True)
    run_command(use)
    print("\n== results", flush=True)
    logs = {f"{m}_{run.settings.size}": (log_of(run.pretrained(m)), log_of(run.finetuned(m))) for m in models}
    write_report(run.folder, logs, EXAMPLES / "QNLI" / "dev.tsv")


def interrupt(*_) -> None:
    """Let SIGTERM do what Ctrl-C does: end the running command, then say how to go on."""
    raise KeyboardInterrupt


def prepare_process(gpu: bool) -> None:
    """Run in the checkout with this interpreter's commands first, and without threads that wait by spinning."""
    os.chdir(ROOT)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    signal.signal(signal.SIGTERM, interrupt)
    print(f"$ cd {ROOT}\n$ source {Path(sys.executable).parent / 'activate'}")
    if not gpu:
        # Where other programs want the cores, threads that spin while they wait slow a training down manyfold.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        print(f"$ export OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}")


def main() -> None:
    args = parse_arguments()
    if args.check_options:
        return
    settings = SETTINGS[args.size]
    if args.short:
        settings = dataclasses.replace(settings, **SHORT)
    run = Run(Path("runs", f"quickstart-{args.size}{'-short' if args.short else ''}"), settings, args.gpu)
    prepare_process(args.gpu)
    began = time.monotonic()
    try:
        run_alone(args, run)
    except (StageError, UserError) as error:
        sys.exit(f"quickstart.sh: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nquickstart.sh: stopped; the same command continues from here")
    print(f"quickstart.sh: done in {(time.monotonic() - began) / 60:.1f} minutes; results in {run.folder}")


if __name__ == "__main__":
    main()
