"""Fixtures: fairseq's commands as users run them, and a small corpus and model made once for the whole run."""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import rt_plugin  # noqa: F401  (before fairseq, which cannot be imported otherwise from Python 3.14 on)
import warm

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE = REPOSITORY / "examples" / "quickstart"

TRAINING = (
    *("--user-dir", "rt_plugin", "--task", "rt_masked_lm", "--criterion", "rt_masked_lm", "--cpu"),
    *("--arch", "recurrent_roberta_tiny", "--optimizer", "adam", "--lr", "1e-3", "--lr-scheduler", "inverse_sqrt"),
    *("--warmup-updates", "4", "--batch-size", "8", "--tokens-per-sample", "48", "--sample-break-mode", "complete_doc"),
    *(
        "--max-update",
        "8",
        "--no-epoch-checkpoints",
        "--num-workers",
        "0",
        "--log-format",
        "json",
        "--log-interval",
        "4",
    ),
)


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
# One thread: tests run side by side, and the last bits of a training depend on the number of threads.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


FORKS = warm.Forks(ENVIRONMENT)


def run_command(name, *arguments, cwd=REPOSITORY, ok=True, cold=False, **environment):
    """Run one of the environment's commands; returns the completed process, with stdout and stderr as text.

    Args:
        cold: as a program of its own, from its first import on, and not in a fork of a process that has imported
            fairseq. So it is where variables of the environment are given, which imports may read.
    """
    words = warm.command_words(name, *arguments)
    if name in warm.COMMANDS and not (cold or environment):
        (result,) = FORKS.run(words, cwd=cwd, timeout=300)
    else:
        environment = {**ENVIRONMENT, **environment}
        result = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    if ok and result.returncode:
        pytest.fail(f"{name} ended with {result.returncode}:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result


def user_error(result) -> str:
    """The one line that a failed command ends with; fails the test where a traceback is shown."""
    assert result.returncode == 1, result.stdout[-2000:] + result.stderr[-2000:]
    assert "Traceback" not in result.stdout + result.stderr, result.stderr[-3000:]
    last = result.stderr.rstrip().splitlines()[-1]
    assert last.startswith("rt_plugin: error: "), result.stderr[-2000:]
    return last


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_two(command: str, *arguments) -> str:
    """Run one of fairseq's commands as two processes that talk through gloo; returns all the first one printed."""
    several = (
        *("--distributed-world-size", "2", "--distributed-no-spawn", "--distributed-backend", "gloo"),
        *("--distributed-init-method", f"tcp://127.0.0.1:{free_port()}"),
    )
    words = warm.command_words(command, *arguments, *several)
    both = [[*words, "--distributed-rank", str(rank)] for rank in (0, 1)]
    results = FORKS.run(*both, cwd=REPOSITORY, timeout=300)
    for result in results:
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return results[0].stdout + results[0].stderr


def sample_rows(split: str, count: int) -> list[list[str]]:
    """Header and `count` rows (index, question, sentence, label) of the shipped QNLI sample; split: train or dev."""
    lines = (SAMPLE / "QNLI" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines[: count + 1]]


def write_tsv(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def prepare_glue(glue_dir: Path, model: Path, task: str) -> Path:
    """Prepare one task in GLUE_DIR/out; returns its folder."""
    from rt_plugin.glue.prepare import main

    assert main([str(glue_dir), str(glue_dir / "out"), "--model", str(model), "--tasks", task]) == 0
    return glue_dir / "out" / task


@pytest.fixture(scope="session")
def glue_dir(tokenizer_folder, tmp_path_factory):
    """Official layouts over pairs of the QNLI sample: QNLI, STS-B and MNLI with train, dev and test sets; and, prepared
    in the folder `out`, the same."""
    folder = tmp_path_factory.mktemp("glue")
    names = ("entailment", "neutral", "contradiction")
    for split, count in (("train", 64), ("dev", 30), ("test", 20)):
        header, *rows = sample_rows("train" if split == "train" else "dev", count)
        labelled = split != "test"
        write_tsv(folder / "QNLI" / f"{split}.tsv", [row[: 3 + labelled] for row in (header, *rows)])
        scores = [(row[1], row[2], f"{i % 6}.0") for i, row in enumerate(rows)]
        header = ("sentence1", "sentence2", "score")
        write_tsv(folder / "STS-B" / f"{split}.tsv", [row[: 2 + labelled] for row in (header, *scores)])
        labels = [(row[1], row[2], names[i % 3]) for i, row in enumerate(rows)]
        header = ("sentence1", "sentence2", "gold_label")
        for suffix in [""] if split == "train" else ["_matched", "_mismatched"]:
            part = labels[10:] if suffix == "_mismatched" else labels
            write_tsv(folder / "MNLI" / f"{split}{suffix}.tsv", [row[: 2 + labelled] for row in (header, *part)])
    for task in ("QNLI", "STS-B", "MNLI"):
        prepare_glue(folder, tokenizer_folder, task)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A sentencepiece model of 800 pieces with its dictionary, trained on the head of the shipped sample."""
    from rt_plugin.text.train import train_sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    lines = (SAMPLE / "train.txt").read_text(encoding="utf-8").splitlines()
    (folder / "train.txt").write_text("\n".join(lines[:1500]) + "\n", encoding="utf-8")
    (folder / "valid.txt").write_text("\n".join(lines[1500:1650]) + "\n", encoding="utf-8")
    train_sentencepiece([folder / "train.txt"], folder, 800, "moses", "en")
    return folder


@pytest.fixture(scope="session")
def data_bin(tokenizer_folder, tmp_path_factory):
    """A data folder as fairseq-preprocess writes it, with the tokenizer beside."""
    from rt_plugin.text.encode_file import encode_file
    from rt_plugin.text.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("data") / "bin"
    tokenizer = Tokenizer.load(tokenizer_folder)
    for split in ("train", "valid"):
        encode_file(tokenizer, tokenizer_folder / f"{split}.txt", tokenizer_folder / f"{split}.pieces")
    run_command(
        "fairseq-preprocess",
        *("--only-source", "--srcdict", tokenizer_folder / "dict.txt", "--destdir", folder),
        *("--trainpref", tokenizer_folder / "train.pieces", "--validpref", tokenizer_folder / "valid.pieces"),
    )
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def pretrained(data_bin, tmp_path_factory):
    """The --save-dir of a `recurrent_roberta_tiny` after 8 updates."""
    folder = tmp_path_factory.mktemp("pretrained")
    run_command("fairseq-train", data_bin, *TRAINING, "--save-dir", folder)
    return folder


@pytest.fixture(scope="session")
def modules_cache(tmp_path_factory):
    """Where transformers keeps the code of folders: one place a process, as the package that it imports from is one."""
    import transformers.dynamic_module_utils as dynamic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.fixture
def fairseq_train(monkeypatch):
    """fairseq-train in this process, where repairs can be taken back; takes the words, returns the exit status."""
    from fairseq import checkpoint_utils
    from fairseq_cli.train import cli_main

    def train(*words):
        # fairseq keeps it from the training before, and writes no checkpoint_best.pt for one that ends worse.
        vars(checkpoint_utils.save_checkpoint).pop("best", None)
        monkeypatch.setattr(sys, "argv", ["fairseq-train", *map(str, words)])
        return cli_main()

    return train


@pytest.fixture
def train_here(data_bin, fairseq_train, tmp_path):
    """fairseq_train on the small corpus; returns the folder of the checkpoints."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in ENVIRONMENT
    number = itertools.count()

    def train(*options, save_dir=None, data=data_bin, validate=False):
        save_dir = save_dir or tmp_path / f"run{next(number)}"
        options = (*options, *(() if validate else ("--disable-validation",)))
        fairseq_train(data, *TRAINING[2:], "--save-dir", save_dir, *options)
        return save_dir

    yield train
    torch.set_num_threads(threads)


def rows_of_table(table: str) -> list[dict[str, str]]:
    """Heading -> cell, for each row of a Markdown table."""
    headings, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [dict(zip(headings, row, strict=True)) for row in rows]
