"""Loading a model folder for inference, in this process and in a fresh one from another folder."""

import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch

from conftest import REPOSITORY
from rt_plugin import UserError
from rt_plugin.inference.masks import MaskFiller
from rt_plugin.inference.sentences import SentenceReader
from rt_plugin.model import RecurrentRobertaModel

# What a user types, from any folder: fairseq's own ways to load, then the plugin's.
FRESH_PROCESS = """
import json, sys, torch
import rt_plugin
from fairseq import checkpoint_utils, hub_utils
loaded = hub_utils.from_pretrained(sys.argv[1], "checkpoint_last.pt")
(again,), _, task = checkpoint_utils.load_model_ensemble_and_task([sys.argv[1] + "/checkpoint_last.pt"])
for name, weight in loaded["models"][0].state_dict().items():
    assert weight.equal(again.state_dict()[name]), name
assert type(again).__name__ == "RecurrentRobertaModel" and len(task.source_dictionary) == len(again.encoder.dictionary)
from rt_plugin.model import RecurrentRobertaModel
model = RecurrentRobertaModel.from_pretrained(sys.argv[1], "checkpoint_last.pt")
tokens = model.encode("Paris is the capital of France.")
features = model.extract_features(tokens)
filled = model.fill_mask("He was a <mask>.", topk=3)
print(json.dumps([model.decode(tokens), list(features.shape), len(tokens), filled]))
"""


@pytest.fixture(scope="module")
def model(pretrained):
    return RecurrentRobertaModel.from_pretrained(str(pretrained), "checkpoint_last.pt")


def test_fresh_process_from_another_folder(pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "moved")
    state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    for group in state["cfg"].values():  # a machine that this one knows nothing of
        for name, value in group.items() if isinstance(group, dict) else vars(group or object).items():
            if isinstance(value, str) and value.startswith("/"):
                (group.__setitem__ if isinstance(group, dict) else partial(setattr, group))(name, f"/elsewhere{value}")
    (folder / "checkpoint_last.pt").unlink()
    torch.save(state, folder / "checkpoint_last.pt")
    result = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, folder],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    text, shape, length, filled = json.loads(result.stdout.splitlines()[-1])
    assert text == "Paris is the capital of France."
    assert shape == [1, length, 128]
    assert len(filled) == 3


def test_loaded_for_inference_and_without_a_network(model):
    assert not model.training
    assert RecurrentRobertaModel.hub_models() == {}


@pytest.mark.parametrize("sentences", [["One sentence."], ["The first.", "And a second one."], ["A b.", "C.", "D e."]])
def test_encode_and_decode_are_inverse(model, sentences):
    dictionary = model.task.source_dictionary
    tokens = model.encode(*sentences)
    assert tokens[0] == dictionary.bos() and tokens[-1] == dictionary.eos()
    assert tokens.eq(dictionary.eos()).sum() == 2 * len(sentences) - 1
    assert model.decode(tokens) == (sentences[0] if len(sentences) == 1 else sentences)


def test_text_is_normalised_as_in_training(model):
    """The sample's tokenizer was trained on text with Moses punctuation normalisation."""
    assert model.encode("\u201cYes\u201d \u2013 it\u2019s").tolist() == model.encode('"Yes" - it\'s').tolist()


def test_special_tokens_in_text_are_text(model):
    dictionary = model.task.source_dictionary
    tokens = model.encode("a </s> b <mask> c <pad>").tolist()
    assert tokens.count(dictionary.eos()) == 1
    assert dictionary.index("<mask>") not in tokens and dictionary.pad() not in tokens


@pytest.mark.parametrize("topk", [1, 5, 50])
def test_fill_mask_gives_exactly_topk_true_probabilities(model, topk):
    sentence = "The capital of <mask> is old."
    filled = model.fill_mask(sentence, topk=topk)
    dictionary = model.task.source_dictionary
    assert len({token for _, _, token in filled}) == len(filled) == topk
    assert [p for _, p, _ in filled] == sorted((p for _, p, _ in filled), reverse=True)
    before, after = (model.encode(part).tolist()[1:-1] for part in ("The capital of", " is old."))
    ids = [dictionary.bos(), *before, dictionary.index("<mask>"), *after, dictionary.eos()]
    with torch.no_grad():
        probabilities = model.model(torch.tensor([ids]))[0][0, ids.index(dictionary.index("<mask>"))].softmax(-1)
    probabilities[[0, 1, 2, 3, dictionary.index("<mask>")]] = 0
    assert filled[0][1] == pytest.approx(probabilities.max().item(), rel=1e-5)
    assert all(text.startswith("The capital of") and text.endswith(" is old.") for text, _, _ in filled)


def test_filled_sentences_have_spaces_where_words_begin(model):
    dictionary = model.task.source_dictionary
    filler = MaskFiller(SentenceReader(dictionary, model.text.encode, model.text.decode))

    def filled(text, piece):
        return filler.fill(text, [[dictionary.index(piece)]], [[0.5]])

    assert filled("He is <mask>.", "\u2581the") == [("He is the.", 0.5, " the")]
    assert filled("He is <mask> here", "s") == [("He iss here", 0.5, "s")]
    assert filled("<mask> men", "\u2581The") == [("The men", 0.5, " The")]


def test_fill_mask_needs_a_mask(model):
    with pytest.raises(UserError, match="sentence 1: found no <mask> in 'no mask', expected at least one"):
        model.fill_mask(["A <mask>.", "no mask"])


def test_features_do_not_depend_on_the_batch(model):
    pad = model.task.source_dictionary.pad()
    short, long = model.encode("A short one."), model.encode("A sentence that is quite a bit longer.")
    padded = torch.stack([torch.nn.functional.pad(short, (0, len(long) - len(short)), value=pad), long])
    together = model.extract_features(padded)
    torch.testing.assert_close(together[:1, : len(short)], model.extract_features(short), rtol=0, atol=1e-5)


def test_without_a_fine_tuned_head(model):
    with pytest.raises(UserError, match="no class labels"):
        model.classify("A sentence.")
    with pytest.raises(UserError, match="no classification head 'x' in this checkpoint; heads: none"):
        model.predict("x", model.encode("A sentence."))


def remove(name):
    return lambda folder: (folder / name).unlink()


def cut_in_half(folder):
    path = folder / "checkpoint_last.pt"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def foreign_dictionary(folder):
    (folder / "dict.txt").write_text("".join(f"word{i} 1\n" for i in range(796)), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such folder"),
        (
            remove("checkpoint_last.pt"),
            r"no checkpoint_last\.pt there; .*: checkpoint_best\.pt",
        ),
        (remove("sentencepiece.bpe.model"), r"no sentencepiece\.bpe\.model there"),
        (remove("dict.txt"), r"no dict\.txt"),
        (cut_in_half, r"checkpoint_last\.pt cannot be read"),
        (foreign_dictionary, "dict"),
    ],
)
def test_incomplete_folders_are_named(damage, message, pretrained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(pretrained, folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        RecurrentRobertaModel.from_pretrained(str(folder), "checkpoint_last.pt")


def test_tokenizer_and_dictionary_may_lie_in_a_data_folder(pretrained, data_bin, tmp_path):
    shutil.copy(pretrained / "checkpoint_last.pt", tmp_path)
    model = RecurrentRobertaModel.from_pretrained(str(tmp_path), "checkpoint_last.pt", str(data_bin))
    assert model.decode(model.encode("It works.")) == "It works."


def test_a_colon_in_the_name_of_a_folder_above(pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "12:30" / "model")
    assert RecurrentRobertaModel.from_pretrained(str(folder), "checkpoint_last.pt").encode("It works.")[0] == 0


@pytest.mark.parametrize("name", ["recurrent_roberta_mini", "recurrent_roberta_mini_alternate", "roberta_mini"])
def test_shipped_checkpoints_know_their_language(name):
    folder = REPOSITORY / "examples" / "checkpoints" / name
    model = RecurrentRobertaModel.from_pretrained(str(folder))
    ((_, probability, token),) = model.fill_mask("The president of the <mask> States signed the law.", topk=1)
    assert token.strip() == "United" and probability > 0.5
    assert (folder / "README.md").read_text().count("creativecommons.org/licenses/by-sa/3.0") == 1
