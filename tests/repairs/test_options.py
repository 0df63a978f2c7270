"""Options that cannot be meant end in one line, before anything is trained; the bad ones stand in one list."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from fairseq.tasks import FairseqTask

from conftest import ENVIRONMENT, REPOSITORY, TRAINING, run_command, user_error
from rt_plugin import UserError
from rt_plugin.corpus import prepare
from rt_plugin.glue import finetune
from rt_plugin.pretrain import launch, unigram
from warm import command_words

BAD = [
    (("--lr", "-1"), "--lr -1: expected a number above 0"),
    (("--weight-decay", "nan"), "--weight-decay nan: expected a number, 0 or above"),
    (("--lr", "1e-3,0"), "--lr 0: expected a number above 0"),
    (("--batch-size", "0"), "--batch-size 0: expected a whole number, 1 or above"),
    (("--max-tokens", "-5"), "--max-tokens -5: expected a whole number, 1 or above"),
    (("--num-workers", "1000"), "--num-workers 1000: expected a number from 0 to "),
    (("--max-positions", "40"), "--tokens-per-sample 48 is more than the 40 positions of the model"),
    (("--tokens-per-sample", "3"), "--tokens-per-sample 3: expected a whole number, 4 or above"),
    (("--max-tokens", "40"), "--tokens-per-sample 48 is more than --max-tokens 40: longer blocks would be left out"),
    (("--max-tokens-valid", "40"), "--tokens-per-sample 48 is more than --max-tokens-valid 40: longer blocks"),
    (("--dropout", "-1"), "--dropout -1: expected a share from 0 to below 1"),
    (("--attention-dropout", "2"), "--attention-dropout 2: expected a share from 0 to below 1"),
    (("--clip-norm", "nan"), "--clip-norm nan: expected a number, 0 or above"),
    (("--encoder-layers", "0"), "--encoder-layers 0: expected a whole number, 1 or above"),
    (("--bf16", "--fp16"), "--fp16 and --bf16: a training has one precision"),
    (("--seed", "-1"), "--seed -1: expected a whole number from 0 to 4294967295"),
    (("--update-freq", "0"), "--update-freq 0: expected a whole number, 1 or above"),
    (("--arch", "transformer_lm"), "--arch transformer_lm: --task rt_masked_lm cannot train it"),
]


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    monkeypatch.setattr(FairseqTask, "build_model", lambda *_: pytest.fail("the model is built"))


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: " ".join(value) if type(value) is tuple else "")
def test_value_that_cannot_be_meant(options, message, train_here):
    with pytest.raises(UserError) as error:
        train_here(*options)
    assert str(error.value).startswith(message)


def test_training_without_a_batch_size(data_bin, fairseq_train, tmp_path):
    at = TRAINING.index("--batch-size")
    with pytest.raises(UserError, match="neither --batch-size nor --max-tokens is given"):
        fairseq_train(data_bin, *TRAINING[2:at], *TRAINING[at + 2 :], "--save-dir", tmp_path)


@pytest.mark.parametrize("below", [False, True])
def test_save_dir_that_is_a_file(below, train_here, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    message = r"file/run: .*/file is a file; give a folder$" if below else r"file: is a file; give a folder$"
    with pytest.raises(UserError, match=message):
        train_here(save_dir=file / "run" if below else file)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "MASTER_PORT"])
def test_environment_that_is_no_number(name, train_here, monkeypatch):
    monkeypatch.setenv(name, "x")
    with pytest.raises(UserError, match=f"environment variable {name}=x: expected a whole number; unset {name}"):
        train_here()


def cut(path: Path, bytes_left: int) -> None:
    path.write_bytes(path.read_bytes()[:bytes_left])


DAMAGES = {
    "dict.txt with a broken line": (
        lambda folder: (folder / "dict.txt").write_text("word\n"),
        "dict.txt: not a fairseq dictionary",
    ),
    "short dict.txt": (
        lambda folder: (folder / "dict.txt").write_text("".join(f"word{i} 1\n" for i in range(300))),
        "train.bin: found token id ",
    ),
    "cut train.idx": (lambda folder: cut(folder / "train.idx", 500), "train.idx has 500 bytes, expected "),
    "train.idx without its header": (lambda folder: cut(folder / "train.idx", 12), "train.idx has 12 bytes, expected "),
    "cut train.bin": (lambda folder: cut(folder / "train.bin", 500), "train.bin has 500 bytes, train.idx tells of "),
    "empty train.bin": (lambda folder: cut(folder / "train.bin", 0), "train.bin has 0 bytes, train.idx tells of "),
    "longer train.bin": (
        lambda folder: (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes() + b"12"),
        "train.idx tells of ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data(damage, data_bin, tmp_path, monkeypatch):
    from fairseq.tasks import setup_task
    from omegaconf import OmegaConf

    from rt_plugin.tasks.rt_masked_lm import RtMaskedLMConfig

    folder = shutil.copytree(data_bin, tmp_path / "data")
    (folder / "sentencepiece.bpe.model").unlink()  # which would tell of another dictionary
    do, message = DAMAGES[damage]
    do(folder)
    with pytest.raises(UserError) as error:
        options = {"_name": "rt_masked_lm", "data": str(folder), "sample_break_mode": "complete_doc", "seed": 1}
        task = setup_task(OmegaConf.merge(OmegaConf.structured(RtMaskedLMConfig), options, {"tokens_per_sample": 48}))
        task.load_dataset("train")
    assert message in str(error.value)


def test_verbs_refuse_the_same_values(tmp_path, capsys):
    pretrain = ("data", "--recipe", "tiny", "--save-dir", "run", "--print-only")
    sweep = ("data", "out", "--model", "model", "--gpus")
    corpus = ("text.txt", "--valid", "valid.txt", "--out", tmp_path / "out", "--vocab-size", "800")
    for main, words, message in (
        (launch.main, (*pretrain, "--learning-rate", "nan"), "--learning-rate nan: expected a number above 0"),
        (launch.main, (*pretrain, "--dropout", "2"), "--dropout 2: expected a share from 0 to below 1"),
        (launch.main, (*pretrain, "--seed", "-1"), "--seed -1: expected a whole number from 0"),
        (launch.main, (*pretrain, "--warmup-updates", "-1"), "--warmup-updates -1: expected a number, 0 or above"),
        (finetune.main, (*sweep, "--lr", "1e-3", "nan"), "--lr nan: expected a number above 0"),
        (finetune.main, (*sweep, "--lr", "-1"), "--lr -1: expected a number above 0"),
        (finetune.main, (*sweep, "--seeds", "-1"), "--seeds -1: expected a whole number from 0"),
        (unigram.main, ("data", "--tokens-per-sample", "1"), "--tokens-per-sample 1: expected a whole number, 4 or"),
        (prepare.main, (*corpus, "--workers", "1000"), "--workers 1000: expected a number from 0 to "),
    ):
        assert main([str(word) for word in words]) == 1, words
        (line,) = capsys.readouterr().err.splitlines()
        assert f"error: {message}" in line


def test_a_command_ends_in_one_line(data_bin, tmp_path):
    result = run_command(
        "fairseq-train", data_bin, *TRAINING, "--dropout", "nan", "--save-dir", tmp_path / "run", ok=False
    )
    assert user_error(result) == "rt_plugin: error: --dropout nan: expected a share from 0 to below 1"
    assert not (tmp_path / "run").exists()


def test_ctrl_c_is_one_line(data_bin, tmp_path):
    words = (
        "fairseq-train",
        data_bin,
        *TRAINING,
        "--save-dir",
        tmp_path,
        "--log-interval",
        "1",
        "--max-update",
        "9999",
    )
    process = subprocess.Popen(
        command_words(*words),
        cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background have it ignored
    )  # fmt: skip
    next(line for line in process.stdout if "| train_inner |" in line)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "rt_plugin: interrupted; the same command resumes"
