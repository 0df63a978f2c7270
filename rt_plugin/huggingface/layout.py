"""What a fairseq checkpoint's options and weights are called in a folder for transformers, in both directions.

Two kinds of folder: `roberta`, for plain encoders that transformers' own RoBERTa computes alike, and
`recurrent_roberta`, for all else, which brings its code along.
"""

import re
from dataclasses import dataclass

import torch

from rt_plugin.errors import UserError
from rt_plugin.model_folder.pooling import FIRST
from rt_plugin.modules import default_inner_dim

OWN, ROBERTA = "recurrent_roberta", "roberta"
PADDING = 1  # the id in every dictionary of fairseq; its tables of positions begin at PADDING + 1
_ENCODER, _OUTPUT = "encoder.sentence_encoder.", "encoder.lm_head."
_LAYERS = re.compile(r"layers\.(\d+)\.")
# fairseq's name of an activation -> transformers'
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
}
# beginnings of names, after the encoder's own, for transformers' RoBERTa
_ROBERTA_NAMES = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "layernorm_embedding": "embeddings.LayerNorm",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
_TYPES = "roberta.embeddings.token_type_embeddings.weight"  # RoBERTa's own; fairseq has none


# what fairseq's RoBERTa has, and no option changes
_FIXED = {
    "pad_token_id": PADDING,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-5,
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True)
class Head:
    """A classification head of a checkpoint.

    Attributes:
        name: as in the checkpoint.
        pooling: which vector it reads.
        marks: whether the encoder reads marks of shared tokens for it.
        labels: of the classes, in order; None for a regression.
        glue: the content of glue.json, or None.
    """

    name: str
    pooling: str
    marks: bool
    labels: list[str] | None
    glue: dict | None


def kind_of(options: dict, head: Head | None) -> str:
    """`ROBERTA` where transformers' own RoBERTa computes the same, else `OWN`."""
    plain = (
        "recurrence_type" not in options
        and options["activation_fn"] == "gelu"
        and not options["encoder_normalize_before"]
        and options["layernorm_embedding"]
        and options["no_scale_embedding"]
        and not options["no_token_positional_embeddings"]
        and not options["untie_weights_roberta"]
    )
    fits = head is None or (head.pooling == FIRST and not head.marks and options["pooler_activation_fn"] == "tanh")
    return ROBERTA if plain and fits else OWN


def configuration(
    kind: str, options: dict, weights: dict[str, torch.Tensor], directions: list[str], head: Head | None
) -> dict:
    """What config.json holds of the model itself.

    Args:
        kind: `OWN`, or `ROBERTA` where `kind_of` allows it.
        options: of the model, complete.
        weights: of the checkpoint.
        directions: of the layers.
        head: the classifier, or None.

    Raises:
        UserError: the model has a part that neither kind of folder knows.
    """
    if not options["encoder_learned_pos"] and not options["no_token_positional_embeddings"]:
        raise UserError("the model has sinusoidal positions, which no folder for transformers can hold")
    for name in ("activation_fn", "pooler_activation_fn"):
        if options[name] not in ACTIVATIONS:
            raise UserError(f"the model's --{name.replace('_', '-')} {options[name]} has no name in transformers")
    width = options["encoder_embed_dim"]
    values = {
        "model_type": kind,
        "vocab_size": weights[f"{_ENCODER}embed_tokens.weight"].shape[0],
        "hidden_size": width,
        "num_hidden_layers": len(directions),
        "num_attention_heads": options["encoder_attention_heads"],
        "intermediate_size": options["encoder_ffn_embed_dim"],
        "max_position_embeddings": _positions(weights),
        "hidden_act": ACTIVATIONS[options["activation_fn"]],
        "hidden_dropout_prob": options["dropout"],
        "attention_probs_dropout_prob": options["attention_dropout"],
        "classifier_dropout": options["pooler_dropout"],
        "layer_norm_eps": 1e-5,
        "pad_token_id": PADDING,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": not options["untie_weights_roberta"],
    }
    if kind == ROBERTA:
        values["type_vocab_size"] = 1
    else:
        recurrent = "recurrence_type" in options
        inner = (options["recurrence_dim"] or default_inner_dim(width)) if recurrent else values["intermediate_size"]
        values |= {
            "intermediate_size": inner,
            "block": options["recurrence_type"] if recurrent else "feed-forward",
            "recurrence_step_size": options.get("recurrence_step_size", 1),
            "recurrence_gate": options.get("recurrence_gate", "gelu"),
            "recurrence_directions": directions,
            "normalize_before": options["encoder_normalize_before"],
            "layernorm_embedding": options["layernorm_embedding"],
            "scale_embedding": not options["no_scale_embedding"],
            "position_embeddings": not options["no_token_positional_embeddings"],
            "activation_dropout": options["activation_dropout"],
            "classifier_act": ACTIVATIONS[options["pooler_activation_fn"]],
        }
    return values | (_head(head, kind) if head else {})


def _head(head: Head, kind: str) -> dict:
    labels = head.labels or ["score"]
    values = {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification" if head.labels else "regression",
        "rt_glue": head.glue,
    }
    return values if kind == ROBERTA else values | {"pooling": head.pooling, "mark_shared": head.marks}


def _positions(weights: dict[str, torch.Tensor]) -> int:
    table = weights.get(f"{_ENCODER}embed_positions.weight")
    return PADDING + 1 if table is None else table.shape[0]


def options_of(values: dict) -> dict:
    """The model's options of a configuration: what `configuration` was made from, as far as it matters.

    Raises:
        UserError: the configuration is of another kind of model, or lacks a value.
    """
    try:
        return _options(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"config.json has no usable {error}; export the model again") from None


def _options(values: dict) -> dict:
    kind = values.get("model_type")
    if kind not in (OWN, ROBERTA):
        raise UserError(f"config.json is of a {kind!r}, expected {OWN} or {ROBERTA}")
    names = {new: old for old, new in ACTIVATIONS.items() if old != "gelu_fast"}
    for name, expected in _FIXED.items():
        if values.get(name, expected) != expected:
            raise UserError(f"config.json says {name} {values[name]!r}, fairseq's RoBERTa has {expected}")
    positions = values["max_position_embeddings"] - PADDING - 1
    options = {
        "arch": kind,
        "_name": kind,
        "encoder_layers": values["num_hidden_layers"],
        "encoder_embed_dim": values["hidden_size"],
        "encoder_ffn_embed_dim": values["intermediate_size"],
        "encoder_attention_heads": values["num_attention_heads"],
        "max_positions": positions,
        "tokens_per_sample": positions,
        "activation_fn": names[values["hidden_act"]],
        "dropout": values["hidden_dropout_prob"],
        "attention_dropout": values["attention_probs_dropout_prob"],
        "pooler_dropout": values.get("classifier_dropout") or 0.0,
        "untie_weights_roberta": not values.get("tie_word_embeddings", True),
    }
    if kind == ROBERTA:
        return options
    options |= {
        "encoder_normalize_before": values["normalize_before"],
        "layernorm_embedding": values["layernorm_embedding"],
        "no_scale_embedding": not values["scale_embedding"],
        "no_token_positional_embeddings": not values["position_embeddings"],
        "activation_dropout": values["activation_dropout"],
        "pooler_activation_fn": names[values["classifier_act"]],
    }
    if values["block"] == "feed-forward":
        return options | {"arch": ROBERTA, "_name": ROBERTA}
    directions = values["recurrence_directions"]
    return options | {
        "encoder_ffn_embed_dim": 4 * values["hidden_size"],
        "recurrence_dim": values["intermediate_size"],
        "recurrence_type": values["block"],
        "recurrence_step_size": values["recurrence_step_size"],
        "recurrence_gate": values["recurrence_gate"],
        "recurrence_direction": _direction(directions),
        "recurrence_impl": "auto",
    }


def _direction(directions: list[str]) -> str:
    if len(set(directions)) == 1:
        return directions[0]
    alternate = ["backward" if i % 2 else "forward" for i in range(len(directions))]
    return "alternate" if directions == alternate else ",".join(directions)


def to_folder(weights: dict[str, torch.Tensor], kind: str, head: Head | None, tied: bool) -> dict[str, torch.Tensor]:
    """The checkpoint's weights under a folder's names; a tied output layer is left out.

    Raises:
        UserError: a weight has no place in the folder.
    """
    renamed, strange = {}, []
    for name, value in weights.items():
        if name.endswith(".version") or (tied and name == f"{_OUTPUT}weight"):
            continue
        new = _folder_name(name, kind, head)
        if new is None:
            strange.append(name)
        else:
            renamed[new] = value.contiguous()
    if strange:
        raise UserError(f"{len(strange)} weights have no place in a folder for transformers, {strange[0]} the first")
    if kind == ROBERTA:
        renamed[_TYPES] = torch.zeros_like(renamed["roberta.embeddings.word_embeddings.weight"][:1])
    return renamed


def _folder_name(name: str, kind: str, head: Head | None) -> str | None:
    if name.startswith(_OUTPUT):
        rest = name.removeprefix(_OUTPUT)
        if rest.startswith(("dense.", "layer_norm.")):
            return f"lm_head.{rest}"
        own = {"weight": "lm_head.decoder.weight", "bias": "lm_head.decoder.bias"}
        return "lm_head.bias" if (kind, rest) == (ROBERTA, "bias") else own.get(rest)
    if head is not None and name.startswith(f"classification_heads.{head.name}."):
        return name.replace(f"classification_heads.{head.name}.", "classifier.", 1)
    if not name.startswith(_ENCODER):
        return None
    rest = name.removeprefix(_ENCODER)
    if kind == OWN:
        return f"encoder.{_LAYERS.sub(_in_feed_forward, rest) if '.fc' in rest else rest}"
    layer = _LAYERS.match(rest)
    part, _, last = rest[layer.end() if layer else 0 :].rpartition(".")
    if part not in _ROBERTA_NAMES:
        return None
    return f"roberta.{f'encoder.layer.{layer[1]}.' if layer else ''}{_ROBERTA_NAMES[part]}.{last}"


def _in_feed_forward(layer: re.Match) -> str:
    return f"{layer[0]}feed_forward."


def from_folder(weights: dict[str, torch.Tensor], kind: str, head: Head | None) -> dict[str, torch.Tensor]:
    """A folder's weights under the checkpoint's names; an output layer that is not there is that of the embeddings.

    Raises:
        UserError: a weight has no place in a checkpoint, or the embeddings are missing.
    """
    renamed, strange = {}, []
    prefix = "encoder." if kind == OWN else "roberta."
    bare = not any(name.startswith(prefix + "embed") for name in weights)  # saved without a head
    for name, value in weights.items():
        new = _checkpoint_name(f"{prefix if bare else ''}{name}", kind, head)
        if new is None:
            strange.append(name)
        elif new:
            renamed[new] = value
    if strange:
        raise UserError(f"{len(strange)} weights have no place in a checkpoint of fairseq, {strange[0]} the first")
    embedding = renamed.get(f"{_ENCODER}embed_tokens.weight")
    if embedding is None:
        raise UserError("the embeddings are missing; expected the weights of a whole model")
    _fold_types(renamed, weights)
    renamed.setdefault(f"{_OUTPUT}weight", embedding)
    vocabulary, width = embedding.shape
    for name, missing in {
        "bias": torch.zeros(vocabulary),
        "dense.weight": torch.eye(width),
        "dense.bias": torch.zeros(width),
        "layer_norm.weight": torch.ones(width),
        "layer_norm.bias": torch.zeros(width),
    }.items():
        renamed.setdefault(f"{_OUTPUT}{name}", missing.to(embedding.dtype))
    renamed[f"{_ENCODER}version"] = torch.tensor([3.0])
    return renamed


def _fold_types(renamed: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
    """Add the one vector that transformers' RoBERTa adds to every position (0 until it is trained) to the positions."""
    types = weights.get(_TYPES, weights.get(_TYPES.removeprefix("roberta.")))
    if types is not None and types[0].any():
        table = renamed[f"{_ENCODER}embed_positions.weight"].clone()
        table[PADDING + 1 :] += types[0]
        renamed[f"{_ENCODER}embed_positions.weight"] = table


def _checkpoint_name(name: str, kind: str, head: Head | None) -> str | None:
    """The empty string where the checkpoint needs no such weight."""
    if name.startswith("classifier."):
        return "" if head is None else name.replace("classifier.", f"classification_heads.{head.name}.", 1)
    if name.startswith("lm_head."):
        rest = name.removeprefix("lm_head.")
        return _OUTPUT + rest.removeprefix("decoder.")
    if name == _TYPES or name.startswith("roberta.pooler.") or name.endswith("position_ids"):
        return ""
    if kind == OWN:
        known = name.startswith("encoder.")
        return _ENCODER + name.removeprefix("encoder.").replace("feed_forward.", "") if known else None
    rest = name.removeprefix("roberta.")
    layer = re.match(r"encoder\.layer\.(\d+)\.", rest)
    part, _, last = rest[layer.end() if layer else 0 :].rpartition(".")
    old = {new: old for old, new in _ROBERTA_NAMES.items()}.get(part)
    return None if old is None else f"{_ENCODER}{f'layers.{layer[1]}.' if layer else ''}{old}.{last}"
