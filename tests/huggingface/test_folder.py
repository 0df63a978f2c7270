"""A folder for transformers gives what the model folder gives, and nothing else has to be installed for it."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_cases import relative_error

from conftest import SAMPLE
from model_folders import CHECKPOINTS, FILES, HEADS, SHAPES, in_float64, write_model_folder
from rt_plugin.__main__ import main
from rt_plugin.inference.masks import MaskFiller
from rt_plugin.inference.sentences import SentenceReader
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.text.normalization import NORMALIZATIONS, TextNormalizer

pytestmark = pytest.mark.usefixtures("modules_cache")
COMMITTED = ("recurrent_roberta_mini", "recurrent_roberta_mini_alternate", "roberta_mini")
EXACT = 1e-10  # the largest difference of logits in float64
ROUNDING = 3e-6  # the largest relative error of logits in float32, norm of the difference over the norm, as of the op
ODD = [
    "",
    " \t ",
    "\u201cYes\u201d \u2013 it\u2019s \u00a0na\u00efve\u2028a line\u0085b \ud55c\uad6d\uc5b4 \U0001f600",
    "\ufb01nd \u00bd e\u0301 \u200b\ufeff zero width",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea \u4e2d\u6587",
    "\x00\x1f control \x7f",
    "a & b &amp; <b> \u2581 ##x \u2026 \u00ab \u00bb , . ;",
    "A" * 300,
]


def export(model, out, *options):
    assert main(["export", str(model), str(out), "--format", "huggingface", *options]) == 0
    return out


def load(folder, auto="AutoModelForMaskedLM", **options):
    import transformers

    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, **options).eval()


def load_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def sentences(count):
    """Real sentences, the odd ones first."""
    lines = [line for line in (SAMPLE / "train.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    return [*ODD, *lines[: count - len(ODD)]]


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The committed checkpoints as folders for transformers."""
    folder = tmp_path_factory.mktemp("committed")
    return {name: export(CHECKPOINTS / name, folder / name) for name in COMMITTED}


def worst_difference(ours, theirs, tokens):
    """The largest difference of two models' logits over token ids that are no padding, one by one and in a batch."""
    from torch.nn.utils.rnn import pad_sequence

    return worst_in(ours, theirs, (*(one[None] for one in tokens), pad_sequence(tokens, True, padding_value=1)))


def worst_in(ours, theirs, batches):
    """The same over batches (B, L) of token ids, in float64; in float32 both are near that, as rounding allows."""
    exact, exact_theirs = in_float64(ours.model), in_float64(theirs)
    with torch.no_grad():
        worst = 0.0
        for batch in batches:
            real, given = batch.ne(1), {"input_ids": batch, "attention_mask": batch.ne(1)}
            wanted, other = exact(batch)[0][real], exact_theirs(**given).logits[real]
            worst = max(worst, (wanted - other).abs().max().item())
            for logits in (ours.model(batch)[0][real], theirs(**given).logits[real]):
                assert relative_error(logits, wanted) < ROUNDING
                assert logits.argmax(-1).equal(wanted.argmax(-1))
    return worst


@pytest.mark.parametrize("name", COMMITTED)
def test_token_ids_of_a_thousand_sentences(name, committed):
    ours, tokenizer = RecurrentRobertaModel.from_pretrained(str(CHECKPOINTS / name)), load_tokenizer(committed[name])
    texts = sentences(1000)
    draw = random.Random(5)
    ranges = [(32, 0xD7FF), (0xE000, 0x1F9FF)]
    texts += ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(9)) for _ in range(50)]
    texts += ["\ud800 half", "a pair\udc00."]  # JSON can hold it
    assert tokenizer(texts)["input_ids"] == [tokens.tolist() for tokens in ours.encode(texts)]
    pairs = list(zip(texts[:40], texts[40:80], strict=True))
    assert tokenizer(pairs)["input_ids"] == [tokens.tolist() for tokens in ours.encode(pairs)]
    cut = ours.encode(pairs, truncate=True)
    assert tokenizer(pairs, truncation=True)["input_ids"] == [tokens.tolist() for tokens in cut]
    assert len(tokenizer) == len(ours.task.source_dictionary) and tokenizer.model_max_length == 128


MASKED = [
    "The book was written by an American <mask>.",
    "<mask>",
    "<mask><mask> <mask>",
    "<mask>s <mask> s<mask>-<mask>, and <mask>(a) <mask> (b) <mask> : <mask>; \u201c<mask>\u201d, it<mask>'s<mask>",
    "Paris is<mask>\u2014<mask>\u2028<mask>\u00a0<mask>\ud55c\uad6d\uc5b4 <mask>\U0001f600<mask>''",
]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_token_ids_around_masks(normalization, tmp_path):
    model = write_model_folder(tmp_path / "model", "forward")
    (model / "text_normalization.json").write_text(TextNormalizer(normalization).to_json())
    hub = RecurrentRobertaModel.from_pretrained(str(model))
    filler = MaskFiller(SentenceReader(hub.task.source_dictionary, hub.text.encode, hub.text.decode))
    texts = [*MASKED, *(text.replace(" and", "<mask> and").replace(" of ", " <mask> ") for text in sentences(200))]
    texts = [text for text in texts if "<mask>" in text]
    tokenizer = load_tokenizer(export(model, tmp_path / "folder"))
    assert tokenizer(texts)["input_ids"] == [filler.whole(text) for text in texts]
    plain = tokenizer(MASKED, split_special_tokens=True)["input_ids"]
    assert plain == [tokens.tolist() for tokens in hub.encode(MASKED)]


@pytest.mark.parametrize("name", COMMITTED)
def test_logits_of_real_sentences(name, committed):
    ours, theirs = RecurrentRobertaModel.from_pretrained(str(CHECKPOINTS / name)), load(committed[name])
    tokens = [one[:24] for one in ours.encode(sentences(16), truncate=True)]
    assert worst_difference(ours, theirs, tokens) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [(name, 1000 if name == "recurrent_roberta_mini_alternate" else 100) for name in COMMITTED]
)
def test_logits_of_many_sentences(name, count, committed):
    """One by one: the plain PyTorch of the folder takes a loop over positions for it, and minutes for a thousand."""
    ours, theirs = RecurrentRobertaModel.from_pretrained(str(CHECKPOINTS / name)), load(committed[name])
    worst = worst_in(ours, theirs, (one[None] for one in ours.encode(sentences(count), truncate=True)))
    print(f"{name}: largest difference {worst:.2g}")
    assert worst < EXACT


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_there_and_back(shape, tmp_path):
    """Logits, and after the way back the weights, their names and what they compute."""
    model = write_model_folder(tmp_path / "model", shape)
    folder = export(model, tmp_path / "folder", "--precision", "float32")
    ours, theirs = RecurrentRobertaModel.from_pretrained(str(model)), load(folder)
    tokens = ours.encode(["It is.", "Paris is the capital of France, and has been for a long time.", "a"])
    assert worst_difference(ours, theirs, tokens) < EXACT
    own = shape != "roberta"  # transformers' RoBERTa is taken for what it can compute
    assert type(theirs).__name__ == ("RecurrentRobertaForMaskedLM" if own else "RobertaForMaskedLM")
    assert main(["import-huggingface", str(folder), str(tmp_path / "back")]) == 0
    back = RecurrentRobertaModel.from_pretrained(str(tmp_path / "back"))
    weights, others = ours.model.state_dict(), back.model.state_dict()
    assert weights.keys() == others.keys() and all(weights[name].equal(others[name]) for name in weights)
    assert back.model(tokens[1][None])[0].equal(ours.model(tokens[1][None])[0])
    for name in FILES:
        assert (tmp_path / "back" / name).read_bytes() == (model / name).read_bytes()


def test_plain_pytorch_where_the_compiled_operation_is_not(tmp_path):
    """The same numbers and gradients from the code in the folder as from the operation of the package."""
    shape = "alternate in groups"
    folder = export(write_model_folder(tmp_path / "model", shape), tmp_path / "folder", "--precision", "float32")
    models = [load(folder, recurrence_impl=name) for name in ("auto", "reference")]
    tokens = torch.randint(4, 1000, (2, 11), generator=torch.Generator().manual_seed(2))
    outputs = []
    for model in models:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        outputs.append([loss.detach(), *(p.grad for _, p in sorted(model.named_parameters()))])
    assert [layer.recurrence.impl for layer in models[1].encoder.layers] == ["reference"] * 2
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


LABELS = {"classes": ("entailment", "not_entailment"), "regression": ()}


@pytest.mark.parametrize(("pooling", "marks"), HEADS)
@pytest.mark.parametrize("shape", ["alternate in groups", "roberta"])
@pytest.mark.parametrize("kind", LABELS)
def test_classifiers_there_and_back(kind, shape, pooling, marks, tmp_path):
    labels = LABELS[kind]
    model = write_model_folder(tmp_path / "model", shape, labels=labels, pooling=pooling, marks=marks)
    folder = export(model, tmp_path / "folder", "--precision", "float32")
    theirs, tokenizer = load(folder, "AutoModelForSequenceClassification"), load_tokenizer(folder)
    pairs = [("Who won?", "They won."), ("When?", "It was in the year 1930, when the war was long over."), ("a", "b")]
    with torch.no_grad():
        logits = theirs(**tokenizer(pairs, padding=True, truncation=True, return_tensors="pt")).logits
    assert main(["import-huggingface", str(folder), str(tmp_path / "back")]) == 0
    for place in (model, tmp_path / "back"):
        ours = RecurrentRobertaModel.from_pretrained(str(place))
        with torch.no_grad():
            known = [ours.predict("sentence_classification_head", ours.encode(*p), return_logits=True) for p in pairs]
        torch.testing.assert_close(logits, torch.cat(known), rtol=0, atol=1e-5)
        assert ours.task.label_names == (list(labels) or None)
    assert theirs.config.num_labels == (len(labels) or 1)
    if labels:
        from transformers import pipeline

        assert list(theirs.config.id2label.values()) == list(labels)
        (found,) = pipeline("text-classification", model=theirs, tokenizer=tokenizer)([{"text": "a", "text_pair": "b"}])
        label, probability = ours.classify("a", "b")
        assert found["label"] == label and found["score"] == pytest.approx(probability, abs=1e-5)
    other = load(folder)  # the output layer is there, too
    assert worst_difference(ours, other, [ours.encode("a b c")]) < 1e-5


TO_FILL = ("He was born in New <mask> City.", "The book was written by an American <mask>.")


@pytest.mark.parametrize("name", COMMITTED)
def test_fill_mask_pipeline(name, committed):
    from transformers import pipeline

    ours = RecurrentRobertaModel.from_pretrained(str(CHECKPOINTS / name))
    fill = pipeline("fill-mask", model=load(committed[name]), tokenizer=load_tokenizer(committed[name]))
    for text in TO_FILL:
        found, known = fill(text, top_k=3), ours.fill_mask(text, topk=3)
        assert [one["token_str"] for one in found] == [token.strip() for _, _, token in known]
        assert [one["score"] for one in found] == pytest.approx([p for _, p, _ in known], abs=1e-5)
        assert [one["sequence"] for one in found] == [sentence for sentence, _, _ in known]
    assert fill(TO_FILL[0])[0]["sequence"] == "He was born in New York City."


@pytest.mark.parametrize("shape", ["alternate in groups", "short convolution", "roberta"])
def test_trained_on_saved_and_brought_back(shape, tmp_path):
    """Some steps of transformers' Trainer; what it saves is loaded by transformers and, brought back, by fairseq."""
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    folder = export(write_model_folder(tmp_path / "model", shape), tmp_path / "folder", "--precision", "float32")
    model, tokenizer = load(folder), load_tokenizer(folder)
    rows = [{"input_ids": ids} for ids in tokenizer(sentences(40)[8:], truncation=True, max_length=24)["input_ids"]]
    arguments = TrainingArguments(
        **{"output_dir": str(tmp_path / "out"), "max_steps": 6, "per_device_train_batch_size": 8, "seed": 1},
        **{"learning_rate": 1e-2, "use_cpu": True, "report_to": [], "logging_steps": 1, "save_strategy": "no"},
        **{"gradient_checkpointing": shape == "short convolution", "disable_tqdm": True},
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, tokenizer = load(tmp_path / "saved"), load_tokenizer(tmp_path / "saved")
    batch = tokenizer(["It is.", "Paris is the capital of France."], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert again(**batch).logits.equal(model(**batch).logits)
    assert main(["import-huggingface", str(tmp_path / "saved"), str(tmp_path / "back")]) == 0
    back = RecurrentRobertaModel.from_pretrained(str(tmp_path / "back"))
    assert worst_difference(back, model, back.encode(["It is.", "Paris is the capital of France."])) < 1e-5


def test_outputs_that_transformers_offers(tmp_path):
    folder = export(write_model_folder(tmp_path / "model", "norms before"), tmp_path / "folder")
    model, tokens = load(folder, "AutoModel"), torch.tensor([[0, 5, 6, 7, 2], [0, 5, 2, 1, 1]])
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True, output_attentions=True)
        plain = model(tokens).last_hidden_state
        embedded = model(inputs_embeds=model.embed_tokens(tokens), attention_mask=tokens.ne(1)).last_hidden_state
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 5, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 5, 5)] * 2
    seen = tokens.ne(1)
    torch.testing.assert_close(output.last_hidden_state[seen], plain[seen])
    torch.testing.assert_close(embedded[seen], plain[seen])
    assert model(tokens, return_dict=False)[0].equal(model(tokens).last_hidden_state)
    with pytest.raises(ValueError, match="an input of 150 tokens, 140 positions"):
        model(torch.full((1, 150), 5))
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        model()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMITTED)
def test_sentence_transformers_on_top(name, committed):
    """As docs/sharing-a-model.md has it; no extra holds the package: pip install sentence-transformers."""
    package = pytest.importorskip("sentence_transformers", reason="the package sentence-transformers is not installed")
    models = pytest.importorskip("sentence_transformers.models")
    code = {"trust_remote_code": True}
    options = {"model_kwargs": code, "processor_kwargs": code, "config_kwargs": code}
    word = models.Transformer(str(committed[name]), **options)
    encoder = package.SentenceTransformer(modules=[word, models.Pooling(256)], device="cpu")
    texts = sentences(60)
    known = RecurrentRobertaModel.from_pretrained(str(CHECKPOINTS / name)).embed(texts, truncate=True)
    difference = abs(encoder.encode(texts, batch_size=8) - known).max()
    print(f"{name}: largest difference {difference:.2g} of vectors up to {abs(known).max():.1f}")
    assert difference < 5e-6


def test_left_padding_changes_nothing(tmp_path):
    folder = export(write_model_folder(tmp_path / "model", "alternate in groups"), tmp_path / "folder")
    model = load(folder)
    tokens, padded = torch.tensor([[0, 5, 6, 7, 2]]), torch.tensor([[1, 1, 1, 0, 5, 6, 7, 2]])
    with torch.no_grad():
        torch.testing.assert_close(model(padded).logits[:, 3:], model(tokens).logits, rtol=0, atol=1e-5)


WITHOUT = """
import json, sys
for name in ("fairseq", "rt_plugin", "omegaconf", "hydra"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
text = "Paris is the <mask> of France."
with torch.no_grad():
    logits, exact = (model.to(t)(**tokenizer(text, return_tensors="pt")).logits[0] for t in (torch.float, torch.double))
print(json.dumps([tokenizer(text)["input_ids"], logits.tolist(), exact.tolist()]))
"""


def run_without(python, folder, tmp_path):
    """The ids and the logits of `WITHOUT`, in float32 and in float64, in a fresh process that starts elsewhere."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [python, "-c", WITHOUT, str(folder)], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def check_without(found, name):
    ours = RecurrentRobertaModel.from_pretrained(str(CHECKPOINTS / name))
    ids, logits, exact = found
    assert ids.count(ours.task.source_dictionary.index("<mask>")) == 1
    with torch.no_grad():
        known = in_float64(ours.model)(torch.tensor([ids]))[0][0]
    torch.testing.assert_close(torch.tensor(exact, dtype=torch.float64), known, rtol=0, atol=EXACT)
    assert relative_error(torch.tensor(logits), known) < ROUNDING


def test_needs_neither_fairseq_nor_this_package(committed, tmp_path):
    name = "recurrent_roberta_mini_alternate"
    check_without(run_without(sys.executable, committed[name], tmp_path), name)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["4.57.6", "5.23.0"])
def test_in_an_environment_of_its_own(version, committed, tmp_path):
    """transformers, sentencepiece and sacremoses from the package index; torch and what it needs, linked from here."""
    python = make_environment(tmp_path / "environment", version)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "fairseq" not in listed and "rt-plugin" not in listed and version in listed
    for name in COMMITTED:
        check_without(run_without(python, committed[name], tmp_path), name)


TORCH_NEEDS = ("torch", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec")


def make_environment(folder, version):
    """A virtual environment in which torch is found by links to that of this one; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    linked = folder / "linked"
    linked.mkdir()
    wanted = ("torchgen", "functorch", "typing_extensions", *TORCH_NEEDS)
    for path in Path(torch.__file__).parent.parent.iterdir():
        if path.name.lower().startswith(wanted) and not path.name.startswith("torchaudio"):
            (linked / path.name).symlink_to(path)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "linked.pth").write_text(f"{linked}\n")
    python = str(folder / "bin" / "python")
    needed = [f"transformers=={version}", f"torch=={torch.__version__}", "sentencepiece", "sacremoses"]
    subprocess.run([python, "-m", "pip", "install", "-q", *needed], check=True, timeout=600)
    return python


def test_text_that_is_not_normalised_needs_no_sacremoses(tmp_path, monkeypatch):
    model = write_model_folder(tmp_path / "model", "forward")
    (model / "text_normalization.json").write_text(TextNormalizer("none").to_json())
    folder = export(model, tmp_path / "folder")
    monkeypatch.setitem(sys.modules, "sacremoses", None)  # imports of it are forbidden
    ours = RecurrentRobertaModel.from_pretrained(str(model))
    assert load_tokenizer(folder)("It is.")["input_ids"] == ours.encode("It is.").tolist()
    (folder / "text_normalization.json").write_text(TextNormalizer("moses").to_json())
    with pytest.raises(ImportError, match="needs sacremoses: pip install sacremoses"):
        load_tokenizer(folder)


def test_not_loaded_without_consent(committed):
    """transformers must not take the text for that of another tokenizer in silence."""
    from transformers import AutoTokenizer

    with pytest.raises((OSError, ValueError, TypeError, AttributeError)):
        AutoTokenizer.from_pretrained(committed["roberta_mini"], trust_remote_code=False)


@pytest.mark.parametrize("verb", ["export", "import-huggingface"])
def test_without_safetensors(verb, committed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    source = {"export": CHECKPOINTS / "roberta_mini", "import-huggingface": committed["roberta_mini"]}[verb]
    options = ("--format", "huggingface") if verb == "export" else ()
    assert main([verb, str(source), str(tmp_path / "out"), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rt-plugin {verb}: error: ") and "safetensors" in line and "pip install" in line


@pytest.mark.parametrize(("pooling", "marks"), [("pair", False), ("apart", False), ("aligned", True), ("mean", True)])
def test_a_single_text_for_a_classifier_of_pairs(pooling, marks, tmp_path):
    labels = ("entailment", "not_entailment")
    model = write_model_folder(tmp_path / "model", "forward", labels=labels, pooling=pooling, marks=marks)
    folder = export(model, tmp_path / "folder")
    theirs, tokenizer = load(folder, "AutoModelForSequenceClassification"), load_tokenizer(folder)
    batch = tokenizer.pad([tokenizer("Who won?", "They won."), tokenizer("They won.")], return_tensors="pt")
    with pytest.raises(ValueError, match="found a single text, expected two"):
        theirs(**batch)
    with pytest.raises(ValueError, match="needs input_ids"):
        theirs(inputs_embeds=torch.zeros(1, 4, theirs.config.hidden_size))


@pytest.mark.parametrize("marks", [False, True])
def test_a_classifier_takes_one_kind_of_input(marks, tmp_path):
    model = write_model_folder(tmp_path / "model", "forward", labels=LABELS["classes"], pooling="mean", marks=marks)
    theirs = load(export(model, tmp_path / "folder"), "AutoModelForSequenceClassification")
    ids = torch.tensor([[0, 9, 2, 2, 8, 2]])
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        theirs(input_ids=ids, inputs_embeds=torch.zeros(1, 6, theirs.config.hidden_size))
    with pytest.raises(ValueError, match="mark_shared needs input_ids" if marks else "give either input_ids"):
        theirs()


def change(**values):
    def apply(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def remove(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-5000])


def shorten(folder):
    lines = (folder / "dict.txt").read_text(encoding="utf-8").split("\n")
    (folder / "dict.txt").write_text("\n".join([*lines[:-2], ""]), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), "config.json: no such file; give the folder of a model for transformers"),
        (remove("model.safetensors"), "no model.safetensors there; save the model in one file"),
        (remove("dict.txt"), "no dict.txt there; expected what rt-plugin export wrote"),
        (cut("model.safetensors"), "model.safetensors cannot be read"),
        (shorten, "the model has 16002 tokens, dict.txt with <mask> 16001"),
        (change(model_type="bert"), "config.json is of a 'bert', expected recurrent_roberta or roberta"),
        (
            change(architectures=["RobertaForSequenceClassification"]),
            "names a classifier of 2 outputs, model.safetensors holds none",
        ),
        (change(hidden_act="gelu_10"), "config.json has no usable 'gelu_10'"),
        (change(layer_norm_eps=1e-12), "config.json says layer_norm_eps 1e-12, fairseq's RoBERTa has 1e-05"),
    ],
)
def test_damaged_folders_are_named_in_one_line(damage, words, committed, tmp_path, capsys):
    folder = shutil.copytree(committed["roberta_mini"], tmp_path / "folder")
    damage(folder)
    assert main(["import-huggingface", str(folder), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder) in line and words in line


def test_a_classifier_of_an_unknown_pooling(tmp_path, capsys):
    model = write_model_folder(tmp_path / "model", "forward", labels=("entailment", "not_entailment"))
    folder = export(model, tmp_path / "folder")
    change(pooling="sum")(folder)
    assert main(["import-huggingface", str(folder), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder}" in line and "config.json: pooling is 'sum', expected one of first, mean, max" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("marks", [True, False])
def test_marks_that_only_the_options_or_only_the_weights_have(marks, tmp_path, capsys):
    labels = ("entailment", "not_entailment")
    model = write_model_folder(tmp_path / "model", "forward", labels=labels, pooling="pair", marks=marks)
    folder = export(model, tmp_path / "folder")
    change(mark_shared=not marks)(folder)
    assert main(["import-huggingface", str(folder), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    said, found = str(not marks).lower(), "has" if marks else "lacks"
    assert f"{folder}: config.json says mark_shared {said}, and model.safetensors {found} marks; get both again" in line
    assert not (tmp_path / "out").exists()
    stored = torch.load(model / "checkpoint_best.pt", weights_only=False)
    stored["cfg"]["task"]["mark_shared"] = not marks
    torch.save(stored, model / "checkpoint_best.pt")
    assert main(["export", str(model), str(tmp_path / "out"), "--format", "huggingface"]) == 1
    said = capsys.readouterr().err
    assert ("Unexpected key(s) in state_dict" if marks else "its options and its weights differ in marks") in said
    assert not list((tmp_path / "out").glob("*"))


def test_a_regression_begun_in_transformers(tmp_path):
    """transformers writes no problem_type for it: one label is a score."""
    folder = export(write_model_folder(tmp_path / "model", "forward"), tmp_path / "folder", "--precision", "float32")
    theirs, tokenizer = load(folder, "AutoModelForSequenceClassification", num_labels=1), load_tokenizer(folder)
    for part in (theirs, tokenizer):
        part.save_pretrained(tmp_path / "saved")
    assert not json.loads((tmp_path / "saved" / "config.json").read_text()).get("problem_type")
    assert main(["import-huggingface", str(tmp_path / "saved"), str(tmp_path / "back")]) == 0
    ours = RecurrentRobertaModel.from_pretrained(str(tmp_path / "back"))
    assert ours.task.is_regression and ours.task.label_names is None
    with torch.no_grad():
        logits = theirs(**tokenizer("Who won?", return_tensors="pt")).logits
        found = ours.predict("sentence_classification_head", "Who won?", return_logits=True)
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


THREE = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
ONE = {"0": "LABEL_0"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type is 'multi_label_classification', expected"),
        ({"problem_type": "regression"}, "a regression with 2 outputs, expected one"),
        ({"id2label": THREE}, "classes LABEL_0, LABEL_1, LABEL_2, but the task of its rt_glue is 'QNLI'"),
        ({"id2label": THREE, "rt_glue": None}, "names a classifier of 3 outputs, model.safetensors holds one of 2"),
        ({"id2label": ONE, "rt_glue": None}, "names a classifier of 1 outputs, model.safetensors holds one of 2"),
        ({"id2label": ONE}, "a score, but the task of its rt_glue is 'QNLI'"),
        ({"rt_glue": {"task": "STS-B"}}, "classes entailment, not_entailment, but the task of its rt_glue is 'STS-B'"),
        (
            {"rt_glue": {"task": "own", "description": {"texts": ["a"], "labels": ["x", "y", "z"]}}},
            "its rt_glue is 'own'",
        ),
    ],
)
def test_heads_that_no_fine_tuning_has(values, words, tmp_path, capsys):
    model = write_model_folder(tmp_path / "model", "forward", labels=("entailment", "not_entailment"))
    folder = export(model, tmp_path / "folder")
    change(**values)(folder)
    assert main(["import-huggingface", str(folder), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder}" in line and words in line
    assert not (tmp_path / "out").exists()


def test_brought_back_into_a_folder_that_was_used_before(tmp_path):
    """What was there of a classifier with a normalisation, exported with its checksums, is not the new model's."""
    before = write_model_folder(tmp_path / "before", "forward", labels=("entailment", "not_entailment"))
    assert main(["export", str(before), str(tmp_path / "used")]) == 0
    after = write_model_folder(tmp_path / "after", "forward")
    (after / "text_normalization.json").unlink()
    folder = export(after, tmp_path / "folder", "--precision", "float32")
    assert main(["import-huggingface", str(folder), str(tmp_path / "used")]) == 0
    assert not {path.name for path in (tmp_path / "used").iterdir()} & {
        *("text_normalization.json", "glue.json", "label_dict.txt", "SHA256SUMS")
    }
    model = RecurrentRobertaModel.from_pretrained(str(tmp_path / "used"))
    assert model.text.normalizer.choice == "none"
