"""Projections by oneDNN compute what torch's own do, row by row, and only where they are asked for."""

import copy
import io

import pytest
import torch

from conftest import REPOSITORY
from rt_plugin import hub
from rt_plugin.inference.projections import linear, prepare, quick_projections

MODELS = ("recurrent_roberta_mini_alternate", "roberta_mini")
TOKENS = torch.tensor([[0, 81, 1634, 6, 9, 200, 2], [0, 15, 4, 4, 90, 77, 2]])

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="a torch without oneDNN")


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """As a hub has it on a processor on which oneDNN is quicker."""
    loaded = hub.from_pretrained(str(REPOSITORY / "examples" / "checkpoints" / request.param)).model
    prepare(loaded)
    return loaded


def logits(model, tokens=TOKENS, quick=True):
    with torch.no_grad():
        if not quick:
            return model(tokens)[0]
        with quick_projections():
            return model(tokens)[0]


def test_same_function_other_rounding(model):
    known, layers = logits(model, quick=False), len(model.encoder.sentence_encoder.layers)
    with torch.profiler.profile() as profile:
        found = logits(model)
    calls = {entry.key: entry.count for entry in profile.key_averages()}
    assert calls["mkldnn::_linear_pointwise"] == 4 * layers + 2 and "aten::addmm" not in calls
    torch.testing.assert_close(found, known, rtol=0, atol=5e-5)
    padded = torch.cat([TOKENS, torch.ones(2, 2, dtype=torch.long)], dim=1)
    torch.testing.assert_close(logits(model, padded)[:, :7], known, rtol=0, atol=5e-5)


def test_outside_the_block_it_is_fairseq_s(model):
    untouched = copy.deepcopy(model)
    for module in untouched.modules():
        vars(module).pop("forward", None)
    assert logits(model, quick=False).equal(logits(untouched, quick=False))
    assert logits(untouched).equal(logits(untouched, quick=False))


def test_gradients_and_the_same_bits_with_them(model):
    def gradients(quick):
        model.zero_grad()
        if quick:
            with quick_projections():
                output = model(TOKENS)[0]
        else:
            output = model(TOKENS)[0]
        output.square().mean().backward()
        found = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }
        model.zero_grad()
        return output.detach(), found

    (output, found), (_, known) = gradients(True), gradients(False)
    assert output.equal(logits(model))
    assert found.keys() == known.keys()
    largest = max(value.abs().max().item() for value in known.values())
    for name, value in known.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("rows", [2, 3, 7, 64])
def test_a_row_does_not_depend_on_the_others(rows):
    draw = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((300, 96), (40, 96), (40,)))
    together, some = linear(x, weight, bias), linear(x[5 : 5 + rows], weight, bias)
    torch.testing.assert_close(some, together[5 : 5 + rows], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(together, torch.nn.functional.linear(x, weight, bias), rtol=1e-5, atol=1e-4)


def test_other_types_and_copies(model):
    half = copy.deepcopy(model).bfloat16()
    assert logits(half).equal(logits(half, quick=False))
    assert type(model.encoder.lm_head.dense) is torch.nn.Linear  # others look for it by its type
    kept = io.BytesIO()
    torch.save(model.encoder.lm_head, kept)
    kept.seek(0)
    again, features = torch.load(kept, weights_only=False), torch.randn(3, 256)
    assert again(features).equal(model.encoder.lm_head(features))


def test_weights_are_laid_out_once_for_many_batches(model):
    known = logits(model)
    with torch.profiler.profile() as profile, quick_projections(many=True):
        found = [logits(model) for _ in range(3)]
    calls = {entry.key: entry.count for entry in profile.key_averages()}
    layers = len(model.encoder.sentence_encoder.layers)
    assert calls["mkldnn::_reorder_linear_weight"] == 4 * layers + 2
    assert all(one.equal(known) for one in found)
    with torch.no_grad():
        model.encoder.lm_head.dense.weight.neg_()
        changed = logits(model)
        model.encoder.lm_head.dense.weight.neg_()
    assert not changed.equal(known)  # what was laid out is gone with the block
    assert logits(model).equal(known)


def test_a_changed_projection_of_attention_is_what_counts(model):
    known, own = logits(model), copy.deepcopy(model)
    attention = own.encoder.sentence_encoder.layers[1].self_attn
    assert logits(own).equal(known)
    prepare(own)  # the copy's weights are joined anew
    assert logits(own).equal(known)

    def changed():
        found = logits(own)
        torch.testing.assert_close(found, logits(own, quick=False), rtol=0, atol=5e-5)
        return not torch.allclose(found, known, atol=1e-2)

    attention.v_proj.weight.data.mul_(-1)
    assert changed()
    attention.v_proj.weight.data.mul_(-1)
    assert not changed()
    attention.k_proj.weight = torch.nn.Parameter(3 * attention.k_proj.weight.detach())
    assert changed()
