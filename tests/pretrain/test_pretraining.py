"""Pretraining with fairseq's own commands: train, interrupt, resume, validate, and what bad input says."""

import itertools
import json
import math
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import BaseWrapperDataset
from fairseq.logging import metrics

from conftest import ENVIRONMENT, REPOSITORY, TRAINING, run_command, run_two, user_error
from rt_plugin.criterions.rt_masked_lm import RtMaskedLMCriterion
from rt_plugin.errors import UserError
from rt_plugin.tasks.rt_masked_lm import SplitSentencesDataset
from warm import command_words


def logged(output, tag):
    """The JSON lines that fairseq logs under a tag."""
    lines = (line for line in output.splitlines() if f"| {tag} | {{" in line)
    return [json.loads(line[line.index("{") :]) for line in lines]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_training_learns_and_leaves_a_complete_model_folder(pretrained, data_bin):
    names = {p.name for p in pretrained.iterdir()}
    tokenizer = {"dict.txt", "sentencepiece.bpe.model", "text_normalization.json"}
    assert names == {"checkpoint_best.pt", "checkpoint_last.pt"} | tokenizer
    for name in tokenizer:
        assert (pretrained / name).read_bytes() == (data_bin / name).read_bytes()


def test_training_killed_again_and_again_ends_with_the_same_weights(data_bin, tmp_path):
    """kill -9 at random moments, some of them in the middle of saving; each time the next run goes on from the last
    checkpoint, in the end to the last bit as if undisturbed."""
    options = (data_bin, *TRAINING, "--max-update", "40", "--save-interval-updates", "4", "--disable-validation")
    undisturbed = run_command("fairseq-train", *options, "--save-dir", tmp_path / "undisturbed")
    command = command_words("fairseq-train", *options, "--save-dir", tmp_path / "killed")
    checkpoint, moments = tmp_path / "killed" / "checkpoint_last.pt", random.Random(1)
    for _ in range(3):
        before = checkpoint.stat().st_ino if checkpoint.exists() else None
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_ino != before:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break  # a fast machine: it ended before
    assert process.returncode == -signal.SIGKILL or before is not None, "training ended before it was killed once"
    resumed = run_command("fairseq-train", *options, "--save-dir", tmp_path / "killed")
    assert "Loaded checkpoint" in resumed.stdout
    assert_same_weights(weights(checkpoint), weights(tmp_path / "undisturbed" / "checkpoint_last.pt"))
    losses = [entry["loss"] for entry in logged(undisturbed.stdout, "train_inner")]
    assert float(losses[-1]) < float(losses[0]) - 0.5


def test_validate_command_gives_the_loss_of_training(pretrained, data_bin):
    state = torch.load(pretrained / "checkpoint_last.pt", weights_only=True)
    result = run_command(
        "fairseq-validate",
        data_bin,
        *("--user-dir", "rt_plugin", "--task", "rt_masked_lm", "--path", pretrained / "checkpoint_last.pt"),
        *("--batch-size", "8", "--cpu", "--log-format", "json"),
    )
    (entry,) = logged(result.stdout, "valid")
    assert float(entry["valid_loss"]) == pytest.approx(state["extra_state"]["val_loss"], abs=2e-3)
    assert 10 < float(entry["valid_masked"]) < 20


def test_validation_has_the_loss_of_mask_tokens_alone_beside(pretrained, data_bin):
    """The loss is over tokens that stayed or were replaced by others, too, and those that stayed are easy to guess."""
    path = pretrained / "checkpoint_last.pt"
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(path)], arg_overrides={"data": str(data_bin)}
    )
    model.eval()
    criterion = task.build_criterion(cfg.criterion).eval()
    task.load_dataset("valid")
    batches = task.get_batch_iterator(task.dataset("valid"), max_sentences=8).next_epoch_itr(shuffle=False)
    logs, bits = [], []
    for sample in batches:
        with torch.no_grad():
            *_, log = criterion(model, sample)
            hidden = sample["net_input"]["src_tokens"] == task.mask_idx
            logits, _ = model(**sample["net_input"], masked_tokens=hidden)
        logs.append(log)
        bits.append(torch.nn.functional.cross_entropy(logits, sample["target"][hidden], reduction="none") / math.log(2))
    with metrics.aggregate(new_root=True) as logged_values:
        criterion.reduce_metrics([*logs, criterion(model, {})[2]])
    values = logged_values.get_smoothed_values()
    mean = torch.cat(bits).mean().item()
    assert values["mask_loss"] == pytest.approx(mean, abs=1e-3) and abs(values["mask_loss"] - values["loss"]) > 0.01
    assert values["mask_ppl"] == pytest.approx(2**mean, rel=1e-2)
    criterion.train()
    assert criterion(model, sample)[2].keys() == log.keys() - {"mask_loss", "mask_tokens"}  # costs nothing there


def test_a_batch_without_masked_tokens_leaves_the_loss_as_it_is():
    """fairseq would log a loss of -1 in its place, with the weight of a masked token."""
    nothing = {"loss": 0, "ncorrect": 0, "ntokens": 3, "nsentences": 1, "sample_size": 0}
    full = {"loss": 8 * math.log(2), "ncorrect": 1, "ntokens": 20, "nsentences": 1, "sample_size": 4}
    for logs in ([nothing, full], [full, nothing]):
        with metrics.aggregate(new_root=True) as logged_values:
            for log in logs:
                with metrics.aggregate() as of_one_batch:
                    RtMaskedLMCriterion.reduce_metrics([log])
                assert "loss" in of_one_batch
        values = logged_values.get_smoothed_values()
        assert (values["loss"], values["ppl"]) == (2, 4)


def test_a_validation_without_masked_tokens_is_refused(train_here):
    """It would be the best one for ever."""
    with pytest.raises(UserError, match="no token of the validation text is masked, so it has no loss; give a longer"):
        train_here("--mask-prob", "1e-9", "--max-update", "1", validate=True)


def test_validate_command_with_two_processes(pretrained, data_bin):
    """Of an odd number of batches: the second process gets an empty one in addition."""
    path = pretrained / "checkpoint_last.pt"
    _, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides={"data": str(data_bin)})
    task.load_dataset("valid")
    size = next(size for size in range(8, 99) if -(-len(task.dataset("valid")) // size) % 2)
    options = (data_bin, "--user-dir", "rt_plugin", "--task", "rt_masked_lm", "--path", path, "--batch-size", size)
    options = (*options, "--cpu", "--log-format", "json")
    (one,) = logged(run_command("fairseq-validate", *options).stdout, "valid")
    (two,) = logged(run_two("fairseq-validate", *options), "valid")
    assert two == one


def test_baseline_and_options_train(data_bin, tmp_path):
    for number, options in enumerate(
        (
            ("--arch", "roberta_tiny"),
            ("--recurrence-direction", "alternate", "--recurrence-type", "none", "--mask-whole-words"),
            ("--recurrence-type", "short-conv"),
            ("--checkpoint-activations", "--encoder-normalize-before", "--quant-noise-pq", "0.1", "--store-ema"),
        )
    ):
        save_dir = tmp_path / str(number)
        run_command("fairseq-train", data_bin, *TRAINING, "--max-update", "2", "--save-dir", save_dir, *options)
        assert (save_dir / "checkpoint_last.pt").is_file()


def test_hydra_trains_from_the_example_config(data_bin, tmp_path):
    result = run_command(
        "fairseq-hydra-train",
        *("--config-dir", REPOSITORY / "examples" / "hydra", "--config-name", "pretrain"),
        f"common.user_dir={REPOSITORY / 'rt_plugin'}",
        f"task.data={data_bin}",
        f"checkpoint.save_dir={tmp_path / 'run'}",
        *(
            f"hydra.run.dir={tmp_path / 'hydra'}",
            "optimization.max_update=3",
            "dataset.batch_size=8",
            "common.cpu=true",
        ),
    )
    assert (tmp_path / "run" / "checkpoint_last.pt").is_file(), result.stdout[-2000:]
    bad = run_command(
        "fairseq-hydra-train",
        *("--config-dir", REPOSITORY / "examples" / "hydra", "--config-name", "pretrain"),
        f"common.user_dir={REPOSITORY / 'rt_plugin'}",
        f"task.data={data_bin}",
        f"checkpoint.save_dir={tmp_path / 'run'}",
        *(f"hydra.run.dir={tmp_path / 'hydra'}", "+model.recurrence_dims=8"),
        ok=False,
    )
    assert "--recurrence-dims 8: there is no such option" in user_error(bad)


def without_tokenizer(data_bin, folder):
    shutil.copytree(data_bin, folder)
    (folder / "sentencepiece.bpe.model").unlink()
    return folder


def other_dictionary(data_bin, folder):
    shutil.copytree(data_bin, folder)
    (folder / "dict.txt").write_text("".join(f"word{i} 1\n" for i in range(796)), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (lambda data, folder: folder, (), "no such folder; give the folder that fairseq-preprocess wrote"),
        (lambda data, folder: data.parent, (), "but no dict.txt"),
        (lambda data, folder: data, ("--valid-subset", "test"), "split 'test' is missing in"),
        (
            lambda data, folder: data,
            ("--recurrence-step-size", "0"),
            "--recurrence-step-size 0: expected a whole number",
        ),
        (lambda data, folder: data, ("--recurrence-dim", "-8"), "--recurrence-dim -8: expected a whole number"),
        (lambda data, folder: data, ("--restore-file", "x.pt"), "--restore-file x.pt: no such file"),
        (lambda data, folder: data, ("--finetune-from-model", "y.pt"), "--finetune-from-model y.pt: no such file"),
        (lambda data, folder: data, ("--ddp-backend", "fully_sharded"), "fully_sharded needs a GPU"),
        (other_dictionary, (), "dict.txt"),
        (without_tokenizer, ("--mask-whole-words",), "--mask-whole-words needs the tokenizer"),
    ],
)
def test_bad_input_ends_in_one_line(data, options, message, data_bin, tmp_path):
    folder = data(data_bin, tmp_path / "data")
    result = run_command("fairseq-train", folder, *TRAINING, "--save-dir", tmp_path / "run", *options, ok=False)
    assert message in user_error(result)
    assert not list((tmp_path / "run").glob("*.pt"))


def test_training_that_diverges_ends_in_one_line(data_bin, tmp_path):
    options = ("--lr", "1e12", "--warmup-updates", "1", "--save-interval-updates", "1", "--save-dir", tmp_path)
    result = run_command("fairseq-train", data_bin, *TRAINING, *options, ok=False)
    assert " gradients are Nan/Inf " in user_error(result)
    assert "detected in output of encoder.sentence_encoder" in result.stdout + result.stderr
    assert torch.isfinite(weights(tmp_path / "checkpoint_last.pt")["encoder.lm_head.bias"]).all()


@pytest.mark.parametrize(
    "options",
    [
        ("--memory-efficient-fp16", "--fp16-init-scale", "4"),
        ("--amp",),
        ("--checkpoint-activations",),
        ("--store-ema", "--ema-decay", "0.9", "--ema-fp32"),
    ],
    ids=lambda options: options[0],
)
def test_precision_and_memory_options_resume_exactly(options, data_bin, tmp_path):
    """--fp16 and --bf16 are in tests/repairs/test_precision.py."""
    for folder, updates in (("through", 4), ("resumed", 2), ("resumed", 4)):
        command = (*TRAINING, *options, "--disable-validation", "--max-update", updates)
        run_command("fairseq-train", data_bin, *command, "--save-dir", tmp_path / folder)
    a, b = (torch.load(tmp_path / f / "checkpoint_last.pt", weights_only=True) for f in ("through", "resumed"))
    assert_same_weights(a["model"], b["model"])
    for name in ("ema", "ema_fp32_params"):
        assert (name in a["extra_state"]) == ("--store-ema" in options)
        assert_same_weights(a["extra_state"].get(name, {}), b["extra_state"].get(name, {}))


def test_checkpoint_cut_in_half_is_named(pretrained, data_bin, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "run")
    last = folder / "checkpoint_last.pt"
    half = last.read_bytes()[: last.stat().st_size // 2]
    last.unlink()  # best and last may be one file
    last.write_bytes(half)
    result = run_command("fairseq-train", data_bin, *TRAINING, "--save-dir", folder, ok=False)
    line = user_error(result)
    assert "checkpoint_last.pt cannot be read" in line
    assert "in the same folder: checkpoint_best.pt" in line


def test_full_disk_while_saving_keeps_the_old_checkpoint(pretrained, data_bin, tmp_path):
    """A file size limit stands in for the full disk: the write fails half-way, as there."""
    folder = shutil.copytree(pretrained, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    size = (folder / "checkpoint_last.pt").stat().st_size
    options = (*TRAINING, "--max-update", "9", "--disable-validation")
    result = subprocess.run(
        command_words("fairseq-train", data_bin, *options, "--save-dir", folder),
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
    )
    assert "cannot be written" in user_error(result)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


class Sentences(BaseWrapperDataset):
    def __init__(self, lengths):
        ids = itertools.count()
        super().__init__([torch.tensor([next(ids) for _ in range(n)]) for n in lengths])

    @property
    def sizes(self):
        return [len(s) for s in self.dataset]


@pytest.mark.parametrize("max_length", [3, 4, 7])
def test_long_sentences_are_split_and_no_token_is_lost(max_length):
    lengths = [1, 2, 3, 4, 5, 7, 8, 22, 1, 9]
    split = SplitSentencesDataset(Sentences(lengths), max_length)
    parts = [split[i] for i in range(len(split))]
    assert [len(p) for p in parts] == list(split.sizes)
    assert torch.cat(parts).tolist() == list(range(sum(lengths)))
    assert max(split.sizes) <= max_length
    assert sorted(split.sizes)[2] > 1, "only the two sentences of one token, document boundaries, have one token"
