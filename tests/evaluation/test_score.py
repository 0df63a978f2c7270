"""Pseudo-log-likelihoods against a loop that masks one token after the other, and the command that writes them."""

import csv
import json
import math
import subprocess
import sys

import pytest
import torch

from conftest import ENVIRONMENT, REPOSITORY, SAMPLE
from rt_plugin import UserError, hub
from rt_plugin.evaluation import score
from rt_plugin.inference.likelihood import MASKS, PseudoLikelihood

SENTENCES = (
    "The film was made in 1998 by an unexpectedly extraordinary photographer.",
    "It is.",
    "A dog, a cat and 3 xylophones!",
    "It is.",
    "Snow \u4e2d fell.",
)


@pytest.fixture(scope="module")
def model(pretrained):
    return hub.from_pretrained(str(pretrained), "checkpoint_last.pt")


def one_by_one(model, text: str, mask: str) -> list[float]:
    """The definition, with a batch of one: each token's logarithm, the token hidden, or also the rest of its word."""
    dictionary = model.task.source_dictionary
    pieces = ["<s>", *model.text.encode(text), "</s>"]
    ids = [dictionary.index(piece) for piece in pieces]
    values = []
    for place in range(1, len(pieces) - 1):
        masked = list(ids)
        masked[place] = dictionary.index("<mask>")
        following = place + 1
        while mask == "word" and following < len(pieces) - 1 and not pieces[following].startswith("\u2581"):
            masked[following] = dictionary.index("<mask>")
            following += 1
        with torch.no_grad():
            logits = model.model(torch.tensor([masked]))[0][0, place]
        values.append(logits.double().log_softmax(-1)[ids[place]].item())
    return values


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 4096])
@pytest.mark.parametrize("mask", MASKS)
def test_like_masking_one_by_one(model, mask, tokens_per_batch):
    scorer = PseudoLikelihood(model, mask, tokens_per_batch)
    values = scorer([scorer.encode(text) for text in SENTENCES])
    assert len(values) == len(SENTENCES)
    for text, value in zip(SENTENCES, values, strict=True):
        assert value.tolist() == pytest.approx(one_by_one(model, text, mask), abs=1e-4)


def test_the_variants_differ_where_words_are_cut(model):
    """Else the test above would not tell one from the other."""
    word, token = (one_by_one(model, SENTENCES[0], mask) for mask in ("word", "token"))
    assert max(abs(a - b) for a, b in zip(word, token, strict=True)) > 1e-3
    pieces = model.text.encode(SENTENCES[0])
    single = [i for i in range(len(pieces)) if _stands_alone(pieces, i)]
    assert single and all(word[i] == token[i] for i in single)


def _stands_alone(pieces: list[str], i: int) -> bool:
    return all(piece.startswith("\u2581") for piece in pieces[i : i + 2])


def test_another_way_of_masking_reads_only_what_differs(model):
    known = {}
    both = [PseudoLikelihood(model, mask) for mask in MASKS]
    sentences = [both[0].encode(text) for text in SENTENCES]
    for scorer in both:
        values = scorer(sentences, known=known)
        for text, value in zip(SENTENCES, values, strict=True):
            assert value.tolist() == pytest.approx(one_by_one(model, text, scorer.mask), abs=1e-4)
    pieces = [model.text.encode(text) for text in dict.fromkeys(SENTENCES)]
    followed = sum(not piece.startswith("\u2581") for sentence in pieces for piece in sentence[1:])
    assert len(known) == sum(map(len, pieces)) + followed and followed


def test_equal_sentences_score_the_same_to_the_last_bit(model):
    """A tie of a minimal pair must be one."""
    scorer = PseudoLikelihood(model, tokens_per_batch=64)
    texts = [line for line in (SAMPLE / "valid.txt").read_text(encoding="utf-8").splitlines() if line][:30]
    sentences = [scorer.encode(text) for text in [*texts, *texts] if len(text) < 100]
    values = [value.sum() for value in scorer(sentences)]
    assert values[: len(values) // 2] == values[len(values) // 2 :]


def test_progress_adds_up_to_one(model):
    shares = []
    scorer = PseudoLikelihood(model, tokens_per_batch=64)
    sentences, known = [scorer.encode(text) for text in SENTENCES], {}
    scorer(sentences, shares.append, known)
    assert len(shares) > 3 and sum(shares) == pytest.approx(1)
    scorer(sentences, shares.append, known)
    assert sum(shares) == pytest.approx(2)


def test_unknown_mask(model):
    with pytest.raises(UserError, match="mask is 'sentence', expected one of token, word"):
        PseudoLikelihood(model, "sentence")


def run(pretrained, *arguments):
    return score.main([*map(str, arguments), "--model", str(pretrained), "--checkpoint", "checkpoint_last.pt", "--cpu"])


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join([*SENTENCES[:2], "", *SENTENCES[2:]]) + "\n", encoding="utf-8")
    return path


def test_rows_in_the_order_of_the_file(pretrained, model, text_file, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    assert run(pretrained, text_file, "--out", out) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sentence"] for row in rows] == list(SENTENCES)
    assert [int(row["line"]) for row in rows] == [1, 2, 4, 5, 6]
    expected = [one_by_one(model, text, "token") for text in SENTENCES]
    assert [int(row["tokens"]) for row in rows] == [len(values) for values in expected]
    assert [float(row["pll_nats"]) for row in rows] == pytest.approx([sum(values) for values in expected], abs=1e-4)
    assert [int(row["unknown"]) for row in rows] == [0, 0, 0, 0, 1]
    perplexity = math.exp(-sum(map(sum, expected)) / sum(map(len, expected)))
    assert f"5 sentences, {sum(map(len, expected))} tokens, 1 of them unknown" in (said := capsys.readouterr().err)
    assert float(said.split("pseudo-perplexity ")[1]) == pytest.approx(perplexity, abs=0.01)


def test_bits_as_json_lines(pretrained, model, text_file, capsys):
    assert run(pretrained, text_file, "--format", "jsonl", "--unit", "bits", "--mask", "word") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [sum(one_by_one(model, text, "word")) / math.log(2) for text in SENTENCES]
    assert [row["pll_bits"] for row in rows] == pytest.approx(expected, abs=2e-4)


def test_tab_separated_by_the_name_of_the_file(pretrained, tmp_path):
    """Without quotes, as all TSV files here are read."""
    (tmp_path / "in.txt").write_text('"So", he said.\nA\t"tab".\n', encoding="utf-8")
    assert run(pretrained, tmp_path / "in.txt", "--out", tmp_path / "scores.tsv") == 0
    first, *rows = (line.split("\t") for line in (tmp_path / "scores.tsv").read_text(encoding="utf-8").splitlines())
    assert first == ["line", "tokens", "unknown", "pll_nats", "sentence"]
    assert [(row[0], row[4:]) for row in rows] == [("1", ['"So", he said.']), ("2", ['A "tab".'])]


@pytest.mark.parametrize("options", [(), ("--skip-long",)])
def test_a_line_of_which_the_tokenizer_leaves_nothing(options, pretrained, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("It is.\n\u200b\nIt was.\n", encoding="utf-8")
    assert run(pretrained, tmp_path / "in.txt", *options) == 0
    said = capsys.readouterr()
    assert [row["pll_nats"] != "" for row in csv.DictReader(said.out.splitlines())] == [True, False, True]
    assert "2 sentences, " in said.err and ", 1 lines without text;" in said.err and "too long" not in said.err


def test_chunks_of_a_long_file(pretrained, tmp_path, monkeypatch):
    """Files are read piece by piece; what comes out does not show where they were cut."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"It is {i}.\n" for i in range(20)), encoding="utf-8")
    for size, name in ((3, "a.csv"), (1000, "b.csv")):
        monkeypatch.setattr(score, "_CHUNK", size)
        assert run(pretrained, path, "--out", tmp_path / name) == 0
    a, b = ([row.split(",") for row in (tmp_path / name).read_text().splitlines()[1:]] for name in ("a.csv", "b.csv"))
    assert [row[0] for row in a] == [str(i) for i in range(1, 21)]
    assert [float(row[3]) for row in a] == pytest.approx([float(row[3]) for row in b], abs=1e-5)


def test_a_line_that_is_too_long(pretrained, text_file, tmp_path, capsys):
    with text_file.open("a", encoding="utf-8") as file:
        file.write("word " * 500 + "\nIt is.\n")
    out = tmp_path / "scores.csv"
    assert run(pretrained, text_file, "--out", out) == 1
    assert not out.exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("rt-plugin score: error: ") and f"{text_file}, line 7: found " in error
    assert "expected at most 46, the model's positions" in error and "--skip-long" in error
    assert run(pretrained, text_file, "--out", out, "--skip-long") == 0
    assert "1 lines too long" in capsys.readouterr().err
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[5]["line"] == "7" and rows[5]["pll_nats"] == ""
    assert rows[6]["pll_nats"] == rows[1]["pll_nats"]


def test_standard_output_that_is_full(pretrained, text_file):
    """In one line, also at the end of the process, when what is left is written again."""
    words = [sys.executable, "-m", "rt_plugin", "score", text_file, "--model", pretrained, "--cpu"]
    with open("/dev/full", "w") as full:
        environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": ""}
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert result.stderr.endswith("rt-plugin score: error: standard output: No space left on device\n")


def test_out_is_the_text_itself(pretrained, text_file, capsys):
    before = text_file.read_bytes()
    assert run(pretrained, text_file, "--out", text_file) == 1
    assert f"{text_file}: is the input itself; give another file to write" in capsys.readouterr().err
    assert text_file.read_bytes() == before


def test_out_is_a_folder(pretrained, text_file, tmp_path, capsys):
    assert run(pretrained, text_file, "--out", tmp_path) == 1
    assert f"{tmp_path}: is a folder" in capsys.readouterr().err
