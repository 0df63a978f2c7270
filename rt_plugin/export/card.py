"""The model card: what a model is, what it was trained on and how, what it says, and what it is not for.

Markdown with a YAML head, as the Hugging Face hub reads it. Nothing in it is made up: what is not known is left out.
"""

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rt_plugin.console.files import sha256
from rt_plugin.console.tables import read_csv
from rt_plugin.errors import UserError
from rt_plugin.inference.interface import CLASSIFICATION_HEAD, RecurrentRobertaHubInterface
from rt_plugin.inference.loading import from_pretrained
from rt_plugin.inference.masks import check_mask
from rt_plugin.model_folder.files import TOKENIZER_FILE, data_folders
from rt_plugin.model_folder.pooling import OF_TWO
from rt_plugin.text.normalization import TextNormalizer

CARD_FILE = "README.md"
# what an English model is asked, whatever it is; never chosen by how good the answers are
EXAMPLES = (
    "The capital of France is <mask>.",
    "The president of the <mask> States signed the law.",
    "She was born in <mask> and died in 1957.",
    "Water boils at a <mask> of 100 degrees.",
    "He plays the <mask> in a jazz band.",
    "The book was written by an American <mask>.",
    "The heart pumps <mask> through the body.",
    "They <mask> been waiting for hours.",
    "The keys to the cabinet <mask> on the table.",
    "I would like a cup of <mask>, please.",
)
_LIBRARIES = {"huggingface": "transformers", "onnx": "onnx"}  # that read the formats which this package does not
_TOPK = 3
_SPACE = "\u2423"  # a token that is nothing else
_MANIFEST_FILE = "manifest.json"
_SHARD = re.compile(r"shard\d+")  # below the folder with the manifest
_STARTS = (("-m", "rt_plugin.pretrain.process"), ("-m", "rt_plugin", "fairseq", "train"))  # or fairseq-train alone
_INPUT = {"path", "bytes", "sha256"}  # of an input in manifest.json


@dataclass
class About:
    """What a card says beside what the checkpoint does.

    Attributes:
        licence: as the hub names it.
        language: two letters; None where the tokenizer's files do not tell it.
        notes: Markdown of the user's.
        data: what prepare-corpus noted of the training text, or None.
        pairs: (phenomenon, accuracy in per cent) and how they were measured, or None.
        examples: sentences with masks.
        model: the checkpoint, loaded; None where its folder has no tokenizer.
        command: of the training; "" where it is not known.
        precision: of the weights in the file.
        digests: of the exported folder's files, the weights first: name -> SHA-256.
    """

    licence: str
    language: str | None
    notes: str
    data: dict | None
    pairs: tuple[list[tuple[str, str]], str] | None
    examples: Sequence[str]
    model: RecurrentRobertaHubInterface | None
    command: str = ""
    precision: str = ""
    digests: dict[str, str] = field(default_factory=dict)


def gather(args: argparse.Namespace, source: Path) -> About:
    """Read what the options name, before anything is written.

    Args:
        args: of the command.
        source: the checkpoint.

    Raises:
        UserError: a file cannot be read, an example cannot be filled, minimal pairs are of another checkpoint, or the
            checkpoint cannot be loaded.
    """
    has_tokenizer = (args.model / TOKENIZER_FILE).is_file()
    model = from_pretrained(str(args.model), source.name) if has_tokenizer else None
    normalizer = TextNormalizer.load(args.model / "text_normalization.json")
    language = None if normalizer.choice == "none" else normalizer.language  # which then has had no effect
    examples = _examples(args.examples, language, model)
    notes = _read(args.notes, "--notes") if args.notes else ""
    pairs = _pairs(args.minimal_pairs, source) if args.minimal_pairs else None
    return About(args.licence, language, notes, _manifest(args), pairs, examples, model)


def _examples(file: Path | None, language: str | None, model: RecurrentRobertaHubInterface | None) -> list[str]:
    """The file's sentences, which the model must be able to fill; without a file, those of `EXAMPLES` that it is."""
    limit = model.model.max_positions() if model else None
    if file is None:
        known = EXAMPLES if language == "en" else ()
        return [text for text in known if model is None or len(model.masks.whole(text)) <= limit]
    lines = {
        number: line for number, line in enumerate(_read(file, "--examples").splitlines(), start=1) if line.strip()
    }
    for number, line in lines.items():
        where = f"--examples {file}, line {number}"
        check_mask(line, where)
        if model:
            model.masks.ids(line, where, limit)
    return list(lines.values())


def _read(file: Path, option: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {file}: cannot be read ({error}); expected Markdown in UTF-8") from None


def _manifest(args: argparse.Namespace) -> dict | None:
    """What prepare-corpus wrote of the training data, where the folder can be found, and is of one corpus alone."""
    if args.data:
        return _json(args.data / _MANIFEST_FILE)
    try:
        data = _data_of(shlex.split((args.model / "command.txt").read_text(encoding="utf-8")))
    except (OSError, IndexError, ValueError):
        return None
    folders = [Path(name) for name in data_folders(data)]
    corpora = {folder.parent if _SHARD.fullmatch(folder.name) else folder for folder in folders}
    found = next(iter(corpora)) / _MANIFEST_FILE
    return _json(found) if len(corpora) == 1 and found.is_file() else None


def _data_of(words: list[str]) -> str:
    """The argument DATA of a command that `rt-plugin pretrain` started.

    Raises:
        IndexError: there is none.
    """
    ends = (i + len(start) for start in _STARTS for i in range(len(words)) if tuple(words[i : i + len(start)]) == start)
    rest = words[next(ends, 1) :]
    while rest[0].startswith("--"):  # on a CPU, what the launcher sets of several processes, with a value each
        rest = rest[2:]
    return rest[0]


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected what rt-plugin prepare-corpus writes") from None
    inputs = found.get("inputs") if isinstance(found, dict) else None
    if not isinstance(inputs, dict) or not all(one.keys() >= _INPUT for files in inputs.values() for one in files):
        raise UserError(f"{path}: names no inputs; expected what rt-plugin prepare-corpus writes")
    return found


def _pairs(folder: Path, source: Path) -> tuple[list[tuple[str, str]], str]:
    from rt_plugin.evaluation.minimal_pairs import Settings

    settings = Settings.load(folder)
    if not sha256(source).startswith(settings.checkpoint):
        raise UserError(
            f"--minimal-pairs {folder}: was measured on another checkpoint than {source}; run rt-plugin minimal-pairs "
            "with this one"
        )
    try:
        rows = read_csv(folder / "phenomena.csv")
        values = [
            (row["phenomenon"], row["pairs"], *(100 * float(row[n]) for n in ("accuracy", "low", "high")))
            for row in rows
        ]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{folder}/phenomena.csv: cannot be read ({error}); run rt-plugin minimal-pairs again"
        ) from None
    table = [(name, f"{pairs} | {value:.1f} | {low:.1f} to {high:.1f}") for name, pairs, value, low, high in values]
    return table, f"`rt-plugin minimal-pairs`, hiding one {settings.mask} at a time"


def write(about: About, state: dict, folder: Path, form: str) -> str:
    """The card of an exported folder.

    Args:
        state: what was exported: "model", "cfg", "extra_state", "optimizer_history".
        folder: where it is.
        form: fairseq, safetensors, huggingface or onnx.
    """
    cfg, name = state["cfg"], folder.name
    is_masked_lm = _get(cfg["task"], "_name") not in ("rt_glue", "sentence_prediction")
    weights = next(iter(about.digests))
    model = about.model
    if model is not None and form not in _LIBRARIES:
        model = from_pretrained(str(folder), weights)
    size = (folder / weights).stat().st_size
    parts = [
        _head(about, state, is_masked_lm, _LIBRARIES.get(form, "fairseq")),
        f"# {name}\n\n{_what(cfg)}\n\n{_table(state, size, about.digests[weights], about.precision)}",
        _use(name, is_masked_lm, form, about.model),
        _filled(about, model) if is_masked_lm and model else "",
        _minimal_pairs(about),
        f"## Training\n\n    {' '.join(about.command.split())}\n" if about.command else "",
        _data(about),
        _limits(model, about),
        about.notes,
        _checksums(about),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _head(about: About, state: dict, is_masked_lm: bool, library: str) -> str:
    is_recurrent = any("recurrence" in name for name in state["model"])
    tags = ["fairseq", "masked-lm", *(["recurrent-roberta", "arxiv:2205.11588"] if is_recurrent else ["roberta"])]
    lines = [
        *("---", *([f"language: {about.language}"] if about.language else [])),
        *(f"license: {about.licence}", f"library_name: {library}"),
        f"pipeline_tag: {'fill-mask' if is_masked_lm else 'text-classification'}",
        *("tags:", *(f"- {tag}" for tag in tags)),
    ]
    if is_masked_lm and about.examples:
        lines += ["mask_token: <mask>", "widget:", *(f"- text: {json.dumps(text)}" for text in about.examples[:2])]
    return "\n".join([*lines, "---\n"])


def _what(cfg: dict) -> str:
    architecture = _get(cfg["model"], "arch") or _get(cfg["model"], "_name")
    if not str(architecture).startswith("recurrent_roberta"):
        return "A RoBERTa encoder, trained with fairseq and [rt_plugin](https://arxiv.org/abs/2205.11588)'s tasks."
    return (
        "A RoBERTa encoder with a simple recurrence in place of every feed-forward block (Lei, Tian, Bastings, Parikh, "
        "2022,\n[arXiv 2205.11588](https://arxiv.org/abs/2205.11588)), trained with fairseq and rt_plugin."
    )


def _table(state: dict, size: int, digest: str, precision: str) -> str:
    cfg = state["cfg"]
    model, optimization = cfg["model"], cfg["optimization"]
    metric, value = cfg["checkpoint"]["best_checkpoint_metric"], state["extra_state"].get("val_loss")
    value = value if isinstance(value, (int, float)) else None
    in_bits = (_get(cfg["task"], "_name"), metric) == ("rt_masked_lm", "loss")
    options = [f"{key}: {_get(model, key)}" for key in ("recurrence_direction", "recurrence_step_size")]
    rate = optimization["lr"][0] if isinstance(optimization["lr"], (list, tuple)) else optimization["lr"]
    updates = state["optimizer_history"][-1]["num_updates"]
    rows = {
        "architecture": f"`{_get(model, 'arch') or _get(model, '_name')}`",
        "options": ", ".join(option.replace("recurrence_", "") for option in options if "None" not in option),
        "parameters": f"{_number_of_parameters(state['model']):,}",
        "updates": f"{updates:,}" if updates else "",
        "learning rate": f"{rate:g}" if updates else "",  # of no training here: it would be fairseq's default
        f"validation {metric}": ""
        if value is None
        else f"{value:.3f} (in training{'; bits a masked token' if in_bits else ''})",
        "validation perplexity": f"{2**value:,.1f}" if in_bits and value is not None and value < 64 else "",
        "file": f"{precision}, {size / 1e6:.1f} MB",
        "SHA-256": f"`{digest}`",
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value)
    return f"| | |\n| --- | --- |\n{table}"


def _use(name: str, is_masked_lm: bool, form: str, model: RecurrentRobertaHubInterface | None) -> str:
    """Lines that run in the folder above the exported one, by what the model reads and gives."""
    task = getattr(model.task, "glue_task", None) if model else None
    texts = ["It is a <mask>." if is_masked_lm else "It is a sentence."]
    if task and (len(task.texts) > 1 or model.task.cfg.pooling in OF_TWO):
        texts.append("It is another one.")
    if form == "huggingface":
        lines = _with_transformers(name, is_masked_lm, texts, task)
    elif form == "onnx":
        words = ", ".join(map(json.dumps, texts))
        lines = [
            "import onnxruntime",
            "from transformers import AutoTokenizer",
            f'tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)',
            f'session = onnxruntime.InferenceSession("{name}/model.onnx")',
            f'session.run(None, dict(tokenizer({words}, return_tensors="np")))',
        ]
    else:
        lines = [
            "from rt_plugin.model import RecurrentRobertaModel",
            f'model = RecurrentRobertaModel.from_pretrained("{name}")',
            _with_this_package(is_masked_lm, texts, task, model),
        ]
    return "## Use\n\n" + "".join(f"    {line}\n" for line in lines)


def _with_transformers(name: str, is_masked_lm: bool, texts: Sequence[str], task) -> list[str]:
    words = json.dumps(texts[0] if len(texts) == 1 else {"text": texts[0], "text_pair": texts[1]})
    is_regression = task is not None and task.is_regression
    options = f', function_to_apply="none")  # {_scale(task)}' if is_regression else ")"
    kind = "fill-mask" if is_masked_lm else "text-classification"
    return [
        "from transformers import pipeline",
        f'model = pipeline("{kind}", "{name}", trust_remote_code=True)  # read its code first',
        f"model({words}{options}",
    ]


def _with_this_package(is_masked_lm: bool, texts: Sequence[str], task, model) -> str:
    words = ", ".join(map(json.dumps, texts))
    if is_masked_lm:
        return f"model.fill_mask({words})"
    head = model.task.cfg.classification_head_name if task else CLASSIFICATION_HEAD
    if task and task.is_regression:
        words = f"({words})" if len(texts) > 1 else words
        return f'model.predict("{head}", {words}, return_logits=True)  # {_scale(task)}'
    return f"model.classify({words})" if head == CLASSIFICATION_HEAD else f'model.classify({words}, head="{head}")'


def _scale(task) -> str:
    low, high = task.score_range
    return f"0 to 1 stands for {low:g} to {high:g}"


def _filled(about: About, model) -> str:
    if not about.examples:
        return ""
    rows = []
    for sentence, filled in zip(about.examples, model.fill_mask(list(about.examples), _TOPK), strict=True):
        for best in [filled] if isinstance(filled[0], tuple) else filled:
            said = ", ".join(f"{token.strip() or _SPACE} ({probability:.2f})" for _, probability, token in best)
            rows.append(f"| {_cell(sentence)} | {_cell(said)} |\n")
    return (
        "## What it fills in\n\nAs it comes out: sentences that were written before, and the three most probable "
        f"tokens of each.\n\n| sentence | tokens (probability) |\n| --- | --- |\n{''.join(rows)}"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<mask>", "`<mask>`")


def _minimal_pairs(about: About) -> str:
    if about.pairs is None:
        return ""
    rows, how = about.pairs
    table = "".join(f"| {name} | {values} |\n" for name, values in rows)
    return (
        f"## Minimal pairs\n\nHow often it finds the acceptable one of two sentences more probable, by {how}; chance "
        f"is 50 %.\n\n| phenomenon | pairs | accuracy, % | 95 % interval |\n| --- | --- | --- | --- |\n{table}"
    )


def _data(about: About) -> str:
    if about.data is None:
        return ""
    rows = [
        f"| {split} | {_cell(Path(one['path']).name)} | {one['bytes']:,} | `{one['sha256'][:16]}` |\n"
        for split, files in about.data["inputs"].items()
        for one in files
    ]
    return (
        "## Data\n\nText files, prepared by `rt-plugin prepare-corpus`:\n\n"
        f"| split | file | bytes | SHA-256 begins with |\n| --- | --- | --- | --- |\n{''.join(rows)}"
    )


def _limits(model, about: About) -> str:
    positions = f"It reads at most {model.model.max_positions()} tokens, <s> and </s> among them. " if model else ""
    known = {"en": "English"}.get(about.language, f'"{about.language}"')
    language = f" in one language\n({known})" if about.language else ""
    return (
        f"## Limits\n\n{positions}It was trained on text{language}, and repeats what such text says, "
        "its errors and prejudices included: do not decide anything about people with\nit. What is not measured on "
        "this card is not known.\n"
    )


def _checksums(about: About) -> str:
    lines = "".join(f"    {digest}  {name}\n" for name, digest in about.digests.items())
    return f"## Checksums\n\nSHA-256, as in SHA256SUMS:\n\n{lines}"


def _number_of_parameters(weights: dict[str, torch.Tensor]) -> int:
    tensors = {id(value): value for name, value in weights.items() if not name.endswith(".version")}  # fairseq's mark
    return sum(value.numel() for value in tensors.values())


def _get(group, name: str):
    return getattr(group, name, None) if isinstance(group, argparse.Namespace) else group.get(name)
