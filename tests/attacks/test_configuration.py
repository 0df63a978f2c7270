"""Checkpoints whose configuration wants to run code, in every way that fairseq or this package reads one."""

import copy

import pytest
import torch
from fairseq import checkpoint_utils, hub_utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, register_model_architecture
from fairseq.models.roberta import RobertaModel

import rt_plugin
from attack_cases import ATTACKS, expression, make_folder, old_args, read_honest, wav2vec2, written
from conftest import TRAINING, run_command, user_error
from rt_plugin.errors import UserError
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def honest():
    return read_honest()


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "model")


def through_from_pretrained(folder):
    RecurrentRobertaModel.from_pretrained(str(folder))


def through_roberta(folder):
    RobertaModel.from_pretrained(str(folder), "checkpoint_best.pt", bpe="sentencepiece")


def through_hub_utils(folder):
    hub_utils.from_pretrained(str(folder), "checkpoint_best.pt", str(folder))


def through_checkpoint_utils(folder):
    checkpoint_utils.load_model_ensemble_and_task([str(folder / "checkpoint_best.pt")], {"data": str(folder)})


def through_our_own_reading(folder):
    read_checkpoint(folder / "checkpoint_best.pt")


WAYS = [
    through_from_pretrained,
    through_roberta,
    through_hub_utils,
    through_checkpoint_utils,
    through_our_own_reading,
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("way", WAYS)
def test_no_code_runs(way, attack, folder, honest, tmp_path):
    mark = tmp_path / "mark"
    written(folder, honest, attack, mark)
    if "options_of_attention" in attack.__name__:
        way(folder)  # an option that nobody knows is dropped
    else:
        with pytest.raises(UserError, match=r"checkpoint_best\.pt: "):
            way(folder)
    assert not mark.exists()


@pytest.mark.parametrize("attack", [wav2vec2, old_args])
def test_no_code_runs_through_commands(attack, folder, honest, data_bin, tmp_path, capsys):
    from rt_plugin.export.command import main as export
    from rt_plugin.glue.predict import main as predict

    mark = tmp_path / "mark"
    path = written(folder, honest, attack, mark)
    words = (
        data_bin,
        "--user-dir",
        "rt_plugin",
        "--task",
        "rt_masked_lm",
        "--path",
        path,
        "--batch-size",
        "8",
        "--cpu",
    )
    line = user_error(run_command("fairseq-validate", *words, ok=False))
    assert "RT_PLUGIN_ALLOW=" in line
    for option in ("--restore-file", "--finetune-from-model"):
        words = ("fairseq-train", data_bin, *TRAINING, "--save-dir", tmp_path / "out", option, path)
        assert "RT_PLUGIN_ALLOW=" in user_error(run_command(*words, ok=False))
    assert export([str(folder), str(tmp_path / "exported")]) == 1
    # a fine-tuned folder in all but its checkpoint, so that nothing else stops the prediction
    (folder / "label_dict.txt").write_text("entailment 1\nnot_entailment 1\n")
    (folder / "glue.json").write_text('{"task": "QNLI", "splits": {}}')
    (tmp_path / "texts").write_text("a\tb\n")
    capsys.readouterr()
    assert predict(["rows", str(folder), str(tmp_path / "texts"), str(tmp_path / "predictions")]) == 1
    assert "RT_PLUGIN_ALLOW=" in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "predictions").exists()


def changed(folder, honest, change) -> dict:
    """What `read_checkpoint` makes of a configuration that `change` changed."""
    state = {**honest, "cfg": copy.deepcopy(honest["cfg"])}
    change(state)
    torch.save(state, folder / "checkpoint_best.pt")
    return read_checkpoint(folder / "checkpoint_best.pt")["cfg"]


def test_what_else_a_checkpoint_cannot_name(folder, honest, monkeypatch, tmp_path):
    """Modules to import, addresses, other folders, what is evaluated when an optimizer is built, values looked up."""
    code = expression(tmp_path / "mark")
    monkeypatch.setenv("SECRET", "hush")

    def change(state):
        cfg = state["cfg"]
        cfg["common"]["user_dir"] = cfg["model"].user_dir = str(tmp_path)
        cfg["common"]["wandb_project"] = "${oc.env:SECRET}"
        cfg["common_eval"]["model_overrides"] = cfg["checkpoint"]["optimizer_overrides"] = code
        cfg["bpe"] = {"_name": "gpt2", "gpt2_encoder_json": "https://example.org/encoder.json"}
        cfg["tokenizer"] = {"_name": "moses", "source_lang": code}
        cfg["scoring"] = {"_name": "wer", "wer_tokenizer": code}
        cfg["generation"]["replace_unk"] = "/etc/passwd"
        cfg["optimizer"] = {"_name": "adam", "adam_betas": code, "lr": [1.0]}
        cfg["task"]["data"] = "/etc"
        cfg["task"]["task"] = "translation"
        cfg["model"].task = "translation"
        cfg["task"]["index_folder"] = "/etc"
        cfg["common"]["seed"] = "seven"
        cfg["unknown"] = {"x": code}

    cfg = changed(folder, honest, change)
    text = repr(cfg)
    for word in ("oc.env", "__import__", "example.org", "/etc", "translation", "user_dir=", "unknown", "seven"):
        assert word not in text, word
    assert cfg["common"]["user_dir"] is None and cfg["common"]["seed"] == 1
    assert cfg["bpe"] is None and cfg["tokenizer"] is None and cfg["scoring"] is None
    hub = RecurrentRobertaModel.from_pretrained(str(folder))
    assert hub.fill_mask("The capital of France is <mask>.")
    assert hub.task.cfg.data == str(folder.resolve())


def test_an_honest_configuration_stays(folder, honest):
    cfg = changed(folder, honest, lambda state: None)
    before = honest["cfg"]
    for group in ("optimization", "dataset", "ema", "bmuf"):
        for key, value in cfg[group].items():
            if not isinstance(before[group][key], str):
                assert value == before[group][key], (group, key)
    for key, value in vars(cfg["model"]).items():
        assert value == vars(before["model"])[key], key
    for key in ("encoder_layers", "recurrence_direction", "activation_fn", "dropout", "max_positions"):
        assert getattr(cfg["model"], key) == getattr(before["model"], key)
    assert cfg["checkpoint"]["best_checkpoint_metric"] == before["checkpoint"]["best_checkpoint_metric"]
    assert cfg["optimizer"]["adam_betas"] == before["optimizer"]["adam_betas"]
    assert cfg["task"]["sample_break_mode"] == before["task"]["sample_break_mode"]


def test_types_are_checked(folder, honest):
    for key, value, found in (
        ("encoder_layers", "4", "'4'"),
        ("activation_fn", "os.system", "'os.system'"),
        ("dropout", [0.1], r"\[0.1\]"),
        ("encoder_layers_to_keep", "__import__('os')", "__import__"),
        ("recurrence_tomorrow", 3, "3"),
    ):
        with pytest.raises(UserError, match=rf"checkpoint_best\.pt: .*{key}.*{found}"):
            changed(folder, honest, lambda state, k=key, v=value: setattr(state["cfg"]["model"], k, v))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_layers", 10**9),
        ("encoder_embed_dim", 10**9),
        ("recurrence_dim", 10**9),
        ("max_positions", 10**9),
        ("encoder_attention_heads", 10**9),
    ],
)
def test_sizes_are_those_of_the_weights(key, value, folder, honest):
    """A billion layers are refused before one is built, with both numbers."""
    with pytest.raises(UserError, match=rf"checkpoint_best\.pt: .*{key}.*1000000000.* \d+"):
        changed(folder, honest, lambda state: setattr(state["cfg"]["model"], key, value))


def test_a_preset_of_ones_own_is_let_in_and_a_subclass_by_name(folder, honest, monkeypatch):
    register_model_architecture("recurrent_roberta", "my_preset")(lambda args: None)
    try:
        cfg = changed(folder, honest, lambda state: setattr(state["cfg"]["model"], "arch", "my_preset"))
        assert cfg["model"].arch == "my_preset"
    finally:
        del ARCH_MODEL_REGISTRY["my_preset"], ARCH_CONFIG_REGISTRY["my_preset"]

    def xmod(state):
        state["cfg"]["model"].arch = state["cfg"]["model"]._name = "xmod_base"

    with pytest.raises(
        UserError,
        match=r"names the architecture 'xmod_base'.*rt_plugin\.allow\('xmod_base'\).*RT_PLUGIN_ALLOW=xmod_base",
    ):
        changed(folder, honest, xmod)
    monkeypatch.setenv("RT_PLUGIN_ALLOW", "fconv,xmod_base")
    assert changed(folder, honest, xmod)["model"].arch == "xmod_base"
    monkeypatch.delenv("RT_PLUGIN_ALLOW")
    with rt_plugin.allow("xmod_base"):
        assert changed(folder, honest, xmod)["model"].arch == "xmod_base"
    with pytest.raises(UserError, match="xmod_base"):
        changed(folder, honest, xmod)


@pytest.mark.parametrize("kind", ["task", "criterion"])
def test_tasks_and_criterions_are_let_in_by_name(kind, folder, honest, monkeypatch):
    name = {"task": "translation", "criterion": "ctc"}[kind]

    def other(state):
        state["cfg"][kind]["_name"] = name

    with pytest.raises(UserError, match=f"names the {kind} '{name}'"):
        changed(folder, honest, other)
    monkeypatch.setenv("RT_PLUGIN_ALLOW", name)
    assert changed(folder, honest, other)[kind]["_name"] == name
