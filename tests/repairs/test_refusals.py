"""What is refused; without the refusal it goes wrong silently, or in a traceback."""

import argparse
import os
import shutil
import tarfile
import tempfile

import pytest
import torch
from fairseq import checkpoint_utils, file_utils, hub_utils
from fairseq.dataclass.configs import CheckpointConfig, FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from fairseq_cli import train as train_command
from omegaconf import OmegaConf

import rt_plugin
from conftest import TRAINING, run_command, user_error
from repair_cases import as_exception, with_and_without
from rt_plugin import UserError
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder.checkpoint import refuse_another_function


@pytest.mark.parametrize("option", ["restore_file", "finetune_from_model"])
def test_missing_start_checkpoint(option, tmp_path):
    """Without the repair the trainer is reached: --restore-file would train from scratch."""
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path)))
    cfg[option] = str(tmp_path / "nowhere.pt")

    def load():
        with pytest.raises(UserError, match=r"nowhere\.pt: no such file"):
            checkpoint_utils.load_checkpoint(cfg, argparse.Namespace(checkpoint_suffix="", task=None))

    error = with_and_without("missing_start_checkpoint", load)
    if option == "restore_file":
        assert "load_checkpoint" in str(error)  # the trainer's


@pytest.mark.parametrize("option", [("--recurrence-direction", "alternate"), ("--recurrence-step-size", "2")], ids=str)
def test_other_recurrence_than_the_checkpoint_is_refused(option, pretrained, data_bin, tmp_path):
    """The weights fit, so nothing else would notice."""
    arguments = (data_bin, *TRAINING, "--save-dir", tmp_path, *option)
    start = ("--finetune-from-model", pretrained / "checkpoint_last.pt")
    error = user_error(run_command("fairseq-train", *arguments, *start, ok=False))
    assert f"this run has {' '.join(option)}" in error
    assert "add --recurrence-" in error


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, {}, "each would train by itself"),
        (
            {},
            {"distributed_world_size": 2, "distributed_init_method": "tcp://localhost:1"},
            "fairseq would start no process",
        ),
    ],
)
def test_launches_without_training(environment, options, message, monkeypatch):
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.distributed_training.distributed_world_size = 1
    cfg.distributed_training.update(options)
    cfg.common.cpu = True
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    trained = []

    def launch():
        with pytest.raises(UserError, match=message):
            distributed_utils.call_main(cfg, lambda cfg: trained.append(1))

    assert "DID NOT RAISE" in str(with_and_without("launches_without_training", lambda: as_exception(launch)))


def test_a_hydra_launch_is_checked_when_the_trainer_is_made(monkeypatch):
    """fairseq-hydra-train has called call_main before it imports the plugin."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="each would train by itself"):
        Trainer(OmegaConf.structured(FairseqConfig()), None, None, None)


def test_no_checkpoint_of_broken_weights(train_here, monkeypatch):
    """As after an update that overflowed the weights themselves, right before a checkpoint is due."""
    optimizer_step = FairseqTask.optimizer_step

    def break_weights_at_4(self, optimizer, model, update_num):
        optimizer_step(self, optimizer, model, update_num)
        if update_num == 3:
            model.encoder.lm_head.bias.data[3] = float("nan")

    monkeypatch.setattr(FairseqTask, "optimizer_step", break_weights_at_4)
    message = (
        r"^update 4: 1 weights are not finite \(encoder.lm_head.bias .* checkpoint_1_4.pt is not .*\(checkpoint_1_2"
    )

    def train():
        with pytest.raises(UserError, match=message):
            train_here("--max-update", "4", "--save-interval-updates", "2")

    assert "DID NOT RAISE" in str(with_and_without("no_checkpoint_of_broken_weights", lambda: as_exception(train)))


def test_fully_sharded_without_means(train_here, monkeypatch):
    def train():
        with pytest.raises(UserError, match="fully_sharded needs a GPU and the package fairscale"):
            train_here("--ddp-backend", "fully_sharded")

    assert "Cannot find FullyShardedDataParallel" in str(with_and_without("fully_sharded_without_means", train))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="fully_sharded needs the package fairscale"):
        train_command.fsdp_enable_wrap(None)


def test_another_recurrence(tmp_path):
    """The model itself knows what is another one; without the refusal the trainer is reached."""
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path)))
    (tmp_path / "checkpoint_last.pt").touch()

    class Model:
        def refuse_another_recurrence(self, checkpoint):
            raise UserError(f"{checkpoint} is another")

    def load():
        with pytest.raises(UserError, match=r"checkpoint_last\.pt is another"):
            checkpoint_utils.load_checkpoint(cfg, argparse.Namespace(checkpoint_suffix="", task=None, get_model=Model))

    assert "load_checkpoint" in str(with_and_without("another_recurrence", load))


def test_another_tokenizer(tmp_path, monkeypatch):
    """The task itself knows its files; without the refusal the trainer is reached. More: attacks/test_checksums.py."""
    cfg = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path)))
    path = tmp_path / "checkpoint_last.pt"
    torch.save({"model": {}, "cfg": None, "task_state": {"sha256": {"dict.txt": "0" * 64}}}, path)

    class Task:
        def refuse_other_companions(self, digests, checkpoint, labels):
            raise UserError(f"{checkpoint} is of another tokenizer: {digests}")

    def load():
        with pytest.raises(UserError, match=r"checkpoint_last\.pt is of another tokenizer: .*000"):
            trainer = argparse.Namespace(checkpoint_suffix="", task=Task(), get_model=object)
            checkpoint_utils.load_checkpoint(cfg, trainer)

    assert "load_checkpoint" in str(with_and_without("another_tokenizer", load))


def test_options_out_of_range(train_here, monkeypatch):
    """Without the refusal a negative learning rate is trained with; all the others are in test_options.py."""
    monkeypatch.setattr(FairseqTask, "build_model", lambda *_: pytest.fail("the model is built"))

    def train():
        with pytest.raises(UserError, match="--lr -1"):
            train_here("--lr", "-1")

    assert "model is built" in str(with_and_without("options_out_of_range", lambda: as_exception(train)))


@pytest.mark.parametrize("format_of_today", [True, False])
def test_another_function_of_weights_that_fit(format_of_today, train_here, pretrained, tmp_path):
    """Resuming with other heads, or another activation, was accepted."""
    start = tmp_path / "start.pt"
    state = torch.load(pretrained / "checkpoint_last.pt", weights_only=True)
    torch.save(state, start, _use_new_zipfile_serialization=format_of_today)
    for options, line in (
        (("--encoder-attention-heads", "4"), "--encoder-attention-heads 2, this run has --encoder-attention-heads 4"),
        (("--activation-fn", "relu"), "--activation-fn gelu, this run has --activation-fn relu"),
        (("--encoder-normalize-before",), "no --encoder-normalize-before, this run has --encoder-normalize-before"),
        (("--recurrence-step-size", "2"), "--recurrence-step-size 1, this run has --recurrence-step-size 2"),
        (("--untie-weights-roberta",), "no --untie-weights-roberta, this run has --untie-weights-roberta"),
    ):
        with pytest.raises(UserError, match=rf"start\.pt was trained with {line}"):
            train_here("--restore-file", start, *options)


def test_another_pooler_of_a_fine_tuned_head(pretrained, tmp_path):
    """What pools matters to weights of a head; a fine-tuning that begins chooses it."""
    state = torch.load(pretrained / "checkpoint_last.pt", weights_only=True)
    options = argparse.Namespace(**{**vars(state["cfg"]["model"]), "pooler_activation_fn": "relu"})
    refuse_another_function(pretrained / "checkpoint_last.pt", options)
    state["model"]["classification_heads.sentence_classification_head.dense.weight"] = torch.zeros(128, 128)
    torch.save(state, tmp_path / "tuned.pt")
    with pytest.raises(
        UserError, match=r"tuned\.pt was trained with --pooler-activation-fn tanh, this run has .* relu"
    ):
        refuse_another_function(tmp_path / "tuned.pt", options)


def sized(pretrained, tmp_path, symbols):
    """A trained folder without checksums, with a dictionary of `symbols` symbols less."""
    folder = shutil.copytree(pretrained, tmp_path / f"sized{symbols}")
    for path in folder.glob("*.pt"):
        state = torch.load(path, weights_only=True)
        path.unlink()
        torch.save({**state, "task_state": {}}, path)
    lines = (folder / "dict.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "dict.txt").write_text("".join(lines[: len(lines) - symbols]), encoding="utf-8")
    return folder


def test_sizes_of_another_model(pretrained, data_bin, tmp_path, train_here):
    """A dictionary of another size, or a narrower model: one line with both sizes, through every door."""
    folder = sized(pretrained, tmp_path, 3)
    rows = torch.load(pretrained / "checkpoint_last.pt", weights_only=True)["model"][
        "encoder.sentence_encoder.embed_tokens.weight"
    ].shape[0]
    line = rf"checkpoint_(best|last)\.pt: .*its dictionary had {rows} symbols, this one has {rows - 3}\b.*dict\.txt"
    data = shutil.copytree(data_bin, tmp_path / "data")
    shutil.copyfile(folder / "dict.txt", data / "dict.txt")
    path = str(folder / "checkpoint_best.pt")

    def load():
        for load_it in (
            lambda: RecurrentRobertaModel.from_pretrained(str(folder)),
            lambda: checkpoint_utils.load_model_ensemble_and_task([path], {"data": str(folder)}),
        ):
            with pytest.raises(UserError, match=line):
                load_it()

    assert "size mismatch" in str(with_and_without("sizes_of_another_model", load))
    with pytest.raises(UserError, match=line):
        train_here("--restore-file", folder / "checkpoint_last.pt", data=data)
    with pytest.raises(UserError, match=r"checkpoint_last\.pt: .*embed_tokens\.weight is \d+ x 128, .* \d+ x 64"):
        train_here("--restore-file", folder / "checkpoint_last.pt", "--encoder-embed-dim", "64")


def test_no_downloads():
    def ask():
        with pytest.raises(UserError, match="nothing is downloaded"):
            file_utils.cached_path("s3://example.org/model.tar.gz")

    assert not isinstance(with_and_without("no_downloads", ask), UserError)
    with rt_plugin.allow("download"), pytest.raises(Exception) as caught:
        file_utils.cached_path("s3://example.org/model.tar.gz")
    assert not isinstance(caught.value, UserError)


def test_packed_models(tmp_path):
    """fairseq unpacks an archive wherever its members' names lead, and puts the result in the archive's place."""

    def ask():
        folder, archive = tmp_path / "in" / "model", tmp_path / "in" / "model.tar.gz"
        (tmp_path / "escaped").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "dict.txt").touch()
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(folder, "model")
            packed.add(folder / "dict.txt", os.path.relpath(tmp_path / "escaped", tempfile.gettempdir() + "/x"))
        with pytest.raises(UserError, match=r"model\.tar\.gz: is a file.*unpack it"):
            hub_utils.from_pretrained(str(archive))
        assert archive.is_file() and not (tmp_path / "escaped").exists()

    assert not isinstance(with_and_without("packed_models", ask), UserError)
