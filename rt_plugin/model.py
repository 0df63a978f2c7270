"""The recurrent RoBERTa model: fairseq's RoBERTa with a SwishRNN block in place of every feed-forward block."""

import contextlib
import math
from pathlib import Path

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.models import register_model, register_model_architecture
from fairseq.models.roberta import RobertaEncoder, RobertaModel
from fairseq.models.roberta.model import base_architecture as roberta_architecture
from fairseq.models.transformer import TransformerConfig
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from omegaconf import OmegaConf, open_dict
from torch import Tensor
from torch.nn import functional as F

from rt_plugin import ops, reference
from rt_plugin.documents import DocumentColumns, Separation, attention_within, positions_within, same_document
from rt_plugin.encoder import OneLookEncoder
from rt_plugin.errors import UserError
from rt_plugin.model_folder.checkpoint import stored_options
from rt_plugin.modules import RECURRENCE_TYPES, RecurrentFFN

DIRECTIONS = ("forward", "backward", "alternate")


class RecurrentEncoderLayer(TransformerEncoderLayerBase):
    """A Transformer encoder layer whose second half is a `RecurrentFFN`; attention, residuals and norms stay.

    Args:
        cfg: the encoder's TransformerConfig.
        recurrence: the block.
    """

    def __init__(self, cfg, recurrence: RecurrentFFN, return_fc: bool = False):
        super().__init__(cfg, return_fc=return_fc)
        self.recurrence = recurrence

    # The feed-forward block's parameters must not exist: unused parameters stop DistributedDataParallel.
    def build_fc1(self, *args):
        return None

    def build_fc2(self, *args):
        return None

    def forward(
        self,
        x: Tensor,
        encoder_padding_mask: Tensor | None,
        attn_mask: Tensor | None = None,
        separation: Separation | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Apply the layer.

        Args:
            x: (L, B, d).
            encoder_padding_mask: (B, L), True at padding, or None where nothing is padded.
            attn_mask: (L, L), nonzero where a query must not see a key, or None.
            separation: keeps documents that share a sequence apart, or None. With a mask of its own, the other two
                masks do not count in attention.

        Returns:
            (L, B, d); with `return_fc` also the block's output before dropout and residual.
        """
        if attn_mask is not None:  # a large number instead of -inf: a row without any key must not become NaN
            attn_mask = attn_mask.to(x.dtype).masked_fill(
                attn_mask.to(torch.bool), -1e8 if x.dtype == torch.float32 else -1e4
            )
        separation = separation or Separation()
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        if separation.mask is not None:
            x = attention_within(self.self_attn, x, separation.mask)
        else:
            masks = {"key_padding_mask": encoder_padding_mask, "attn_mask": attn_mask}
            x, _ = self.self_attn(x, x, x, need_weights=False, **masks)
        x = self.residual_connection(self.dropout_module(x), residual)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)

        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        if separation.columns is not None:
            block_output = self.recurrence.within_documents(x, encoder_padding_mask, separation.columns)
        else:
            block_output = self.recurrence(x, encoder_padding_mask)
        x = self.residual_connection(self.dropout_module(block_output), residual)
        if not self.normalize_before:
            x = self.final_layer_norm(x)
        return (x, block_output) if self.return_fc else x


class RecurrentEncoder(OneLookEncoder):
    """fairseq's Transformer encoder, built of `RecurrentEncoderLayer`."""

    def __init__(self, args, dictionary, embed_tokens, return_fc=False):
        # fairseq builds the layers one by one without saying which one it is building
        self._directions_left = layer_directions(args.recurrence_direction, args.encoder_layers)
        super().__init__(args, dictionary, embed_tokens, return_fc=return_fc)

    def build_encoder_layer(self, args):
        cfg = TransformerConfig.from_namespace(args)
        recurrence = self.build_recurrence(self.args, self._directions_left.pop(0))
        layer = RecurrentEncoderLayer(cfg, recurrence, return_fc=self.return_fc)
        if cfg.checkpoint_activations:
            layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
        # as in fairseq: a checkpointed layer is always a unit for FSDP, however small
        return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        attention_documents: Tensor | None = None,
        recurrence_documents: Tensor | None = None,
    ) -> dict[str, list]:
        """fairseq's, also for documents that share a sequence (`rt_plugin.documents`).

        Args:
            src_tokens: (B, L).
            attention_documents: (B, L); given, a position sees those of its document alone, and positions are counted
                from the document's start. None (default): a sequence is one document.
            recurrence_documents: (B, L); given, the recurrence begins anew with each document.

        Returns:
            As fairseq's.
        """
        if attention_documents is None and recurrence_documents is None:
            return super().forward(src_tokens, src_lengths, return_all_hiddens, token_embeddings)
        separation = Separation(
            None if attention_documents is None else same_document(attention_documents),
            None if recurrence_documents is None else DocumentColumns(recurrence_documents),
        )
        x, embedding = self._embed(src_tokens, token_embeddings, attention_documents)
        return self.run_layers(src_tokens, x, embedding, return_all_hiddens, separation=separation)

    def _embed(self, src_tokens: Tensor, token_embeddings: Tensor | None, documents: Tensor | None):
        """fairseq's `forward_embedding`, with positions that begin anew with each document."""
        if documents is None or self.embed_positions is None:
            return self.forward_embedding(src_tokens, token_embeddings)
        places = positions_within(documents) + self.padding_idx + 1
        places = places.masked_fill(documents == 0, self.padding_idx)
        # not weight[places]: its gradient is summed in any order by several threads
        positions = F.embedding(places, self.embed_positions.weight, self.padding_idx)
        if token_embeddings is None:
            token_embeddings = self.embed_tokens(src_tokens)
        x = embedding = self.embed_scale * token_embeddings
        x = embedding + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        x = self.dropout_module(x)
        return (x if self.quant_noise is None else self.quant_noise(x)), embedding

    def build_recurrence(self, args, direction: str) -> RecurrentFFN:
        """One block, from the options of the command line (fairseq's TransformerConfig knows nothing of them)."""
        return RecurrentFFN(
            args.encoder_embed_dim,
            args.recurrence_dim,
            step_size=args.recurrence_step_size,
            gate=args.recurrence_gate,
            reverse=direction == "backward",
            recurrence_type=args.recurrence_type,
            impl=args.recurrence_impl,
            activation_dropout=args.activation_dropout,
            quant_noise=args.quant_noise_pq,
            quant_noise_block_size=args.quant_noise_pq_block_size,
            alpha=args.recurrence_alpha,
            beta=args.recurrence_beta,
            beta_spread=args.recurrence_beta_spread,
        )


class RecurrentRobertaEncoder(RobertaEncoder):
    """fairseq's RoBERTa encoder over a `RecurrentEncoder`."""

    def build_encoder(self, args, dictionary, embed_tokens):
        encoder = RecurrentEncoder(args, dictionary, embed_tokens)
        encoder.apply(init_bert_params)
        return encoder

    def forward(
        self, src_tokens, features_only=False, return_all_hiddens=False, masked_tokens=None, **documents_and_unused
    ):
        """fairseq's, but that `attention_documents` and `recurrence_documents` go on to the `RecurrentEncoder`."""
        x, extra = self.extract_features(src_tokens, return_all_hiddens, **documents_and_unused)
        return (x if features_only else self.output_layer(x, masked_tokens=masked_tokens)), extra

    def extract_features(self, src_tokens, return_all_hiddens=False, **options):
        names = ("token_embeddings", "attention_documents", "recurrence_documents")
        known = {name: options[name] for name in names if name in options}
        output = self.sentence_encoder(src_tokens, return_all_hiddens=return_all_hiddens, **known)
        states = output["encoder_states"] if return_all_hiddens else None
        return output["encoder_out"][0].transpose(0, 1), {"inner_states": states}


@register_model("recurrent_roberta")
class RecurrentRobertaModel(RobertaModel):
    """RoBERTa with SwishRNN blocks: "Simple Recurrence Improves Masked Language Models", arXiv 2205.11588.

    Trained with `--arch recurrent_roberta`. `from_pretrained` loads a model folder for use; what it returns takes
    sentences or lists of them (`rt_plugin.hub.RecurrentRobertaHubInterface` has the whole of it):

    encode, decode      text -> token ids, and back
    fill_mask           the most probable tokens for each <mask>
    extract_features    the encoder's output for every token
    embed               one vector a sentence, as numpy arrays
    score               pseudo-log-likelihood
    classify, predict   labels, or what a classification head says, of a fine-tuned model

    >>> from rt_plugin.model import RecurrentRobertaModel
    >>> model = RecurrentRobertaModel.from_pretrained("examples/checkpoints/recurrent_roberta_mini")
    >>> filled = model.fill_mask("The president of the <mask> States signed the law.", topk=3)
    >>> filled[0][0]
    'The president of the United States signed the law.'
    >>> model.embed(["One sentence.", "And another one."]).shape
    (2, 256)
    """

    separates_documents = True  # `forward` takes `attention_documents` and `recurrence_documents`

    @classmethod
    def hub_models(cls):
        return {}  # nothing is downloaded

    @staticmethod
    def add_args(parser):
        """Add RoBERTa's options and those of the recurrence to `parser`."""
        RobertaModel.add_args(parser)
        parser.add_argument(
            "--recurrence-dim",
            type=int,
            metavar="D",
            help="inner width d' of the recurrence (default: 8/3 of the embedding width, rounded to a multiple of 8, "
            "which keeps the number of parameters of the feed-forward block)",
        )
        parser.add_argument(
            "--recurrence-step-size",
            type=int,
            metavar="K",
            help="k: position i depends on position i-k; larger is faster (default: 1)",
        )
        parser.add_argument(
            "--recurrence-gate", choices=list(reference.GATES), help="activation of the gate (default: gelu)"
        )
        for name, text in (
            ("alpha", "initial alpha of Swish(z) = z sigmoid(alpha z + beta) (default: 1)"),
            ("beta", "initial beta of it; a larger one keeps more of the state before (default: 0)"),
            (
                "beta-spread",
                "initial betas are evenly spaced over the channels, up to this far from --recurrence-beta "
                "to both sides: memories of different lengths (default: 0)",
            ),
        ):
            parser.add_argument(f"--recurrence-{name}", type=float, metavar="X", help=text)
        parser.add_argument(
            "--recurrence-direction",
            choices=DIRECTIONS,
            help="left to right as in the paper, right to left, or every second layer turned round (default: forward)",
        )
        parser.add_argument(
            "--recurrence-type",
            choices=RECURRENCE_TYPES,
            help="controls: none is the same gated block without the recurrence, c = x1; short-conv has a convolution "
            "over 4 positions in its place (default: swish-rnn)",
        )
        parser.add_argument(
            "--recurrence-impl",
            choices=ops.IMPLEMENTATIONS,
            help="compiled op, plain PyTorch, or whichever is there (default: auto)",
        )
        parser.add_argument(
            "--checkpoint-activations",
            action="store_true",
            help="recompute each layer in the backward pass instead of storing its activations",
        )
        parser.add_argument(
            "--offload-activations",
            action="store_true",
            help="checkpoint activations and keep them in CPU memory (implies --checkpoint-activations)",
        )

    @classmethod
    def build_model(cls, args, task):
        """Build a model from fairseq's arguments.

        Raises:
            UserError: an option of the recurrence is unknown or out of range.
        """
        with open_dict(args) if OmegaConf.is_config(args) else contextlib.nullcontext():
            base_architecture(args)
            check_recurrence_options(args)
            args.recurrence_direction = _direction_of_kept_layers(args)
            if getattr(args, "max_positions", None) is None:
                args.max_positions = getattr(args, "tokens_per_sample", None) or task.max_positions()
            return cls(args, RecurrentRobertaEncoder(args, task.source_dictionary))

    def refuse_another_recurrence(self, path: str) -> None:
        """Refuse to go on from a checkpoint with another recurrence: its weights fit, but compute something else.

        Raises:
            UserError: direction, step size, gate or type differ.
        """
        try:
            stored = stored_options(Path(path))
        except UserError:
            return  # loading it will say more
        names = ["recurrence_step_size", "recurrence_gate", "recurrence_type"]
        if not self.args.encoder_layers_to_keep:  # then the directions are those of the layers that are left
            names.append("recurrence_direction")
        differing = [n for n in names if n in stored and stored[n] != getattr(self.args, n)]
        if differing:
            there = " ".join(f"{_option(n)} {stored[n]}" for n in differing)
            here = " ".join(f"{_option(n)} {getattr(self.args, n)}" for n in differing)
            raise UserError(f"{path} was trained with {there}, this run has {here}; add {there}")

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path,
        checkpoint_file="checkpoint_best.pt",
        data_name_or_path=".",
        bpe="sentencepiece",
        **kwargs,
    ):
        """Load a model folder for inference: one of this class, or of fairseq's roberta.

        Args:
            model_name_or_path: the folder, with checkpoint, dict.txt and tokenizer.
            checkpoint_file: default "checkpoint_best.pt".
            data_name_or_path: another folder with dictionary and tokenizer.
            bpe, kwargs: see `rt_plugin.hub.from_pretrained`.

        Returns:
            rt_plugin.hub.RecurrentRobertaHubInterface, in eval mode, on the CPU.

        Raises:
            UserError: a folder or a file is missing, or tokenizer and dictionary do not belong together.
        """
        from rt_plugin import hub

        return hub.from_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, bpe=bpe, **kwargs)


def layer_directions(direction: str, layers: int) -> list[str]:
    """The direction of each layer, first to last: "forward" or "backward".

    Args:
        direction: one of `DIRECTIONS`, or one name a layer, joined by commas.
        layers: number of layers.
    """
    if direction == "alternate":
        return ["backward" if i % 2 else "forward" for i in range(layers)]
    names = direction.split(",")
    return names * layers if len(names) == 1 else names


def _direction_of_kept_layers(args) -> str:
    """With --encoder-layers-to-keep, every kept layer goes on in the direction that it was trained in."""
    if not args.encoder_layers_to_keep or args.recurrence_direction != "alternate":
        return args.recurrence_direction
    kept = sorted(int(i) for i in args.encoder_layers_to_keep.split(","))
    directions = layer_directions(args.recurrence_direction, args.encoder_layers)
    return ",".join(directions[i] for i in kept)


def check_recurrence_options(args) -> None:
    """Raise a `UserError` for an option of the recurrence that is unknown or out of range (Hydra checks nothing)."""
    options = {name: value for name, value in _items(args) if name.startswith("recurrence_")}
    for name, value in options.items():
        option = _option(name)
        if name not in RECURRENCE_DEFAULTS:
            known = ", ".join(map(_option, RECURRENCE_DEFAULTS))
            raise UserError(f"{option} {value}: there is no such option of the recurrence; known are {known}")
        if name in RECURRENCE_CHOICES:
            names = value.split(",") if name == "recurrence_direction" else [value]
            for unknown in set(names) - set(RECURRENCE_CHOICES[name]):
                raise UserError(f"{option} {unknown}: expected one of {', '.join(RECURRENCE_CHOICES[name])}")
        elif name in INITIAL_VALUES:
            _check_initial_value(option, value, RECURRENCE_DEFAULTS[name], options.get("recurrence_type"))
        elif value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{option} {value}: expected a whole number of at least 1")
    if getattr(args, "ffn_blocks_to_remove", -1) != -1 or getattr(args, "ffn_reg_scale_factor", 0):
        raise UserError(
            "--ffn-blocks-to-remove and --ffn-reg-scale-factor prune feed-forward blocks, and a recurrent_roberta "
            "has none; leave them out"
        )


def _check_initial_value(option: str, value, default: float, recurrence_type: str | None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{option} {value}: expected a finite number")
    if recurrence_type in ("none", "short-conv") and value != default:
        raise UserError(f"{option} {value}: --recurrence-type {recurrence_type} has no alpha and beta; leave it out")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _items(args):
    return args.items() if OmegaConf.is_config(args) else vars(args).items()


RECURRENCE_DEFAULTS = {
    "recurrence_dim": None,
    "recurrence_step_size": 1,
    "recurrence_gate": "gelu",
    "recurrence_alpha": 1.0,
    "recurrence_beta": 0.0,
    "recurrence_beta_spread": 0.0,
    "recurrence_direction": "forward",
    "recurrence_type": "swish-rnn",
    "recurrence_impl": "auto",
}
INITIAL_VALUES = ("recurrence_alpha", "recurrence_beta", "recurrence_beta_spread")
RECURRENCE_CHOICES = {
    "recurrence_gate": tuple(reference.GATES),
    "recurrence_direction": DIRECTIONS,
    "recurrence_type": RECURRENCE_TYPES,
    "recurrence_impl": ops.IMPLEMENTATIONS,
}
# (layers, embedding width, attention heads); below base: the BERT miniatures of Turc et al. 2019, arXiv 1908.08962
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
BASELINE_SIZES = ("tiny", "mini", "small", "medium")  # fairseq has roberta_base and roberta_large


@register_model_architecture("recurrent_roberta", "recurrent_roberta")
def base_architecture(args):
    """Fill in what is not set: the recurrence as in the paper, all else as in fairseq's roberta (base)."""
    for name, value in RECURRENCE_DEFAULTS.items():
        setattr(args, name, getattr(args, name, value))
    args.checkpoint_activations = getattr(args, "checkpoint_activations", False)
    args.offload_activations = getattr(args, "offload_activations", False)
    args.checkpoint_activations |= args.offload_activations
    roberta_architecture(args)


def _register_size(model: str, size: str, architecture) -> None:
    layers, embed_dim, heads = SIZES[size]

    def sized_architecture(args):
        args.encoder_layers = getattr(args, "encoder_layers", layers)
        args.encoder_embed_dim = getattr(args, "encoder_embed_dim", embed_dim)
        args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 4 * embed_dim)
        args.encoder_attention_heads = getattr(args, "encoder_attention_heads", heads)
        architecture(args)

    register_model_architecture(model, f"{model}_{size}")(sized_architecture)


for _size in SIZES:
    _register_size("recurrent_roberta", _size, base_architecture)
for _size in BASELINE_SIZES:
    _register_size("roberta", _size, roberta_architecture)
