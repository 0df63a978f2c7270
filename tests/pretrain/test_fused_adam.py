"""--optimizer fused_adam: fairseq's Adam by another kernel, whose state either of them goes on from."""

import pytest
import torch
from fairseq.optim.adam import Adam

from rt_plugin.pretrain.fused_adam import FusedAdam

OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.1}  # an eps that would show


def train(optimizer_class, updates, weights, state=None):
    """Weights and state after some updates from `weights`, with gradients that depend on the weights."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = optimizer_class([{"params": parameters[:1]}, {"params": parameters[1:]}], **OPTIONS)
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(updates):
        loss = sum((torch.sin(3 * p) * torch.linspace(0.5, 2, p.numel()).view_as(p)).sum() for p in parameters)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in parameters], optimizer.state_dict()


@pytest.fixture
def weights():
    torch.manual_seed(1)
    return [torch.randn(7, 5), torch.randn(3)]


def test_it_computes_what_fairseqs_adam_does(weights):
    theirs, _ = train(Adam, 100, weights)
    ours, _ = train(FusedAdam, 100, weights)
    torchs, _ = train(torch.optim.AdamW, 100, weights)
    difference = max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True))
    assert difference < 2e-6
    assert max((a - b).abs().max() for a, b in zip(torchs, theirs, strict=True)) > 50 * difference  # its eps is another


@pytest.mark.parametrize(("first", "second"), [(Adam, FusedAdam), (FusedAdam, Adam), (FusedAdam, FusedAdam)])
def test_each_goes_on_from_the_others_state(first, second, weights):
    whole, _ = train(Adam, 30, weights)
    half, state = train(first, 10, weights)
    rest, _ = train(second, 20, half, state)
    for a, b in zip(rest, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_an_update_that_a_scaler_skips_is_none(weights):
    """The kernel finds out by itself; counted, it would correct the eps of later updates too little."""

    def weights_after(optimizer_class, overflows=()):
        parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
        optimizer, scaler = optimizer_class(parameters, **OPTIONS), torch.amp.GradScaler("cpu", init_scale=16)
        for update in range(4 + len(overflows)):
            loss = sum(torch.sin(3 * p).sum() for p in parameters)
            scaler.scale(loss * (float("inf") if update in overflows else 1)).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return torch.cat([p.detach().flatten() for p in parameters]), optimizer.state_dict()["state"][0]["step"]

    plain, _ = weights_after(FusedAdam)
    skipped, steps = weights_after(FusedAdam, overflows=(0, 2))
    assert torch.equal(skipped, plain) and steps == 4
    assert (plain - weights_after(Adam)[0]).abs().max() < 2e-6


def weights_of(folder):
    state = torch.load(folder / "checkpoint_last.pt", weights_only=False)
    return torch.cat([value.flatten() for value in state["model"].values() if value.is_floating_point()])


@pytest.mark.parametrize("then", ["fused_adam", "adam"])
def test_a_training_goes_on_with_the_other(then, train_here):
    """In float32, where fairseq compares the optimizers' names."""
    first = "adam" if then == "fused_adam" else "fused_adam"
    folder = train_here("--optimizer", first, "--max-update", "3")
    train_here("--optimizer", then, "--max-update", "6", save_dir=folder)
    whole = train_here("--max-update", "6")
    torch.testing.assert_close(weights_of(folder), weights_of(whole), rtol=0, atol=1e-5)
    assert not torch.equal(weights_of(folder), weights_of(train_here("--max-update", "3")))


def test_half_precision_keeps_its_weights_in_one_tensor(train_here):
    whole = train_here("--bf16", "--max-update", "4")
    fused = train_here("--bf16", "--optimizer", "fused_adam", "--max-update", "4")
    torch.testing.assert_close(weights_of(fused).float(), weights_of(whole).float(), rtol=0, atol=2e-3)
