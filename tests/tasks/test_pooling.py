"""--pooling of rt_glue: what the head reads, that padding changes nothing, and that it stays with the model."""

import copy
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fairseq.data.data_utils import collate_tokens

from conftest import run_command, user_error
from model_folders import write_model_folder
from rt_plugin.errors import UserError
from rt_plugin.export import command as export
from rt_plugin.glue.pooling import pool
from rt_plugin.model import RecurrentRobertaModel

HEAD = "sentence_classification_head"
LABELS = ("entailment", "not_entailment")
TEXTS = ("What is in the town?", "The river that flows through the old town is long, cold and deep in spring.")


def finetune(data, save_dir, *options, ok=True):
    return run_command(
        "fairseq-train",
        *(data, "--user-dir", "rt_plugin", "--task", "rt_glue", "--criterion", "rt_glue", "--cpu", "--lr", "1e-3"),
        *("--optimizer", "adam", "--batch-size", "16", "--num-workers", "0", "--no-epoch-checkpoints"),
        *("--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric", "--max-update", "2"),
        *("--save-dir", save_dir, *options),
        ok=ok,
    )


@pytest.fixture(scope="module")
def mean_model(glue_dir, pretrained, tmp_path_factory):
    """A recurrent_roberta fine-tuned with --pooling mean."""
    folder = tmp_path_factory.mktemp("mean")
    start = ("--arch", "recurrent_roberta_tiny", "--finetune-from-model", pretrained / "checkpoint_best.pt")
    finetune(glue_dir / "out" / "QNLI", folder, *start, "--pooling", "mean")
    return folder


@pytest.fixture(scope="module")
def max_model(glue_dir, tmp_path_factory):
    """fairseq's own roberta, fine-tuned from scratch with --pooling max."""
    folder = tmp_path_factory.mktemp("max")
    finetune(glue_dir / "out" / "QNLI", folder, "--arch", "roberta_tiny", "--max-positions", "64", "--pooling", "max")
    return folder


@pytest.fixture(scope="module")
def of_two(glue_dir, pretrained, tmp_path_factory):
    """Pooling for two texts -> a recurrent_roberta fine-tuned with it."""
    folders = {}
    start = ("--arch", "recurrent_roberta_tiny", "--finetune-from-model", pretrained / "checkpoint_best.pt")
    for pooling in ("pair", "apart", "aligned"):
        folders[pooling] = tmp_path_factory.mktemp(pooling)
        finetune(glue_dir / "out" / "STS-B", folders[pooling], *start, "--pooling", pooling)
    return folders


def single_texts(glue_dir, folder):
    """The data and options of fairseq-train for QNLI without its second texts."""
    data = folder / "single texts"
    shutil.copytree(glue_dir / "out" / "QNLI", data)
    shutil.rmtree(data / "input1")
    (data / "glue.json").unlink()
    return data, "--num-classes", "2"


def by_definition(hub, ids, pooling):
    """The head's logits for one text without padding, from fairseq's own head on the vector that the option names."""
    hidden = hub.extract_features(ids)[0]
    return logits_of(hub, hidden.mean(dim=0) if pooling == "mean" else hidden.max(dim=0).values)


def padded(hub, ids):
    """Token ids of several lengths as one batch, with two positions more than the longest has."""
    return collate_tokens(ids, hub.task.source_dictionary.pad(), pad_to_length=max(map(len, ids)) + 2)


def logits_of(hub, vector):
    head = hub.model.classification_heads[HEAD]
    return head.out_proj(torch.tanh(head.dense(vector)))


def farness(a, b):
    """The mean over a's states of how far each is from b's, weighted by the softmax of cosines over 0.05."""
    total = 0
    for state in a:
        weights = torch.softmax(torch.cosine_similarity(state[None], b, dim=-1) / 0.05, dim=0)
        total = total + (state - (weights[:, None] * b).sum(dim=0)).abs()
    return total / len(a)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_head_reads_the_pooled_vector_and_padding_changes_nothing(pooling, request):
    hub = RecurrentRobertaModel.from_pretrained(str(request.getfixturevalue(f"{pooling}_model")))
    ids = [hub.encode(text) for text in TEXTS]
    alone = torch.cat([hub.predict(HEAD, i, return_logits=True) for i in ids])
    expected = torch.stack([by_definition(hub, i, pooling) for i in ids])
    torch.testing.assert_close(alone, expected)
    torch.testing.assert_close(hub.predict(HEAD, padded(hub, ids), return_logits=True), alone, rtol=1e-4, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-6  # or all would be equal to anything


@pytest.mark.parametrize("pooling", ["pair", "apart", "aligned"])
def test_the_head_reads_both_texts_of_a_pair(pooling, of_two, tmp_path):
    """Of texts of different length, with padding and without, and after an export."""
    hub = RecurrentRobertaModel.from_pretrained(str(of_two[pooling]))
    pairs = [TEXTS, TEXTS[::-1], ("The river?", "The old town.")]
    ids = [hub.encode(*pair) for pair in pairs]
    alone = torch.cat([hub.predict(HEAD, i, return_logits=True) for i in ids])
    for pair, tokens, found in zip(pairs, ids, alone, strict=True):
        hidden, length = hub.extract_features(tokens)[0], len(hub.encode(pair[0]))
        a, b = hidden[:length], hidden[length:]
        if pooling != "pair":
            a, b = (hub.extract_features(hub.encode(text))[0] for text in pair)
        u, v = a.mean(dim=0), b.mean(dim=0)
        parts = [u, v, (u - v).abs(), u * v]
        if pooling == "aligned":
            parts += [farness(a, b), farness(b, a)]
        torch.testing.assert_close(found, logits_of(hub, torch.cat(parts)))
    torch.testing.assert_close(hub.predict(HEAD, padded(hub, ids), return_logits=True), alone, rtol=1e-4, atol=1e-5)
    assert alone.std() > 1e-6  # or all would be equal to anything
    assert export.main([str(of_two[pooling]), str(tmp_path / "out"), "--precision", "float32"]) == 0
    exported = RecurrentRobertaModel.from_pretrained(str(tmp_path / "out"))
    assert torch.equal(exported.predict(HEAD, ids[0], return_logits=True), alone[:1])


@pytest.fixture(scope="module")
def marked(glue_dir, pretrained, tmp_path_factory):
    """(model, pooling) -> one fine-tuned with --mark-shared."""
    recurrent = ("--arch", "recurrent_roberta_tiny", "--finetune-from-model", pretrained / "checkpoint_best.pt")
    roberta = ("--arch", "roberta_tiny", "--max-positions", "64")
    folders = {}
    for name, start, pooling in (("recurrent", recurrent, "aligned"), ("roberta", roberta, "first")):
        folders[name, pooling] = tmp_path_factory.mktemp("marked")
        finetune(glue_dir / "out" / "QNLI", folders[name, pooling], *start, "--pooling", pooling, "--mark-shared")
    return folders


def read_with_marks(hub, ids, others):
    """(L, d) features of token ids, each marked by whether it is among its others, a list of ids for each."""
    encoder, marks = hub.model.encoder.sentence_encoder, hub.model.classification_heads[HEAD].marks.weight
    embedded = encoder.embed_tokens(ids[None]).clone()
    for i, token in enumerate(ids.tolist()):
        if token > 3:  # no special symbol
            embedded[0, i] += marks[2 if token in others[i] else 1]
    return encoder(ids[None], token_embeddings=embedded)["encoder_out"][0][:, 0]


@pytest.mark.parametrize(("name", "pooling"), [("recurrent", "aligned"), ("roberta", "first")])
def test_shared_tokens_are_marked(name, pooling, marked):
    """Texts read one by one and together, with padding and without; and for this head alone."""
    hub = RecurrentRobertaModel.from_pretrained(str(marked[name, pooling]))
    pairs = [TEXTS, TEXTS[::-1], ("The river?", "The old town of the old river.")]
    ids = [hub.encode(*pair) for pair in pairs]
    alone = torch.cat([hub.predict(HEAD, i, return_logits=True) for i in ids])
    for pair, tokens, found in zip(pairs, ids, alone, strict=True):
        a, b = (hub.encode(text) for text in pair)
        of_a, of_b = [b.tolist()] * len(a), [a.tolist()] * len(b)
        assert set(a.tolist()) & set(b.tolist()) - {0, 2}  # they share a word
        if pooling == "first":
            vector = read_with_marks(hub, tokens, [*of_a, *of_b])[0]
        else:
            a, b = read_with_marks(hub, a, of_a), read_with_marks(hub, b, of_b)
            u, v = a.mean(dim=0), b.mean(dim=0)
            vector = torch.cat([u, v, (u - v).abs(), u * v, farness(a, b), farness(b, a)])
        torch.testing.assert_close(found, logits_of(hub, vector))
    features = hub.extract_features(ids[0])
    torch.testing.assert_close(hub.predict(HEAD, padded(hub, ids), return_logits=True), alone, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        hub.model.classification_heads[HEAD].marks.weight.zero_()
    assert hub.extract_features(ids[0]).equal(features)
    assert (hub.predict(HEAD, ids[0], return_logits=True) - alone[0]).abs().max() > 1e-5


def test_marks_need_two_texts_and_stay_with_the_head(marked, glue_dir, tmp_path):
    data, *options = single_texts(glue_dir, tmp_path)
    result = finetune(data, tmp_path / "out", *options, "--arch", "roberta_tiny", "--mark-shared", ok=False)
    assert user_error(result).endswith("--mark-shared is for pairs of texts, and custom has one; leave it out")
    start = ("--arch", "recurrent_roberta_tiny", "--pooling", "aligned")
    start = (*start, "--finetune-from-model", marked["recurrent", "aligned"] / "checkpoint_best.pt")
    result = finetune(glue_dir / "out" / "QNLI", tmp_path / "out", *start, ok=False)
    assert "was fine-tuned with --mark-shared; add it, or train a head of another name with" in user_error(result)


@pytest.mark.parametrize("pooling", ["pair", "apart", "aligned"])
def test_pairs_need_two_texts(pooling, of_two, glue_dir, tmp_path):
    hub = RecurrentRobertaModel.from_pretrained(str(of_two[pooling]))
    with pytest.raises(UserError, match="--pooling for pairs of texts: found a single text, expected two"):
        hub.predict(HEAD, hub.encode(TEXTS[0]), return_logits=True)
    data, *options = single_texts(glue_dir, tmp_path)
    result = finetune(data, tmp_path / "out", *options, "--arch", "roberta_tiny", "--pooling", pooling, ok=False)
    expected = f"--pooling {pooling} is for pairs of texts, and custom has one; use --pooling mean"
    assert user_error(result).endswith(expected)


def test_fairseqs_own_roberta_reads_texts_apart_too(glue_dir, tmp_path):
    options = ("--arch", "roberta_tiny", "--max-positions", "64", "--pooling", "apart")
    finetune(glue_dir / "out" / "QNLI", tmp_path, *options)
    hub = RecurrentRobertaModel.from_pretrained(str(tmp_path))
    u, v = (hub.extract_features(hub.encode(text))[0].mean(dim=0) for text in TEXTS)
    expected = logits_of(hub, torch.cat([u, v, (u - v).abs(), u * v]))
    torch.testing.assert_close(hub.predict(HEAD, hub.encode(*TEXTS), return_logits=True)[0], expected)
    with pytest.raises(UserError, match="use predict of the loaded model"):  # features of both together
        hub.model.classification_heads[HEAD](hub.extract_features(hub.encode(*TEXTS)))


@pytest.mark.parametrize(("texts", "expected"), [(1, "first"), (2, "pair")])
def test_the_default_goes_by_the_number_of_texts_and_stays_with_the_model(texts, expected, glue_dir, tmp_path):
    data, *options = single_texts(glue_dir, tmp_path) if texts == 1 else [glue_dir / "out" / "QNLI"]
    finetune(data, tmp_path / "out", *options, "--arch", "roberta_tiny", "--max-positions", "64")
    stored = torch.load(tmp_path / "out" / "checkpoint_best.pt", weights_only=False)
    assert stored["cfg"]["task"]["pooling"] == expected
    hub = RecurrentRobertaModel.from_pretrained(str(tmp_path / "out"))
    tokens = hub.encode(*TEXTS[:texts])
    hidden, length = hub.extract_features(tokens)[0], len(hub.encode(TEXTS[0]))
    u, v = hidden[:length].mean(dim=0), hidden[length:].mean(dim=0)
    vector = hidden[0] if texts == 1 else torch.cat([u, v, (u - v).abs(), u * v])
    torch.testing.assert_close(hub.predict(HEAD, tokens, return_logits=True)[0], logits_of(hub, vector))


def test_a_checkpoint_from_before_the_option_reads_the_first_position(glue_dir, tmp_path):
    options = ("--arch", "roberta_tiny", "--max-positions", "64", "--pooling", "first")
    finetune(glue_dir / "out" / "QNLI", tmp_path, *options)
    stored = torch.load(tmp_path / "checkpoint_best.pt", weights_only=False)
    del stored["cfg"]["task"]["pooling"]
    torch.save(stored, tmp_path / "checkpoint_best.pt")
    hub = RecurrentRobertaModel.from_pretrained(str(tmp_path))
    tokens = hub.encode(*TEXTS)
    expected = logits_of(hub, hub.extract_features(tokens)[0, 0])
    torch.testing.assert_close(hub.predict(HEAD, tokens, return_logits=True)[0], expected)


def test_it_stays_with_an_exported_model(mean_model, tmp_path):
    assert export.main([str(mean_model), str(tmp_path / "out"), "--precision", "float32"]) == 0
    hubs = [RecurrentRobertaModel.from_pretrained(str(folder)) for folder in (mean_model, tmp_path / "out")]
    ids = hubs[0].encode(TEXTS[1])
    there, exported = (hub.predict(HEAD, ids, return_logits=True) for hub in hubs)
    assert torch.equal(there, exported)
    assert not torch.allclose(there[0], hubs[1].model.classification_heads[HEAD].out_proj.bias)


def test_going_on_with_another_pooling_is_refused(mean_model, glue_dir, tmp_path):
    start = ("--arch", "recurrent_roberta_tiny", "--finetune-from-model", mean_model / "checkpoint_best.pt")
    error = user_error(finetune(glue_dir / "out" / "QNLI", tmp_path / "first", *start, ok=False))
    assert "was fine-tuned with --pooling mean, this run has pair; add --pooling mean" in error
    result = finetune(glue_dir / "out" / "QNLI", tmp_path / "x", *start, "--pooling", "last", ok=False)
    assert "--pooling: invalid choice: 'last' (choose from" in result.stderr.splitlines()[-1]


def test_features_of_other_tokens_are_refused(mean_model):
    hub = RecurrentRobertaModel.from_pretrained(str(mean_model))
    features = hub.extract_features(hub.encode(TEXTS[0]))
    hub.extract_features(hub.encode(TEXTS[1]))
    with pytest.raises(UserError, match="not those of the tokens that the model read last"):
        hub.model.classification_heads[HEAD](features)


@pytest.mark.parametrize(("pooling", "marks"), [("pair", False), ("aligned", False), ("mean", True)])
def test_threads_do_not_read_each_others_tokens(pooling, marks, tmp_path):
    """Two pairs of one length, whose texts end at other places; both are read before either comes to the head."""
    hub = RecurrentRobertaModel.from_pretrained(
        str(write_model_folder(tmp_path / "model", "forward", labels=LABELS, pooling=pooling, marks=marks))
    )
    words = hub.encode("one two three four five six")[1:-1].tolist()
    ids = [torch.tensor([0, *words[:n], 2, 2, *words[n:], 2]) for n in (1, 4)]
    alone = [hub.predict(HEAD, one, return_logits=True) for one in ids]
    both = threading.Barrier(2, timeout=60)

    def wait(*unused):
        both.wait()

    waiting = hub.model.encoder.register_forward_hook(wait)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda one: hub.predict(HEAD, one, return_logits=True), ids))
    waiting.remove()
    assert all(map(torch.equal, found, alone)) and not torch.allclose(*alone)
    for model in (copy.deepcopy(hub.model), pickle.loads(pickle.dumps(hub.model))):
        hub.model = model
        torch.testing.assert_close(hub.predict(HEAD, ids[1], return_logits=True), alone[1])


def test_half_precision_sums_in_float32():
    features = torch.full((1, 4096, 1), 100.0, dtype=torch.float16)  # the sum, 409,600, is no float16
    assert pool(features, torch.zeros(1, 4096, dtype=torch.bool), "mean").item() == 100


def test_maximum_ignores_padding_of_any_value():
    features = torch.tensor([[[-3.0], [-2.0], [7.0]]])
    padding = torch.tensor([[False, False, True]])
    assert pool(features, padding, "max").item() == -2
    assert pool(features, padding, "mean").item() == -2.5
    assert pool(features, padding, "first").item() == -3
