"""--layer-lr-decay of rt_glue: every layer at its own rate, in every precision, and nothing else changes."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from conftest import run_command
from rt_plugin.errors import UserError
from rt_plugin.glue.layer_rates import layer_rates

RATE = 1e-3


def finetune(data, save_dir, *options):
    """At a constant rate, without weight decay: the first step of Adam then is the rate itself, for every weight."""
    return run_command(
        "fairseq-train",
        *(data, "--user-dir", "rt_plugin", "--task", "rt_glue", "--criterion", "rt_glue", "--cpu", "--lr", RATE),
        *("--optimizer", "adam", "--batch-size", "16", "--num-workers", "0", "--adam-eps", "1e-12"),
        *("--disable-validation", "--save-dir", save_dir, *options),
    )


@pytest.fixture
def start(pretrained):
    return ("--arch", "recurrent_roberta_tiny", "--finetune-from-model", pretrained / "checkpoint_best.pt")


def largest_steps(before: dict, after: dict) -> dict[str, float]:
    """The largest change of any weight, of the two layers, the embeddings and the head."""
    found = {}
    for name, weight in after["model"].items():
        layer = re.search(r"layers\.(\d)|embed|classification_heads", name)
        if layer is None or name not in before["model"]:  # the language model's head, not trained; a head begun anew
            continue
        key = layer[1] or layer[0]
        step = (weight - before["model"][name]).abs().max().item()
        found[key] = max(found.get(key, 0.0), step)
    return found


def load(folder, name="checkpoint_last.pt") -> dict:
    return torch.load(folder / name, weights_only=False)


@pytest.mark.parametrize("optimizer", ["adam", "fused_adam"])
def test_the_first_step_of_each_layer_is_its_rate(optimizer, glue_dir, start, tmp_path):
    data = glue_dir / "out" / "QNLI"
    finetune(data, tmp_path, *start, "--layer-lr-decay", "0.5", "--max-update", "1", "--optimizer", optimizer)
    steps = largest_steps(load(start[-1].parent, start[-1].name), load(tmp_path))
    assert steps == pytest.approx({"1": RATE / 2, "0": RATE / 4, "embed": RATE / 8}, rel=2e-3)


def test_resumed_training_is_the_undisturbed_one(glue_dir, start, tmp_path):
    options = (glue_dir / "out" / "QNLI", tmp_path / "whole", *start, "--layer-lr-decay", "0.5")
    finetune(*options, "--max-update", "4", "--save-interval-updates", "2")
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_1_2.pt", tmp_path / "resumed" / "checkpoint_last.pt")
    finetune(options[0], tmp_path / "resumed", *options[2:], "--max-update", "4")
    whole, resumed = load(tmp_path / "whole")["model"], load(tmp_path / "resumed")["model"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    groups = load(tmp_path / "whole")["last_optimizer_state"]["param_groups"]
    assert [group["lr"] for group in groups] == [RATE]  # as any training's


def test_half_precision_with_fairseqs_own_roberta(glue_dir, tmp_path):
    """A decay so small that nothing below the head moves, but the head does."""
    data = glue_dir / "out" / "QNLI"
    options = ("--arch", "roberta_tiny", "--max-positions", "64", "--bf16")
    finetune(data, tmp_path / "a", *options, "--max-update", "1", "--lr", "1e-12")
    begun = ("--finetune-from-model", tmp_path / "a" / "checkpoint_last.pt", *options, "--layer-lr-decay", "1e-9")
    finetune(data, tmp_path / "b", *begun, "--max-update", "2")
    steps = largest_steps(load(tmp_path / "a"), load(tmp_path / "b"))
    assert steps.pop("classification_heads") > RATE / 2
    assert max(steps.values()) < 1e-11


def test_weights_joined_into_one_are_refused():
    """As fairseq joins them under --fp16 on a GPU."""
    joined = torch.nn.Parameter(torch.zeros(10))
    optimizer = SimpleNamespace(
        params=[joined], fp32_params={0: joined}, fp16_params=[], optimizer=torch.optim.SGD([joined], lr=1.0)
    )
    with pytest.raises(UserError, match="--layer-lr-decay .* add --fp16-no-flatten-grads"), layer_rates(optimizer):
        pass
