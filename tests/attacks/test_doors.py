"""The attacks through every verb that reads a model, whatever format it is in: one line, and nothing of it runs."""

import json
import pickle
import shutil

import pytest

from attack_cases import MODEL, expression, fconv, make_folder, old_args, read_honest, wav2vec2, written
from conftest import REPOSITORY, SAMPLE
from rt_plugin.__main__ import VERBS, main
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder import safetensors

OPEN_NO_CHECKPOINT = {
    *("backends", "train-tokenizer", "encode-text", "prepare-corpus", "plot", "unigram", "report-glue"),
    *("glue-baselines", "prepare-glue", "replicate-report", "time-updates"),
}
ELSEWHERE = {
    "pretrain": "runs fairseq-train, which is in test_configuration",
    "fairseq": "the same",
    "replicate": "runs pretrain; what an adopted folder names is in tests/replicate",
    "import-huggingface": "below",
}
MASKED = "It is a <mask>."


def doors(folder, data, out):
    """All commands that open the checkpoint of a model folder."""
    text, pairs = SAMPLE / "valid.txt", REPOSITORY / "examples" / "minimal_pairs"
    commands = [
        ["fill-mask", MASKED, "--model", folder, "--out", out],
        ["embed", text, out, "--model", folder],
        ["classify", MASKED, "--model", folder, "--out", out],
        ["score", text, "--model", folder, "--out", out],
        ["minimal-pairs", folder, pairs, "--out", out],
        ["show-recurrence", folder, text, "--out", out],
        ["held-out", folder, "--data", data, "--split", "valid", "--out", out],
        ["predict-glue", "rows", folder, text, out],
        ["finetune-glue", data.parent / "glue", out, "--model", folder],
        *(["export", folder, out, "--format", form] for form in ("fairseq", "safetensors", "huggingface", "onnx")),
    ]
    return [[*map(str, words)] for words in commands]


def test_every_verb_is_looked_at(tmp_path):
    here = {words[0] for words in doors(tmp_path, tmp_path, tmp_path)}
    assert here | set(ELSEWHERE) | OPEN_NO_CHECKPOINT == set(VERBS)


@pytest.fixture(scope="module")
def honest():
    return read_honest()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data for pretraining, and a task beside, made with the tokenizer of the attacked model."""
    folder = tmp_path_factory.mktemp("doors")
    lines = (SAMPLE / "valid.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "text").write_text("".join(lines[:200]), encoding="utf-8")
    (folder / "official" / "QNLI").mkdir(parents=True)
    for split in ("train", "dev"):
        rows = (SAMPLE / "QNLI" / f"{split}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "official" / "QNLI" / f"{split}.tsv").write_text("".join(rows[:30]), encoding="utf-8")
    text, model = str(folder / "text"), ("--model", str(MODEL))
    words = ("--out", str(folder / "data"), "--tokenizer", str(MODEL), "--workers", "1")
    assert main(["prepare-corpus", text, "--valid", text, *words]) == 0
    assert main(["prepare-glue", str(folder / "official"), str(folder / "glue"), *model, "--tasks", "QNLI"]) == 0
    return folder / "data"


@pytest.fixture
def folder(tmp_path):
    """A model folder without a checkpoint; what else a fine-tuned one has is there, so that nothing else is missing."""
    made = make_folder(tmp_path / "model")
    (made / "label_dict.txt").write_text("entailment 1\nnot_entailment 1\n")
    (made / "glue.json").write_text('{"task": "QNLI", "splits": {}}')
    return made


def check_doors(name, folder, data, mark, out, capsys):
    """Each command ends with one line that names the file, writes no result, and runs nothing."""
    for words in doors(folder, data, out):
        capsys.readouterr()
        status, error = main(words), capsys.readouterr().err
        *_, line = error.rstrip().splitlines()
        assert status == 1 and "Traceback" not in error, (words, error)
        assert line.startswith(f"rt-plugin {words[0]}: error: "), (words, error)
        assert name in line and "is not let in" in line, (words, line)
        assert not mark.exists(), words
        left = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]  # locks may stay
        assert not out.is_file() and not left, (words, left)


@pytest.mark.parametrize("attack", [wav2vec2, fconv, old_args])
def test_no_verb_runs_code_of_a_checkpoint(attack, folder, honest, data, tmp_path, capsys):
    written(folder, honest, attack, tmp_path / "mark")
    check_doors("checkpoint_best.pt", folder, data, tmp_path / "mark", tmp_path / "out.npy", capsys)


def write_safetensors(folder, honest, **changes):
    """The honest weights, and a configuration with changes."""
    safetensors.write({**honest, "cfg": dict(honest["cfg"])}, folder)
    path = folder / "rt_plugin.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "model",
    [
        {"_name": "wav2vec2", "conv_feature_layers": "CODE"},
        {"arch": "fconv_lm", "decoder_layers": "CODE"},
    ],
    ids=["wav2vec2", "fconv"],
)
def test_no_verb_runs_code_beside_a_file_of_safetensors(model, folder, honest, data, tmp_path, capsys):
    mark = tmp_path / "mark"
    code = {name: value.replace("CODE", expression(mark)) for name, value in model.items()}
    write_safetensors(folder, honest, model=code)
    check_doors("model.safetensors", folder, data, mark, tmp_path / "out.npy", capsys)


def test_arguments_of_an_old_fairseq_are_not_read_from_json(folder, honest, tmp_path):
    mark = tmp_path / "mark"
    write_safetensors(folder, honest, args={"arch": "fconv_lm", "decoder_layers": expression(mark)})
    assert RecurrentRobertaModel.from_pretrained(str(folder)).fill_mask(MASKED)
    assert not mark.exists()


class Call:
    """Pickled, a call of eval."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return eval, (self.code,)


def configuration(**values):
    def attack(folder, code):
        path = folder / "config.json"
        new = {name: put_in(value, code) for name, value in values.items()}
        path.write_text(json.dumps(json.loads(path.read_text()) | new))

    return attack


def put_in(value, code):
    """The value with the code in the place of CODE, wherever that stands."""
    if isinstance(value, dict):
        return {name: put_in(item, code) for name, item in value.items()}
    if isinstance(value, list):
        return [put_in(item, code) for item in value]
    return code if value == "CODE" else value


def own_code(folder, code):
    for path in folder.glob("*_recurrent_roberta.py"):
        path.write_text(f"{code}\n")


def pickle_beside(folder, code):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Call(code)))


def pickle_in_its_place(folder, code):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Call(code)))


CLASSIFIER = ["XForSequenceClassification"]
# what is done to a folder for transformers, and a piece of the line that refuses it; None: it is not looked at
FOLDERS = [
    (configuration(model_type="wav2vec2", conv_feature_layers="CODE"), "is of a 'wav2vec2'"),
    (configuration(model_type="fconv_lm", decoder_layers="CODE"), "is of a 'fconv_lm'"),
    (configuration(args={"arch": "fconv_lm", "decoder_layers": "CODE"}, _name="fconv_lm"), None),
    (configuration(num_hidden_layers="CODE"), "encoder_layers"),
    (configuration(num_hidden_layers=10**9), "encoder_layers 1000000000"),
    (configuration(hidden_act="CODE"), "config.json has no usable"),
    (configuration(recurrence_directions=["CODE"]), "recurrence_direction"),
    (configuration(auto_map={"AutoConfig": "CODE"}, custom_pipelines={"fill-mask": {"impl": "CODE"}}), None),
    (configuration(architectures=7), "no usable 'architectures'"),
    (configuration(architectures=CLASSIFIER, id2label=["CODE"]), "no usable 'id2label'"),
    (configuration(architectures=CLASSIFIER, id2label={"0": "a 1\nb", "1": "c"}), "id2label is"),
    (configuration(architectures=CLASSIFIER, rt_glue="CODE"), "no usable 'rt_glue'"),
    (own_code, None),
    (pickle_beside, "no model.safetensors there"),
    (pickle_in_its_place, "model.safetensors cannot be read"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", str(MODEL), str(folder), "--format", "huggingface"]) == 0
    return folder


@pytest.mark.parametrize(("attack", "words"), FOLDERS)
def test_nothing_of_a_folder_for_transformers_is_run(attack, words, exported, tmp_path, capsys):
    """What is refused leaves nothing behind; where the code is not looked at, the model is as good as before."""
    folder, out, mark = shutil.copytree(exported, tmp_path / "model"), tmp_path / "out", tmp_path / "mark"
    attack(folder, expression(mark))
    capsys.readouterr()
    status, error = main(["import-huggingface", str(folder), str(out)]), capsys.readouterr().err
    if words is None:
        assert status == 0, error
        assert RecurrentRobertaModel.from_pretrained(str(out)).fill_mask(MASKED)
    else:
        (line,) = error.splitlines()
        assert status == 1 and str(folder) in line and words in line, error
        assert not out.exists()
    assert not mark.exists()
