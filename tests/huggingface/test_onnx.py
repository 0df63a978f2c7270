"""One ONNX graph for any batch and length: a recurrence is one Scan, and the numbers are PyTorch's."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch

from conftest import SAMPLE
from model_folders import CHECKPOINTS, HEADS, SHAPES, in_float64, write_model_folder
from rt_plugin.__main__ import main
from rt_plugin.huggingface.onnx_file import quantised
from rt_plugin.model import RecurrentRobertaModel

LENGTHS = (1, 7, 128, 512)
POSITIONS = 520


def export(model, out, *options):
    assert main(["export", str(model), str(out), "--format", "onnx", *options]) == 0
    return out


def run(folder, tokens):
    """The graph's one output for (B, L) token ids, padded with 1."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return torch.from_numpy(
        session.run(None, {"input_ids": tokens.numpy(), "attention_mask": tokens.ne(1).long().numpy()})[0]
    )


def operators(folder):
    """How often each operator is in the graph, those within a Scan's body and in functions included."""
    import onnx

    model, found = onnx.load(folder / "model.onnx"), Counter()

    def count(nodes):
        for node in nodes:
            found[node.op_type] += 1
            for attribute in node.attribute:
                count(attribute.g.node)

    count(model.graph.node)
    for function in model.functions:
        count(function.node)
    return found


def text_ids(ours, length):
    text = (SAMPLE / "train.txt").read_text(encoding="utf-8")[:6000]
    return ours.encode(text)[:length][None]


def check(ours, folder, lengths=LENGTHS):
    """Logits at several lengths, and of a batch with padding."""
    batch = text_ids(ours, 40).repeat(3, 1)
    batch[1, 9:] = batch[2, 30:] = 1
    for tokens in (*(text_ids(ours, length) for length in lengths), batch):
        with torch.no_grad():
            known = ours.model(tokens)[0]
        # the rounding of both: with norms before, PyTorch's alone is 4.8e-5 (`test_distances_from_float64`)
        torch.testing.assert_close(run(folder, tokens)[tokens.ne(1)], known[tokens.ne(1)], rtol=1e-6, atol=1e-4)


@pytest.fixture(scope="module")
def alternate(tmp_path_factory):
    """A model with both directions and k = 3, and its graph."""
    place = tmp_path_factory.mktemp("onnx")
    model = write_model_folder(place / "model", "alternate in groups", positions=POSITIONS)
    return model, export(model, place / "graph")


def test_a_recurrence_is_one_scan_at_every_length(alternate):
    model, folder = alternate
    found = operators(folder)
    assert found["Scan"] == 2 and found["Loop"] == 0  # a layer has one; nothing is unrolled
    assert sum(found.values()) < 250
    check(RecurrentRobertaModel.from_pretrained(str(model)), folder)
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "config.json", "tokenizer_config.json", "dict.txt", "README.md"} <= names
    assert "checkpoint_best.pt" not in names and "model.safetensors" not in names


def test_int8_multiplies_in_eight_bits_and_stays_near(alternate, tmp_path):
    model, folder = alternate
    (tmp_path / "model.onnx").write_bytes(quantised((folder / "model.onnx").read_bytes()))
    found = operators(tmp_path)
    assert found["MatMulInteger"] == 2 * 6 + 2 and found["Scan"] == 2  # the output layer has two
    ours = RecurrentRobertaModel.from_pretrained(str(model))
    tokens = text_ids(ours, 60)
    with torch.no_grad():
        known = ours.model(tokens)[0]
    assert (run(tmp_path, tokens) - known).abs().mean() < 0.1 * known.std()


@pytest.mark.slow
def test_int8_by_the_command(alternate, tmp_path):
    """From the model folder to a graph in 8 bits that runs, and a card that says so."""
    model, _ = alternate
    folder = export(model, tmp_path / "int8", "--precision", "int8")
    assert operators(folder)["MatMulInteger"] == 2 * 6 + 2
    ours = RecurrentRobertaModel.from_pretrained(str(model))
    tokens = text_ids(ours, 60)
    with torch.no_grad():
        known = ours.model(tokens)[0]
    assert (run(folder, tokens) - known).abs().mean() < 0.1 * known.std()
    size = (folder / "model.onnx").stat().st_size / 1e6
    assert f"| file | int8, {size:.1f} MB |" in (folder / "README.md").read_text(encoding="utf-8")


def test_int8_is_made_of_the_weights_as_they_are(tmp_path, monkeypatch):
    """By the command, with another program in the place of torch.onnx and onnxruntime, which take their time."""
    seen = {}

    def write(state, source, model, out, precision, output):
        seen.update({value.dtype: precision for value in state["model"].values()})
        (out / "model.onnx").write_bytes(b"")
        return ["model.onnx"]

    monkeypatch.setattr("rt_plugin.huggingface.onnx_file.write_onnx", write)
    model = write_model_folder(tmp_path / "model", "no recurrence")
    folder = export(model, tmp_path / "out", "--precision", "int8")
    assert seen == {torch.float32: "int8"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| file | int8, 0.0 MB |" in card and "library_name: onnx" in card


@pytest.mark.slow
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "alternate in groups"])
def test_every_shape(shape, tmp_path):
    model = write_model_folder(tmp_path / "model", shape, positions=POSITIONS)
    folder = export(model, tmp_path / "graph")
    recurrent = shape in ("forward", "backward in one group", "norms before", "no positions")
    assert operators(folder)["Scan"] == (2 if recurrent else 0)
    check(RecurrentRobertaModel.from_pretrained(str(model)), folder)


def errors(model, folder, length):
    """Root mean square distances from logits in float64, and the largest: (PyTorch's, onnxruntime's) of each."""
    ours = RecurrentRobertaModel.from_pretrained(str(model))
    exact = in_float64(RecurrentRobertaModel.from_pretrained(str(model), recurrence_impl="reference").model)
    tokens = text_ids(ours, length)
    with torch.no_grad():
        wanted, found = exact(tokens)[0], (ours.model(tokens)[0], run(folder, tokens))
    distances = [one.double() - wanted for one in found]
    return [d.square().mean().sqrt().item() for d in distances], [d.abs().max().item() for d in distances]


def test_its_distance_from_float64_is_pytorch_s(alternate):
    """What separates the two is rounding, in the one as in the other."""
    (ours, onnx), _ = errors(*alternate, 128)
    assert onnx < 1.5 * ours


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["norms before", "mini"])
def test_distances_from_float64(shape, tmp_path):
    """The figures of docs/sharing-a-model.md: pytest -m slow -s -k distances_from tests/huggingface/test_onnx.py."""
    model = CHECKPOINTS / "recurrent_roberta_mini"
    if shape != "mini":
        model = write_model_folder(tmp_path / "model", shape, positions=POSITIONS)
    folder = export(model, tmp_path / "graph")
    for length in LENGTHS[1:] if shape != "mini" else LENGTHS[1:3]:
        (ours, onnx), largest = errors(model, folder, length)
        print(
            f"{shape}, {length}: PyTorch {ours:.1e}, onnxruntime {onnx:.1e}, largest {largest[0]:.1e}, {largest[1]:.1e}"
        )
        assert onnx < 1.5 * ours


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recurrent_roberta_mini_alternate", "roberta_mini"])
def test_committed_models(name, tmp_path):
    ours = RecurrentRobertaModel.from_pretrained(str(CHECKPOINTS / name))
    check(ours, export(CHECKPOINTS / name, tmp_path / "graph"), (1, 7, 128))


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "marks"), HEADS)
def test_classifiers(pooling, marks, tmp_path):
    labels = ("entailment", "not_entailment")
    model = write_model_folder(tmp_path / "model", "forward", labels=labels, pooling=pooling, marks=marks)
    folder, ours = export(model, tmp_path / "graph"), RecurrentRobertaModel.from_pretrained(str(model))
    single = text_ids(ours, 30)
    batch = single.repeat(2, 1)
    batch[0, 12:14] = batch[1, 5:7] = 2  # two texts in each row
    batch[1, 9:] = 1
    assert run(folder, single).isnan().all() == (marks or pooling in ("pair", "apart", "aligned"))
    with torch.no_grad():
        known = ours.predict("sentence_classification_head", batch, return_logits=True)
    torch.testing.assert_close(run(folder, batch), known, rtol=1e-6, atol=1e-5)
    (folder / "model.onnx").write_bytes(quantised((folder / "model.onnx").read_bytes()))
    assert (run(folder, batch) - known).abs().max() < 0.2 * known.abs().max()


@pytest.mark.slow
def test_features(tmp_path):
    model = write_model_folder(tmp_path / "model", "forward")
    folder = export(model, tmp_path / "graph", "--output", "features")
    ours = RecurrentRobertaModel.from_pretrained(str(model))
    tokens = text_ids(ours, 30)
    known = ours.extract_features(tokens).detach()
    torch.testing.assert_close(run(folder, tokens), known, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "onnx", "--precision", "float16"), "--precision float16 with --format onnx: expected float32"),
        (
            ("--format", "safetensors", "--precision", "int8"),
            "--precision int8 with --format safetensors: only an onnx",
        ),
        (("--format", "huggingface", "--output", "features"), "--output features with --format huggingface: only an"),
    ],
)
def test_what_an_option_cannot_be_with(options, words, tmp_path, capsys):
    assert main(["export", str(CHECKPOINTS / "roberta_mini"), str(tmp_path / "out"), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "transformers"])
def test_without_a_package(package, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("rt_plugin.huggingface.model")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    model = write_model_folder(tmp_path / "model", "no recurrence")
    assert main(["export", str(model), str(tmp_path / "out"), "--format", "onnx"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"rt-plugin export: error: {package} is not installed") and "pip install" in line


def test_numpy_is_what_sessions_take(alternate):
    """The lines of the model card."""
    import onnxruntime

    from rt_plugin.huggingface.tokenization_recurrent_roberta import RecurrentRobertaTokenizer

    _, folder = alternate
    tokenizer = RecurrentRobertaTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    (logits,) = session.run(None, dict(tokenizer("It is.", return_tensors="np")))
    assert logits.shape[0] == 1 and np.isfinite(logits).all()
