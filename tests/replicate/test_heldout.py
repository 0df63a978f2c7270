"""Held-out loss: models whose loss is known, the same masks for all, and the parts that add up to the whole."""

import csv
import math
import shutil

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, data_utils

from rt_plugin.replicate import heldout, losses


@pytest.fixture(scope="module")
def model_with(pretrained, tmp_path_factory):
    """Makes a copy of a trained model whose logits are the given (symbols,) bias, whatever it reads."""

    def make(bias=None, **options):
        folder = tmp_path_factory.mktemp("model")
        shutil.copytree(pretrained, folder, dirs_exist_ok=True)
        state = torch.load(pretrained / "checkpoint_last.pt", weights_only=False)
        if bias is not None:
            for name in ("encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight"):
                state["model"][name].zero_()
            state["model"]["encoder.lm_head.bias"].copy_(bias)
        for name, value in options.items():
            state["cfg"]["task"][name] = state["cfg"]["common"][name] = value
        torch.save(state, folder / "checkpoint_best.pt")
        return folder

    return make


def symbols(data_bin) -> Dictionary:
    dictionary = Dictionary.load(str(data_bin / "dict.txt"))
    dictionary.add_symbol("<mask>")
    return dictionary


def measure(folder, data_bin, mask_seed=1):
    return losses.measure(folder, str(data_bin), mask_seed, "valid", "checkpoint_best.pt", "cpu")


def test_a_model_without_knowledge_has_the_entropy_of_the_vocabulary(model_with, data_bin):
    count = len(symbols(data_bin))
    found = measure(model_with(torch.zeros(count)), data_bin)
    assert found.loss == found.chosen_loss == pytest.approx(math.log2(count), abs=1e-5)
    assert all(loss == pytest.approx(math.log2(count), abs=1e-5) for *_, loss in found.positions + found.frequencies)


def test_a_model_of_token_counts_has_the_unigram_loss(model_with, data_bin):
    dictionary = symbols(data_bin)
    counts = np.zeros(len(dictionary))
    sentences = data_utils.load_indexed_dataset(str(data_bin / "train"), dictionary)
    for i in range(len(sentences)):
        np.add.at(counts, sentences[i].numpy(), 1)
    counts[dictionary.eos()] = 0
    bias = torch.tensor(np.log((counts + 1) / (counts + 1).sum()), dtype=torch.float32)
    found = measure(model_with(bias), data_bin)
    assert found.loss == pytest.approx(found.unigram_loss, abs=1e-4)
    assert found.unigram_loss == pytest.approx(losses.unigram_loss(str(data_bin)), abs=0.15)
    by_frequency = [loss for *_, loss in found.frequencies]
    assert by_frequency == sorted(by_frequency, reverse=True)  # by definition: what is rare is improbable


def test_parts_add_up(model_with, data_bin):
    found = measure(model_with(), data_bin)
    for parts in (found.positions, found.frequencies):
        assert sum(tokens for _, _, tokens, _ in parts) == found.masked
        assert np.average([p[3] for p in parts], weights=[p[2] for p in parts]) == pytest.approx(found.loss)
    # 80 % of the chosen positions hold <mask>; their loss is not that of all
    assert found.masked / found.chosen == pytest.approx(0.8, abs=0.05)
    assert found.loss != found.chosen_loss
    assert found.positions[0][0] == 1  # <s> stands at 0 and is never hidden


def test_masks_depend_on_the_mask_seed_alone(model_with, data_bin):
    first = measure(model_with(), data_bin)
    assert measure(model_with(seed=77), data_bin) == first
    assert measure(model_with(), data_bin, mask_seed=2).loss != first.loss


def test_command_writes_tables_and_plots(model_with, data_bin, tmp_path, capsys):
    folders = [model_with(), model_with(torch.zeros(len(symbols(data_bin))))]
    words = [*folders, "--labels", "trained", "zero", "--data", data_bin, "--split", "valid", "--out", tmp_path / "out"]
    assert heldout.main([*map(str, words)]) == 0
    with (tmp_path / "out" / "held_out.csv").open(newline="") as file:
        trained, zero = csv.DictReader(file)
    assert (trained["model"], zero["model"], trained["masked"]) == ("trained", "zero", zero["masked"])
    assert float(trained["loss"]) < float(zero["loss"])
    for name in ("positions", "frequencies"):
        assert {r["model"] for r in csv.DictReader((tmp_path / "out" / f"{name}.csv").open())} == {"trained", "zero"}
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5_000
    assert f"{float(trained['loss']):.3f} bits over" in capsys.readouterr().out


def test_errors_are_one_line(model_with, data_bin, tmp_path, capsys):
    folder = model_with()
    words = [str(folder), "--data", str(data_bin), "--out", str(tmp_path / "out")]
    assert heldout.main(words) == 1
    assert "split 'test' is missing" in capsys.readouterr().err
    assert heldout.main([*words, "--checkpoint", "none.pt"]) == 1
    assert f"{folder / 'none.pt'}: no such checkpoint" in capsys.readouterr().err
    assert heldout.main([str(folder), *words]) == 1
    assert "give each its name with --labels" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(data_bin, other)
    lines = (other / "dict.txt").read_text(encoding="utf-8").splitlines()
    lines[5], lines[6] = lines[6], lines[5]  # as many tokens, so that the weights fit
    (other / "dict.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert heldout.main([str(folder), "--data", str(other), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert str(folder / "dict.txt") in error and "give the corpus that it was trained on as --data" in error


def test_what_tells_that_a_model_was_measured_is_written_last(tmp_path, monkeypatch):
    """Killed in between, the model is measured again."""
    written = []
    monkeypatch.setattr(heldout, "write_csv", lambda path, *_: written.append(path.name))
    heldout.write({}, "test", 1, tmp_path)
    assert written == ["frequencies.csv", "positions.csv", "held_out.csv"]
