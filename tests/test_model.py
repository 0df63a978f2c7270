"""The model in fairseq: sizes, options, directions, and that padding and the order of a batch change nothing."""

import argparse
import math

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.roberta import model as fairseq_roberta
from omegaconf import OmegaConf

import rt_plugin.model
from rt_plugin import UserError
from rt_plugin.model import RecurrentRobertaModel

TASK = argparse.Namespace(source_dictionary=Dictionary(), max_positions=lambda: 40)
for _i in range(96):
    TASK.source_dictionary.add_symbol(f"word{_i}")


def build(arch="recurrent_roberta_tiny", **options):
    torch.manual_seed(0)
    args = argparse.Namespace(**options)
    ARCH_CONFIG_REGISTRY[arch](args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, TASK)


def blocks(model):
    return [layer.recurrence for layer in model.encoder.sentence_encoder.layers]


def batch(*lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    tokens = torch.full((len(lengths), max(lengths)), TASK.source_dictionary.pad())
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(4, 100, (length,), generator=generator)
    return tokens


def features(model, tokens):
    with torch.no_grad():
        return model.eval()(tokens, features_only=True)[0]


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [("tiny", 0.01), ("mini", 0.01), ("small", 0.01), ("medium", 0.01), ("base", 0.005), ("large", 0.005)],
)
def test_as_many_parameters_as_roberta(size, tolerance, monkeypatch):
    """With a vocabulary of 100, so that the embeddings, equal in both, do not hide a difference."""
    for module in (rt_plugin.model, fairseq_roberta):
        monkeypatch.setattr(module, "init_bert_params", lambda module: None)  # needs values, which meta tensors lack
    with torch.device("meta"):
        ours, theirs = (
            sum(p.numel() for p in build(f"{name}_{size}").parameters()) for name in ("recurrent_roberta", "roberta")
        )
    assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.parametrize(
    ("direction", "backward"),
    [("forward", [0, 0, 0, 0]), ("backward", [1, 1, 1, 1]), ("alternate", [0, 1, 0, 1])],
)
def test_directions(direction, backward):
    model = build(encoder_layers=4, recurrence_direction=direction)
    assert [int(block.reverse) for block in blocks(model)] == backward


def test_kept_layers_keep_their_direction():
    model = build(encoder_layers=4, recurrence_direction="alternate", encoder_layers_to_keep="1,2")
    assert [block.reverse for block in blocks(model)] == [True, False]
    stored = {k: v for k, v in vars(model.args).items() if not k.startswith("_")}
    again = build(**{**stored, "encoder_layers_to_keep": None})  # as fairseq stores it after pruning
    assert [block.reverse for block in blocks(again)] == [True, False]


def test_options_reach_the_block():
    model = build(
        recurrence_dim=24,
        recurrence_step_size=3,
        recurrence_gate="silu",
        recurrence_impl="reference",
        activation_dropout=0.25,
        recurrence_alpha=0.5,
        recurrence_beta=1.0,
        recurrence_beta_spread=2.0,
    )
    for block in blocks(model):
        assert block.alpha.eq(0.5).all()
        assert (block.beta[0].item(), block.beta[-1].item()) == (-1, 3)
        assert (block.inner_dim, block.step_size, block.gate, block.impl) == (24, 3, "silu", "reference")
        assert block.dropout.p == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recurrence_dim": 0}, "--recurrence-dim 0: expected a whole number of at least 1"),
        ({"recurrence_step_size": -1}, "--recurrence-step-size -1: expected a whole number of at least 1"),
        ({"recurrence_gate": "relu"}, "--recurrence-gate relu: expected one of gelu, sigmoid, silu"),
        ({"recurrence_direction": "up"}, "--recurrence-direction up: expected one of forward, backward, alternate"),
        ({"recurrence_type": "lstm"}, "--recurrence-type lstm: expected one of swish-rnn, none"),
        ({"recurrence_beta": math.nan}, "--recurrence-beta nan: expected a finite number"),
        ({"recurrence_alpha": 2.0, "recurrence_type": "none"}, "--recurrence-alpha 2.0: --recurrence-type none has no"),
        ({"recurrence_width": 8}, "--recurrence-width 8: there is no such option of the recurrence; known are"),
        ({"ffn_blocks_to_remove": 2}, "a recurrent_roberta has none"),
    ],
)
@pytest.mark.parametrize("hydra", [False, True])
def test_bad_options_are_named(options, message, hydra):
    args = OmegaConf.create(options) if hydra else argparse.Namespace(**options)
    with pytest.raises(UserError, match=message):
        RecurrentRobertaModel.build_model(args, TASK)


VARIANTS = [
    {},
    {"recurrence_direction": "alternate"},
    {"recurrence_direction": "backward", "recurrence_step_size": 2},
    {"recurrence_type": "none"},
    {"recurrence_type": "short-conv", "recurrence_direction": "alternate"},
    {"encoder_normalize_before": True, "layernorm_embedding": False},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_padding_changes_nothing(options):
    model = build(**options)
    tokens = batch(9, 5, 1)
    together = features(model, tokens)
    for i, length in enumerate((9, 5, 1)):
        torch.testing.assert_close(
            together[i, :length], features(model, tokens[i : i + 1, :length])[0], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_order_of_the_batch_does_not_matter(options):
    model = build(**options)
    tokens, order = batch(9, 5, 7), torch.tensor([2, 0, 1])
    torch.testing.assert_close(features(model, tokens[order]), features(model, tokens)[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoder_normalize_before": True},
        {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4},
        {"recurrence_type": "none"},
        {"recurrence_type": "short-conv"},
        {"checkpoint_activations": True},
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(options):
    model = build(**options).train()
    tokens = batch(9, 5)
    model(tokens, masked_tokens=torch.ones_like(tokens, dtype=torch.bool))[0].logsumexp(-1).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_layerdrop_leaves_out_layers_in_training_only():
    model = build(encoder_layerdrop=0.5, encoder_layers=6).eval()  # in training the list itself drops layers
    tokens, passed = batch(9, 5), []
    for block in blocks(model):
        block.register_forward_hook(lambda *_: passed.append(1))
    features(model, tokens)
    assert len(passed) == 6
    passed.clear()
    model.train()
    for _ in range(20):
        model(tokens, features_only=True)
    assert 20 < len(passed) < 100


def test_checkpointed_activations_give_the_same_gradients():
    gradients = []
    for checkpoint in (False, True):
        model = build(checkpoint_activations=checkpoint, dropout=0.0, attention_dropout=0.0).train()
        model(batch(9, 5), features_only=True)[0].pow(2).sum().backward()
        gradients.append(
            {
                n.replace("_checkpoint_wrapped_module.", ""): p.grad
                for n, p in model.named_parameters()
                if p.grad is not None
            }
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_attention_mask_is_honoured():
    """A query that may see itself alone is not changed by the other positions (without recurrence, which mixes too)."""
    layer = build(recurrence_type="none").eval().encoder.sentence_encoder.layers[0]
    x, mask = torch.randn(5, 2, 128), ~torch.eye(5, dtype=torch.bool)
    changed = x.clone()
    changed[1:] += 1
    with torch.no_grad():
        torch.testing.assert_close(layer(changed, None, mask)[0], layer(x, None, mask)[0], rtol=1e-5, atol=1e-5)
