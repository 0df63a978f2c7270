"""`rt-plugin export --format huggingface`: a folder that transformers loads, without fairseq and without this package.

config.json, model.safetensors                     the model
sentencepiece.bpe.model, dict.txt, text_normalization.json, tokenizer_config.json   the tokenizer
*_recurrent_roberta.py                             the code of both, for AutoModel....(folder, trust_remote_code=True)
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from fairseq.models import ARCH_CONFIG_REGISTRY

from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.huggingface import layout
from rt_plugin.model import layer_directions
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import (
    DICTIONARY_FILE,
    GLUE_FILE,
    LABEL_DICTIONARY_FILE,
    NORMALIZATION_FILE,
    TOKENIZER_FILE,
    copy_files,
)
from rt_plugin.model_folder.pooling import MARKS, POOLINGS, has_marks, pooling_of, vectors
from rt_plugin.text.tokenizer import Tokenizer

MODEL_FILE, TOKENIZER_CONFIGURATION_FILE, WEIGHTS_FILE = "config.json", "tokenizer_config.json", "model.safetensors"
CODE = ("configuration_recurrent_roberta.py", "modeling_recurrent_roberta.py", "tokenization_recurrent_roberta.py")
_TOKENIZER_FILES = (DICTIONARY_FILE, TOKENIZER_FILE, NORMALIZATION_FILE)
_LAYER = re.compile(r"encoder\.sentence_encoder\.layers\.(\d+)\.")
_HEADS = {"AutoModelForMaskedLM": "ForMaskedLM", "AutoModelForSequenceClassification": "ForSequenceClassification"}


@dataclass(frozen=True)
class Converted:
    """A checkpoint under the names of transformers.

    Attributes:
        values: of config.json.
        weights: of model.safetensors.
        longest: the longest input, in tokens; None: any.
    """

    values: dict
    weights: dict[str, torch.Tensor]
    longest: int | None

    @property
    def is_classifier(self) -> bool:
        return self.values["architectures"][0].endswith("ForSequenceClassification")


def convert(state: dict, source: Path, model: Path, own_code: bool = False) -> Converted:
    """Rename a checkpoint.

    Args:
        state: the checkpoint, as `read_checkpoint` gives it.
        source: its path, for errors.
        model: the model folder that it is from.
        own_code: also where transformers' RoBERTa computes the same.

    Raises:
        UserError: the tokenizer is missing, or the model has parts that transformers cannot hold.
    """
    dictionary = model / DICTIONARY_FILE
    Tokenizer.load(model).check_dictionary(load_dictionary(dictionary).symbols, str(dictionary))
    options, task, weights = _complete(state["cfg"]["model"]), _plain(state["cfg"]["task"]), state["model"]
    head = _head(weights, task, model, source)
    kind = layout.OWN if own_code else layout.kind_of(options, head)
    try:
        values = layout.configuration(kind, options, weights, _directions(options, weights), head)
        renamed = layout.to_folder(weights, kind, head, tied=values["tie_word_embeddings"])
    except UserError as error:
        raise UserError(f"{source}: {error}; use --format fairseq") from None
    positions = values["max_position_embeddings"] - layout.PADDING - 1
    longest = min(task.get("max_positions") or positions, positions) or None
    return Converted(_classes(kind, head) | values | {"dtype": "float32"}, renamed, longest)


def write_folder(state: dict, source: Path, model: Path, out: Path) -> list[str]:
    """Write the folder, but for the card; returns the files' names, the weights first.

    Args:
        state: the checkpoint, as `read_checkpoint` gives it, the weights in the precision that the file shall have;
            they are float32 once loaded.
        source, model: see `convert`.
        out: the folder to write.

    Raises:
        UserError: see `convert`.
        ModuleNotFoundError: safetensors is not installed.
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    converted = convert(state, source, model)
    names = write_beside(converted, model, out)
    with replacing(out / WEIGHTS_FILE) as file:
        file.write(save(converted.weights, metadata={"format": "pt"}))
    return [WEIGHTS_FILE, *names]


def write_beside(converted: Converted, model: Path, out: Path) -> list[str]:
    """Write all but the weights: configuration, tokenizer and code; returns the files' names."""
    code = CODE if converted.values["model_type"] == layout.OWN else CODE[2:]
    copy_files([(model / name, name) for name in _TOKENIZER_FILES], out, remove=True)
    copy_files([(Path(__file__).with_name(name), name) for name in code], out)
    for name, values in (
        (MODEL_FILE, converted.values),
        (TOKENIZER_CONFIGURATION_FILE, _tokenizer_configuration(converted.longest)),
    ):
        with replacing(out / name) as file:
            file.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
    names = [MODEL_FILE, TOKENIZER_CONFIGURATION_FILE, *_TOKENIZER_FILES, *code]
    return [name for name in names if (out / name).is_file()]


def _complete(stored) -> dict:
    """The model's options, those that its architecture sets included."""
    options = argparse.Namespace(**_plain(stored))
    ARCH_CONFIG_REGISTRY[getattr(options, "arch", None) or options._name](options)
    return vars(options)


def _plain(group) -> dict:
    return dict(vars(group) if isinstance(group, argparse.Namespace) else group)


def _directions(options: dict, weights: dict[str, torch.Tensor]) -> list[str]:
    """Of the layers that the weights have; of an alternate encoder of which layers were kept, those of these."""
    numbers = [int(found[1]) for name in weights if (found := _LAYER.match(name))]
    if not numbers:
        raise UserError("the model has no layers")
    count = 1 + max(numbers)
    direction = options.get("recurrence_direction", "forward")
    if options.get("encoder_layers_to_keep") and direction == "alternate":
        kept = sorted(map(int, options["encoder_layers_to_keep"].split(",")))
        return [layer_directions(direction, kept[-1] + 1)[i] for i in kept]
    return layer_directions(direction, count)


def _head(weights: dict[str, torch.Tensor], task: dict, model: Path, source: Path) -> layout.Head | None:
    names = sorted({name.split(".")[1] for name in weights if name.startswith("classification_heads.")})
    if not names:
        return None
    name = task.get("classification_head_name") or names[0]
    if names != [name]:
        raise UserError(f"{source}: has the heads {', '.join(names)}, expected one alone; use --format fairseq")
    pooling = pooling_of(task)
    if pooling not in POOLINGS:
        raise UserError(f"{source}: has --pooling {pooling}, expected one of {', '.join(POOLINGS)}")
    dense, output = (weights.get(f"classification_heads.{name}.{part}.weight") for part in ("dense", "out_proj"))
    if dense is None or output is None or dense.shape[1] != vectors(pooling) * dense.shape[0]:
        raise UserError(
            f"{source}: the head {name} has other matrices than one that gives as many numbers as the encoder and one "
            "that reads them, which no folder for transformers can hold; use --format fairseq"
        )
    if (f"classification_heads.{name}.{MARKS}" in weights) != has_marks(task):
        raise UserError(f"{source}: its options and its weights differ in marks of shared tokens; fine-tune it again")
    labels_file, glue_file = model / LABEL_DICTIONARY_FILE, model / GLUE_FILE
    labels = None
    if labels_file.is_file():
        dictionary = load_dictionary(labels_file)
        labels = dictionary.symbols[dictionary.nspecial :][: output.shape[0]]
    elif output.shape[0] > 1:
        labels = [f"LABEL_{i}" for i in range(output.shape[0])]
    glue = json.loads(glue_file.read_text(encoding="utf-8")) if glue_file.is_file() else None
    return layout.Head(name, pooling, has_marks(task), labels, glue)


def _classes(kind: str, head: layout.Head | None) -> dict:
    prefix = "RecurrentRoberta" if kind == layout.OWN else "Roberta"
    values = {"architectures": [f"{prefix}{'ForSequenceClassification' if head else 'ForMaskedLM'}"]}
    if kind == layout.OWN:
        configuration, modeling, _ = (name.removesuffix(".py") for name in CODE)
        values["auto_map"] = {
            "AutoConfig": f"{configuration}.RecurrentRobertaConfig",
            "AutoModel": f"{modeling}.RecurrentRobertaModel",
            **{auto: f"{modeling}.RecurrentRoberta{name}" for auto, name in _HEADS.items()},
        }
    return values


def _tokenizer_configuration(longest: int | None) -> dict:
    return {
        "tokenizer_class": "RecurrentRobertaTokenizer",
        "auto_map": {"AutoTokenizer": [f"{CODE[2].removesuffix('.py')}.RecurrentRobertaTokenizer", None]},
        **({} if longest is None else {"model_max_length": longest}),
        "clean_up_tokenization_spaces": False,
    }
