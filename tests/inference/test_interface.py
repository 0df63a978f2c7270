"""A loaded model on sentences and lists of them: in their order, and whatever stands beside them."""

import doctest
import pydoc

import numpy as np
import pytest
import torch

from conftest import REPOSITORY, SAMPLE
from model_folders import write_model_folder
from rt_plugin import UserError, hub
from rt_plugin.glue.predictor import Predictor
from rt_plugin.glue.readers import Example
from rt_plugin.inference import interface
from rt_plugin.inference.batches import equal_length_batches
from rt_plugin.inference.masks import MaskFiller
from rt_plugin.inference.sentences import SentenceReader
from rt_plugin.model import RecurrentRobertaModel

MODELS = ("recurrent_roberta_mini_alternate", "roberta_mini")
HEAD = hub.CLASSIFICATION_HEAD
WORD_BEGINS = "\u2581"
EXTRAS = ["It is.", "", "A.", "It is.", "Snow \u4e2d fell \U0001f642 at a cafe\u0301.", "A dog \u2028 barks."]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """A pretrained model, with an untrained head of three classes."""
    loaded = hub.from_pretrained(str(REPOSITORY / "examples" / "checkpoints" / request.param))
    torch.manual_seed(1)
    loaded.register_classification_head(HEAD, num_classes=3)
    loaded.task.label_names = ["a", "b", "c"]
    return loaded.eval()


@pytest.fixture(scope="module")
def sentences():
    """Real ones, of all lengths, shortest and odd ones among them."""
    lines = (line for line in (SAMPLE / "valid.txt").read_text(encoding="utf-8").splitlines() if line.strip())
    return [*EXTRAS, *(line for _, line in zip(range(30), (x for x in lines if len(x) < 350), strict=False))]


def assert_alike(found, expected):
    """Within 1e-6 of the largest number (some 10 in these models), or 1e-6 where all are below 1."""
    found, expected = (torch.as_tensor(values).detach() for values in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * max(1, expected.abs().max().item()))


def test_lists_are_given_back_in_order(model, sentences):
    some = sentences[:12]
    pairs = [(text, "It is so.") for text in some]
    assert [ids.tolist() for ids in model.encode(some)] == [model.encode(text).tolist() for text in some]
    assert model.decode(model.encode(some[6:])) == [model.decode(model.encode(text)) for text in some[6:]]
    both = model.encode(some, [second for _, second in pairs])
    assert [ids.tolist() for ids in both] == [ids.tolist() for ids in model.encode(pairs)]
    assert both[3].tolist() == model.encode(*pairs[3]).tolist()
    for labels in (model.classify(some, ["It is so."] * 12), model.classify(pairs)):
        alone = [model.classify(*pair) for pair in pairs]
        assert [label for label, _ in labels] == [label for label, _ in alone]
        assert [p for _, p in labels] == pytest.approx([p for _, p in alone], abs=1e-6)
    masked = [f"{text} It is <mask>." for text in some]
    filled = model.fill_mask(masked, topk=2)
    for text, found in zip(masked, filled, strict=True):
        alone = model.fill_mask(text, topk=2)
        assert [one[::2] for one in found] == [one[::2] for one in alone]
        assert [p for _, p, _ in found] == pytest.approx([p for _, p, _ in alone], abs=1e-6)


def test_the_others_of_a_list_do_not_matter(model, sentences):
    together, features = model.embed(sentences), model.extract_features(sentences)
    first = model.embed(sentences, pooling="first")
    logits, scores = model.predict(HEAD, sentences, return_logits=True), model.score(sentences[2:12])
    for number, text in enumerate(sentences):
        assert_alike(model.embed(text), together[number])
        alone = model.extract_features(text)
        assert_alike(alone, features[number])
        np.testing.assert_array_equal(first[number], features[number][0].detach().numpy())
        assert_alike(alone.mean(dim=0), together[number])
        assert_alike(model.predict(HEAD, text, return_logits=True)[0], logits[number])
    for text, score in zip(sentences[2:12], scores, strict=True):
        assert model.score(text) == pytest.approx(score, abs=1e-6 * max(1, abs(score)))


def test_exact_is_the_same_to_the_last_bit(model, sentences):
    for mixed in (sentences[:9], sentences[8::-1]):
        embedded = model.embed(mixed, exact=True)
        probabilities = model.classify(mixed, exact=True)
        logits = model.predict(HEAD, mixed, exact=True)
        features = model.extract_features(mixed, exact=True)
        scores = model.score([text or "It." for text in mixed[:4]], exact=True)
        filled = model.fill_mask([f"{text} <mask>" for text in mixed], exact=True)
        for number, text in enumerate(mixed):
            assert model.embed(text, exact=True).tobytes() == embedded[number].tobytes()
            assert model.classify(text, exact=True) == probabilities[number]
            assert model.predict(HEAD, text, exact=True)[0].equal(logits[number])
            assert model.extract_features(text, exact=True).equal(features[number])
            assert number > 3 or model.score(text or "It.", exact=True) == scores[number]
            assert model.fill_mask(f"{text} <mask>", exact=True) == filled[number]


def test_padding_does_not_matter(model, sentences):
    pad = model.task.source_dictionary.pad()
    tokens = model.encode(sentences[:20])
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=pad)
    features = model.extract_features(padded)
    layers = model.extract_features(padded, return_all_hiddens=True)
    assert features.shape[:2] == padded.shape and len(layers) == 5
    for row, ids in enumerate(tokens):
        alone = model.extract_features(ids)
        assert alone.shape == (1, len(ids), 256)
        assert_alike(features[row, : len(ids)], alone[0])
        assert layers[-1][row].equal(features[row]) and not features[row, len(ids) :].any()
    assert model.predict(HEAD, padded).exp().sum(dim=1).tolist() == pytest.approx([1] * 20)


def test_batches_are_of_one_length():
    lengths = [5, 3, 5, 9, 3, 5]
    assert list(equal_length_batches(lengths, tokens_per_batch=10)) == [[1, 4], [0, 2], [5], [3]]
    assert list(equal_length_batches(lengths, alone=True)) == [[1], [4], [0], [2], [5], [3]]


def test_nothing_in_nothing_out(model):
    assert model.embed([]).shape == (0, 256) and model.predict(HEAD, []).shape == (0, 3)
    assert model.encode([]) == model.fill_mask([]) == model.extract_features([]) == model.classify([]) == []
    assert model.score([]).shape == (0,)


def test_several_masks(model):
    text = "The <mask> of the United <mask> signed."
    first, second = model.fill_mask(text, topk=2)
    assert second[0] == (f"The <mask> of the United{second[0][2]} signed.", second[0][1], second[0][2])
    assert first[0][0] == f"The{first[0][2]} of the United <mask> signed."
    mask = model.task.source_dictionary.index("<mask>")
    parts = [model.encode(part).tolist()[1:-1] for part in ("The", " of the United", " signed.")]
    ids = torch.tensor([0, *parts[0], mask, *parts[1], mask, *parts[2], 2])
    with torch.no_grad():
        logits = model.model(ids[None])[0][0]
    places = ids.eq(mask)
    for probability, found in zip(logits[places].softmax(-1).max(-1).values.tolist(), (first, second), strict=True):
        assert found[0][1] == pytest.approx(probability, rel=1e-4)


def test_masked_text_is_read_as_the_whole_text_is(model, sentences):
    """A mask in the place of a token, with white space beside it or without, leaves all others what they are."""
    dictionary = model.task.source_dictionary
    filler = MaskFiller(SentenceReader(dictionary, model.text.encode, model.text.decode))
    for sentence in sentences[len(EXTRAS) :]:
        ids, pieces = model.encode(sentence).tolist(), model.text.encode(sentence)
        for place in range(len(pieces)):
            if place and pieces[place - 1] == WORD_BEGINS:  # a space before a mask is taken for that of its token
                continue
            before, after = ("".join(part).replace("\u2581", " ") for part in (pieces[:place], pieces[place + 1 :]))
            text = f"{before}{' ' * pieces[place].startswith(WORD_BEGINS)}<mask>{after}"
            wanted = [*ids[: place + 1], filler.mask, *ids[place + 2 :]]
            assert filler.ids(text, "here", len(ids)).tolist() == wanted, text


LONG = "word " * 400


def test_what_is_too_long_is_named_with_both_lengths(model):
    length = len(model.encode(LONG))
    limit = model.model.max_positions()
    line = f"{length} tokens, the model has positions for {limit}: shorten it, or use truncate=True"
    for use in (model.embed, model.extract_features, lambda text: model.predict(HEAD, text)):
        with pytest.raises(UserError, match=f"^{line}$"):
            use(LONG)
        with pytest.raises(UserError, match=f"sentence 1 has {line}"):
            use(["short", LONG])
    with pytest.raises(UserError, match=rf"sentence 0 has \d+ tokens, the model has positions for {limit}"):
        model.fill_mask(f"<mask> {LONG}")
    with pytest.raises(UserError, match=f"score: sentence 1: found {length - 2} tokens, expected at most {limit - 2}"):
        model.score(["short", LONG])
    with pytest.raises(UserError, match="tokens, the model has positions for"):
        model.classify(LONG, truncate=False)


def test_truncate_cuts(model):
    limit = model.model.max_positions()
    (cut,) = model.encode([LONG], truncate=True)
    assert len(cut) == limit and cut[-1] == 2 and cut[:-1].equal(model.encode(LONG)[: limit - 1])
    assert model.embed([LONG, "short"], truncate=True).tobytes() == model.embed([cut, "short"]).tobytes()
    assert len(model.extract_features(LONG, truncate=True)) == limit
    pair = model.encode("A question?", LONG, truncate=True)
    assert model.decode(pair)[0] == "A question?" and len(pair) == limit
    assert model.fill_mask(f"<mask> {LONG}", truncate=True)[0][0].endswith(LONG)
    with pytest.raises(UserError, match=f"a <mask> behind its first {limit} tokens"):
        model.fill_mask(f"{LONG} <mask>", truncate=True)
    assert model.classify(LONG) == model.classify(cut)


def test_what_is_no_sentence_is_named(model):
    with pytest.raises(UserError, match="sentence 1 is '3' of type int, expected a text"):
        model.embed(["a", 3])
    with pytest.raises(UserError, match="found 2 first and 1 second texts"):
        model.encode(["a", "b"], ["c"])
    with pytest.raises(UserError, match="pooling is 'max', expected one of mean, first"):
        model.embed("a", pooling="max")
    with pytest.raises(UserError, match=r"topk is 0, expected 1 to 15,997"):
        model.fill_mask("<mask>", topk=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model, dtype):
    texts = ["The king of France.", "She was born in 1930."]
    whole = model.embed(texts)
    loaded = hub.from_pretrained(str(REPOSITORY / "examples" / "checkpoints" / MODELS[0])).to("cpu", dtype)
    assert loaded.extract_features(texts[0]).dtype == dtype
    vectors = loaded.embed(texts)
    assert vectors.dtype == whole.dtype == np.float32
    reference = hub.from_pretrained(str(REPOSITORY / "examples" / "checkpoints" / MODELS[0])).embed(texts)
    similarity = (vectors * reference).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)
    assert (similarity > 0.999).all()
    ((_, probability, token),) = loaded.fill_mask("The president of the <mask> States signed the law.", topk=1)
    assert token == " United" and isinstance(probability, float)
    assert np.isfinite(loaded.score(texts)).all()


@pytest.mark.gpu
def test_on_a_gpu(model, sentences):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = model.embed(sentences)
    moved = model.to("cuda")
    try:
        np.testing.assert_allclose(moved.embed(sentences), before, rtol=0, atol=1e-3)
        assert (
            moved.embed(sentences[:9], exact=True).tobytes()
            == moved.embed(sentences[8::-1], exact=True)[::-1].tobytes()
        )
        assert len(moved.fill_mask(["A <mask>."] * 3)) == 3 and moved.score("It is.") < 0
    finally:
        model.to("cpu")


def test_gradients_flow_where_they_are_wanted(model):
    features = model.extract_features(model.encode("It works."))
    features.sum().backward()
    assert model.model.encoder.sentence_encoder.embed_tokens.weight.grad.any()
    model.zero_grad()


@pytest.mark.parametrize("module", [interface, "rt_plugin.model"])
def test_examples_in_docstrings(module, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    module = pydoc.locate(module) if isinstance(module, str) else module
    results = doctest.testmod(module)
    assert results.attempted > 3 and not results.failed


def test_documented_where_people_look():
    text = pydoc.plain(pydoc.render_doc(RecurrentRobertaModel))
    for name in ("fill_mask", "extract_features", "embed", "score", "classify", "from_pretrained"):
        assert name in text
    for name in ("encode", "decode", "fill_mask", "extract_features", "embed", "score", "classify", "predict"):
        assert len(getattr(hub.RecurrentRobertaHubInterface, name).__doc__) > 80


def test_a_regression_has_scores_and_no_probabilities(tmp_path):
    """The log-probability of one number is 0, whatever it is."""
    loaded = RecurrentRobertaModel.from_pretrained(str(write_model_folder(tmp_path / "m", "forward", labels=())))
    pairs = [("It is.", "It was."), ("A dog barks.", "Snow fell.")]
    with pytest.raises(UserError, match=r"gives a score, which has no log-probability; use return_logits=True$"):
        loaded.predict(HEAD, pairs)
    assert loaded.predict(HEAD, pairs, return_logits=True).unique().numel() == 2
    with pytest.raises(UserError, match=r"use rt-plugin predict-glue rows, or predict\(..., return_logits=True\)"):
        loaded.classify(pairs)


@pytest.mark.parametrize("labels", [(), ("entailment", "not_entailment")], ids=["regression", "classes"])
def test_predict_cuts_where_fine_tuning_did(labels, tmp_path):
    """At fewer positions than the model has, the longer text first; as rt-plugin predict-glue does."""
    folder = write_model_folder(tmp_path / "model", "forward", labels=labels)
    path = folder / "checkpoint_best.pt"
    state = torch.load(path, weights_only=False)
    state["cfg"]["task"]["max_positions"] = 20
    path.unlink()
    torch.save(state, path)
    loaded = hub.from_pretrained(str(folder))
    pair = ("Snow fell on the hills all day, and on the roads. " * 2, "It was cold.")
    assert 20 < len(loaded.encode(pair)) < loaded.model.max_positions() == 140
    with torch.no_grad():
        found = loaded.predict(HEAD, pair, return_logits=True, truncate=True)[0]
    expected = Predictor(folder, path.name, 4, cpu=True).outputs([Example(pair, None)])[0]
    assert (found if labels else 5 * found).tolist() == pytest.approx(expected, abs=1e-5)
