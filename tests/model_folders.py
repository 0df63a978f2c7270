"""Model folders with random weights, of any shape, made in this process: what tests of other formats start from."""

import argparse
import copy
import json
import shutil
from pathlib import Path

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.roberta import RobertaModel
from fairseq.modules import gelu

from conftest import REPOSITORY
from rt_plugin.glue.pooling import PoolingHook
from rt_plugin.glue.prepared import label_dictionary
from rt_plugin.inference.interface import CLASSIFICATION_HEAD as HEAD
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.pooling import POOLINGS

CHECKPOINTS = REPOSITORY / "examples" / "checkpoints"
FILES = ("dict.txt", "sentencepiece.bpe.model", "text_normalization.json")
SMALL = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4}
# name -> options that differ from an encoder of two layers
SHAPES = {
    "forward": {"arch": "recurrent_roberta"},
    "alternate in groups": {
        "arch": "recurrent_roberta",
        "recurrence_direction": "alternate",
        "recurrence_step_size": 3,
        "recurrence_gate": "sigmoid",
    },
    "backward in one group": {
        "arch": "recurrent_roberta",
        "recurrence_direction": "backward",
        "recurrence_step_size": 200,
        "recurrence_gate": "silu",
        "recurrence_dim": 24,
    },
    "no recurrence": {"arch": "recurrent_roberta", "recurrence_type": "none"},
    "short convolution": {
        "arch": "recurrent_roberta",
        "recurrence_type": "short-conv",
        "recurrence_direction": "alternate",
        "recurrence_step_size": 2,
    },
    "norms before": {
        "arch": "recurrent_roberta",
        "encoder_normalize_before": True,
        "layernorm_embedding": False,
        "untie_weights_roberta": True,
    },
    "no positions": {"arch": "recurrent_roberta", "no_token_positional_embeddings": True, "no_scale_embedding": False},
    "roberta": {"arch": "roberta"},
    "roberta, norms before": {"arch": "roberta_prenorm"},
    "roberta, other activations": {"arch": "roberta", "activation_fn": "gelu_accurate", "untie_weights_roberta": True},
}


# (pooling, marks) of classifiers
HEADS = [*((name, False) for name in POOLINGS), ("first", True), ("pair", True), ("aligned", True)]


def write_model_folder(folder: Path, shape: str, *, labels=None, pooling=None, marks=False, positions=140) -> Path:
    """A checkpoint with the tokenizer of the committed models.

    Args:
        shape: of `SHAPES`.
        labels: class names of a classifier; () for a regression; None: no classifier.
        pooling, marks: of the classifier.
    """
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(CHECKPOINTS / "roberta_mini" / name, folder / name)
    dictionary = load_dictionary(folder / "dict.txt")
    dictionary.add_symbol("<mask>")
    options = {**SMALL, "max_positions": positions, "tokens_per_sample": positions, **SHAPES[shape]}
    options = argparse.Namespace(_name=options["arch"], **options)
    ARCH_CONFIG_REGISTRY[options.arch](options)
    torch.manual_seed(1)
    model = _build(options, dictionary)
    task = {"_name": "rt_masked_lm", "tokens_per_sample": positions}
    if labels is not None:
        model.register_classification_head(HEAD, num_classes=len(labels) or 1)
        if pooling:
            PoolingHook(model, HEAD, pooling, marks, dictionary.pad(), dictionary.eos())
        task = {"_name": "rt_glue", "pooling": pooling or "first", "mark_shared": marks, "max_positions": positions}
        (folder / "glue.json").write_text(json.dumps({"task": "QNLI" if labels else "STS-B", "splits": {}}))
        if labels:
            label_dictionary(labels).save(str(folder / "label_dict.txt"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" not in name:  # else many of them would be 0 or 1
                parameter.copy_(torch.rand_like(parameter) * 0.8 + 0.1)
            elif "embed" not in name:
                parameter.mul_(4)
    state = {
        "args": None,
        "cfg": {"model": options, "task": task, "criterion": {"_name": task["_name"]}},
        "model": model.state_dict(),
        "optimizer_history": [
            {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {"best": None}, "num_updates": 7}
        ],
        "extra_state": {},
        "task_state": {},
    }
    torch.save(state, folder / "checkpoint_best.pt")
    return folder


def _build(options: argparse.Namespace, dictionary: Dictionary):
    class Task:
        source_dictionary = dictionary

        def max_positions(self):
            return options.max_positions

    return (RobertaModel if options.arch.startswith("roberta") else RecurrentRobertaModel).build_model(options, Task())


def in_float64(model):
    """A copy that computes in float64 throughout: fairseq's gelu would go through float32 for any type."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if getattr(module, "activation_fn", None) is gelu:
            module.activation_fn = torch.nn.functional.gelu
    return model
