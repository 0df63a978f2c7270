"""How far back states remember, against autograd; and the command that writes it down."""

import csv

import pytest
import torch
from torch import nn

from conftest import REPOSITORY, SAMPLE
from rt_plugin import reference
from rt_plugin.evaluation import recurrence_report, recurrence_tables, show_recurrence
from rt_plugin.evaluation.memory import measure
from rt_plugin.modules import RecurrentFFN

LENGTH, BATCH, WIDTH, INNER = 7, 2, 4, 3


class Encoder(nn.Module):
    """Embeddings and one block, called as fairseq's models are."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(10, WIDTH)
        self.block = RecurrentFFN(WIDTH, INNER, **options)
        for parameter in self.block.parameters():
            nn.init.normal_(parameter)

    def forward(self, tokens, features_only):
        return self.block(self.embedding(tokens).transpose(0, 1))


def by_autograd(encoder, tokens, step_size, reverse) -> dict[int, torch.Tensor]:
    """lag -> (d',) mean over positions and rows of |d c[i] / d x1[i - lag]|."""
    block = encoder.block
    x1 = block.in_proj(encoder.embedding(tokens).transpose(0, 1)).chunk(2, dim=-1)[0].detach().double()
    parameters = [p.detach().double() for p in (block.alpha, block.beta)]
    jacobian = torch.autograd.functional.jacobian(
        lambda x: reference.recurrence(x, *parameters, step_size, reverse), x1
    )  # (L, B, d', L, B, d')
    found = {}
    for lag in range(0, LENGTH, step_size):
        pairs = [(i, i + lag if reverse else i - lag) for i in range(LENGTH)]
        pairs = [(i, j) for i, j in pairs if 0 <= j < LENGTH]
        own = [jacobian[i, b, :, j, b].diagonal().abs() for i, j in pairs for b in range(BATCH)]
        found[lag] = torch.stack(own).mean(dim=0)
    return found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("step_size", [1, 2, 3])
def test_derivatives_are_those_of_autograd(step_size, reverse):
    encoder = Encoder(step_size=step_size, reverse=reverse)
    tokens = torch.randint(10, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))
    (layer,) = measure(encoder, [tokens[:1], tokens[1:]], lags=LENGTH)
    expected = by_autograd(encoder, tokens, step_size, reverse)
    assert layer.lags.tolist() == list(expected)
    torch.testing.assert_close(layer.memory, torch.stack(list(expected.values())), rtol=1e-4, atol=1e-6)
    curve = layer.memory.mean(dim=1)
    assert layer.mean_lag() == pytest.approx(float((curve * layer.lags).sum() / curve.sum()))
    assert layer.share_beyond(4) == pytest.approx(float(curve[layer.lags >= 4].sum() / curve.sum()))


def test_untrained_states_forget_half_at_every_step():
    encoder = Encoder()
    with torch.no_grad():
        encoder.block.alpha.fill_(1)
        encoder.block.beta.zero_()
        encoder.embedding.weight.mul_(1e-4)
    (layer,) = measure(encoder, [torch.randint(10, (4, 40))], lags=20)
    torch.testing.assert_close(layer.curve(), 0.5 ** torch.arange(1, 21).double(), rtol=0.02, atol=0)
    assert layer.mean_lag() == pytest.approx(1, abs=0.01)
    assert layer.share_beyond(4) == pytest.approx(1 / 16, abs=0.001)


def test_the_controls():
    tokens = torch.randint(10, (2, 9))
    (layer,) = measure(conv := Encoder(recurrence_type="short-conv", step_size=2), [tokens], lags=4)
    assert layer.lags.tolist() == [0, 2, 4, 6]
    assert torch.equal(layer.memory, conv.block.conv_weight.detach().double().abs())
    (layer,) = measure(Encoder(recurrence_type="none"), [tokens], lags=4)
    assert (layer.mean_lag(), layer.share_beyond(1)) == (0, 0)


def test_gates_over_the_text():
    encoder = Encoder(gate="sigmoid")
    tokens = torch.arange(10).unsqueeze(0)
    (layer,) = measure(encoder, [tokens], lags=2)
    x2 = encoder.block.in_proj(encoder.embedding.weight).chunk(2, dim=-1)[1]
    gates = torch.sigmoid(x2 + encoder.block.gate_bias).detach()
    assert layer.gates == pytest.approx(gates.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist(), abs=1e-5)
    assert layer.closed == pytest.approx((gates < 0.05).double().mean().item())


def test_gates_of_a_long_text_are_those_of_all_channels():
    """Of so many values a sample is kept: a third of the positions, and of each all of the three channels."""
    encoder = Encoder(gate="sigmoid")
    with torch.no_grad():
        encoder.block.in_proj.weight.zero_()
        encoder.block.gate_bias.copy_(torch.tensor([-5.0, 0.0, 5.0]))
    tokens = torch.randint(10, (200, 500), generator=torch.Generator().manual_seed(1))
    (layer,) = measure(encoder, [tokens], lags=1)
    low, middle, high = torch.sigmoid(encoder.block.gate_bias).tolist()
    assert layer.gates == pytest.approx([low, low, middle, high, high])
    assert layer.closed == pytest.approx(1 / 3)


def run(model, text, out, *options):
    return show_recurrence.main([*map(str, (model, text, "--out", out, *options))])


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_and_figures(pretrained, tmp_path, capsys):
    options = ("--checkpoint", "checkpoint_last.pt", "--blocks", 3, "--lags", 10, "--name", "tiny")
    assert run(pretrained, SAMPLE / "valid.txt", tmp_path, *options) == 0
    assert all((tmp_path / name).stat().st_size for name in (*recurrence_report.FILES, *recurrence_tables.FILES))
    assert [(row["layer"], row["lag"]) for row in rows(tmp_path / "memory.csv")] == [
        (str(layer), str(lag)) for layer in (1, 2) for lag in range(10)
    ]
    parameters = {(row["layer"], row["parameter"]): row for row in rows(tmp_path / "parameters.csv")}
    assert [name for layer, name in parameters if layer == "2"] == ["alpha", "beta", "c_bias", "gate_bias", "gate"]
    assert float(parameters["1", "alpha"]["q50"]) == pytest.approx(1, abs=0.1)  # 8 updates move it little
    assert "# What the recurrence of tiny has learned" in (said := capsys.readouterr().out)
    assert "measured on 144 tokens" in said


def test_a_model_without_a_recurrence(tmp_path, capsys):
    model = REPOSITORY / "examples" / "checkpoints" / "roberta_mini"
    assert run(model, SAMPLE / "valid.txt", tmp_path, "--blocks", "1") == 1
    assert "found no recurrent block in the model" in capsys.readouterr().err.splitlines()[-1]


def test_a_text_that_is_too_short(pretrained, tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("It is.\n", encoding="utf-8")
    assert run(pretrained, text, tmp_path / "out", "--checkpoint", "checkpoint_last.pt") == 1
    assert "expected at least 48, a block of the model's length" in capsys.readouterr().err.splitlines()[-1]
