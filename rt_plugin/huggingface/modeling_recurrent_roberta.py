"""Recurrent RoBERTa for transformers: "Simple Recurrence Improves Masked Language Models", arXiv 2205.11588.

Runs without fairseq. Where the package rt_plugin is installed, the recurrence is its compiled operation; else it is the
few lines of `recurrence` below. Under torch.export it is one `scan`, so that the length stays dynamic.
"""

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from .configuration_recurrent_roberta import RecurrentRobertaConfig

try:
    from rt_plugin.ops import swish_rnn as compiled_swish_rnn
except ImportError:  # plain PyTorch then
    compiled_swish_rnn = None

GATES = {"gelu": F.gelu, "sigmoid": torch.sigmoid, "silu": F.silu}
OF_TWO = {"pair": 4, "apart": 4, "aligned": 6}  # for two texts -> how many vectors of hidden_size a classifier reads
TEMPERATURE = 0.05  # of the softmax over cosines that aligns two texts
SPECIAL_SYMBOLS = 4  # <s>, <pad>, </s>, <unk> have the first ids
NO_MARK, ALONE, SHARED = range(3)
CONVOLUTION_WIDTH = 4  # positions that the block "short-conv" sees


def swish_step(c, x, alpha, beta):
    """Swish(c - x) + x with Swish(z) = z * sigmoid(alpha * z + beta): one step of the paper's recurrence."""
    z = c - x
    return z * torch.sigmoid(alpha * z + beta) + x


def recurrence(x1, alpha, beta, step_size):
    """c[i] = Swish(c[i-k] - x1[i]) + x1[i] from c = 0.

    Args:
        x1: (L, B, d').
        alpha, beta: (d',).
        step_size: k; the k positions of a group do not depend on each other.

    Returns:
        C, (L, B, d').
    """
    if torch.compiler.is_exporting():
        return _scanned(x1, alpha, beta, step_size)
    c = x1.new_zeros((min(step_size, len(x1)), *x1.shape[1:]))
    groups = []
    for x in x1.split(step_size):
        c = swish_step(c[: len(x)], x, alpha, beta)
        groups.append(c)
    return torch.cat(groups)


def _scanned(x1, alpha, beta, step_size):
    """`recurrence` as one operator, whatever the length: over the groups of k positions, the last one filled up."""
    from torch._higher_order_ops.scan import scan

    length, batch, width = x1.shape
    # one group more than needed: with two at least, torch.export makes no case of its own of short sequences
    groups = length if step_size == 1 else (length - 1) // step_size + 2
    filled = F.pad(x1, (0, 0, 0, 0, 0, groups * step_size - length)) if step_size > 1 else x1

    def step(c, x):
        c = swish_step(c, x, alpha, beta)
        return c, c.clone()

    start = x1.new_zeros((step_size * batch, width))
    _, c = scan(step, start, filled.reshape(groups, step_size * batch, width))
    return c.reshape(groups * step_size, batch, width)[:length]


def short_convolution(x1, weight, step_size):
    """c[i] = sum over j of weight[j] * x1[i - j k], with x1 (L, B, d') and weight (n, d')."""
    length, reach = x1.shape[0], (len(weight) - 1) * step_size  # len(x1) would be a constant of a graph
    padded = F.pad(x1, (0, 0, 0, 0, reach, 0))
    c = torch.zeros_like(x1)
    for j, w in enumerate(weight):
        start = reach - j * step_size
        c = c + padded[start : start + length] * w
    return c


def pool(features, present, pooling):
    """One vector a sentence.

    Args:
        features: (B, L, d).
        present: (B, L), True where a position is no padding.
        pooling: "first", "mean" or "max".

    Returns:
        (B, d).
    """
    if pooling == "first":
        return features[:, 0]
    absent = ~present.unsqueeze(-1)
    if pooling == "max":
        return features.masked_fill(absent, -torch.inf).amax(dim=1)
    total = features.masked_fill(absent, 0).sum(dim=1, dtype=torch.float32)
    return (total / present.sum(dim=1, keepdim=True)).to(features.dtype)


def first_texts(input_ids, eos):
    """(B, L), True at `<s> a </s>` of each row `<s> a </s> </s> b </s>`; and (B, 1), whether the row is such a pair.

    Args:
        input_ids: (B, L).
        eos: the id of </s>.

    Raises:
        ValueError: a row is a single text. A compiled or exported graph raises nothing.
    """
    ends = input_ids.eq(eos)
    between = ends[:, :-1] & ends[:, 1:]  # at the first of two </s> one after the other
    is_pair = between.any(dim=1, keepdim=True)
    if not torch.compiler.is_compiling() and not is_pair.all():
        raise ValueError("pooling of two texts: found a single text, expected two; give a tokenizer text and text_pair")
    last = between.int().argmax(dim=1, keepdim=True)
    return torch.arange(input_ids.shape[1], device=input_ids.device) <= last, is_pair


def texts_apart(input_ids, present, in_first, pad):
    """Each text of some pairs in a row of its own.

    Args:
        input_ids: (B, L), each row `<s> a </s> </s> b </s>` and padding.
        present: (B, L), True where a position is no padding.
        in_first: (B, L), see `first_texts`.
        pad: the id of <pad>.

    Returns:
        (2 B, M) input_ids and where they are no padding: the rows `<s> a </s>`, then as many `<s> b </s>`; M is the
        longest of them, and L in a graph.
    """
    start = present.int().argmax(dim=1, keepdim=True)
    first = (in_first & present).sum(dim=1, keepdim=True)
    lengths = torch.cat([first, present.sum(dim=1, keepdim=True) - first])
    longest = input_ids.shape[1] if torch.compiler.is_compiling() else int(lengths.max())
    places = torch.arange(longest, device=input_ids.device)
    found = places + torch.cat([start, start + first])
    texts = input_ids.repeat(2, 1).gather(1, found.clamp(max=input_ids.shape[1] - 1))
    bos = input_ids.gather(1, start).repeat(2, 1)
    present = places < lengths
    return torch.cat([bos, texts[:, 1:]], dim=1).masked_fill(~present, pad), present


def pair_vector(u, v, is_pair):
    """(B, 4 d) of the two texts' vectors (B, d): u, v, |u-v|, u*v; NaN where is_pair, (B, 1), is False."""
    u = u.masked_fill(~is_pair, torch.nan)
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


def alignment(a, b, in_a, in_b):
    """How far the states of two texts are from what is nearest to them in the other one.

    Args:
        a, b: (B, L, d) each.
        in_a, in_b: (B, L) each, True where a position is no padding.

    Returns:
        (B, 2 d): the means of |a_i - a'_i| and |b_j - b'_j|; a'_i is the mean of b's states, weighted by the softmax of
        their cosines with a_i over `TEMPERATURE`, b'_j that of a's.
    """
    cosines = F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).transpose(1, 2) / TEMPERATURE
    of_a = cosines.masked_fill(~in_b.unsqueeze(1), -torch.inf).softmax(dim=2).to(b.dtype) @ b
    of_b = cosines.masked_fill(~in_a.unsqueeze(2), -torch.inf).softmax(dim=1).to(a.dtype).transpose(1, 2) @ a
    return torch.cat([pool((a - of_a).abs(), in_a, "mean"), pool((b - of_b).abs(), in_b, "mean")], dim=-1)


def shared_tokens(input_ids, in_first):
    """Which mark each token of some pairs gets.

    Args:
        input_ids: (B, L), each row both texts; or the first texts, then as many second ones, as of `texts_apart`.
        in_first: (B, L), see `first_texts`; None for texts apart.

    Returns:
        (B, L): `SHARED` where the other text has the same token, `ALONE` where not, `NO_MARK` at special symbols.
    """
    if in_first is None:
        pairs = input_ids.shape[0] // 2
        a, b = input_ids[:pairs], input_ids[pairs:]
        shared = torch.cat([is_in(a, b), is_in(b, a)])
    else:
        a, b = input_ids.masked_fill(~in_first, -1), input_ids.masked_fill(in_first, -2)
        shared = is_in(a, b) | is_in(b, a)
    return (ALONE + (SHARED - ALONE) * shared.long()).masked_fill(input_ids < SPECIAL_SYMBOLS, NO_MARK)


def is_in(a, b):
    """(B, L), True where the token of a, (B, L), is among those of b, (B, M)."""
    return a.unsqueeze(2).eq(b.unsqueeze(1)).any(dim=2)


class RecurrentBlock(nn.Module):
    """H = ((C + b_c) * g(X W2 + b_g)) W3 + b_3, C from X1 = X W1 by the configuration's `block`.

    Args:
        config: of the model.
        reverse: run right to left.

    Shape:
        x: (L, B, d) -> (L, B, d), padded positions of x being 0.
    """

    def __init__(self, config, reverse):
        super().__init__()
        width = config.intermediate_size
        self.kind, self.reverse = config.block, reverse
        self.step_size, self.gate = config.recurrence_step_size, config.recurrence_gate
        self.impl = config.recurrence_impl
        self.in_proj = nn.Linear(config.hidden_size, 2 * width, bias=False)
        if self.kind == "swish-rnn":
            self.alpha = nn.Parameter(torch.ones(width))
            self.beta = nn.Parameter(torch.zeros(width))
        elif self.kind == "short-conv":
            self.conv_weight = nn.Parameter(torch.zeros(CONVOLUTION_WIDTH, width))
        self.c_bias = nn.Parameter(torch.zeros(width))
        self.gate_bias = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(config.activation_dropout)
        self.out_proj = nn.Linear(width, config.hidden_size)

    def forward(self, x):
        return self.out_proj(self.dropout(self._inner(self.in_proj(x))))

    def _inner(self, x12):
        compiled = self.impl != "reference" and compiled_swish_rnn is not None and not torch.compiler.is_exporting()
        if self.kind == "swish-rnn" and compiled:
            parameters = (self.alpha, self.beta, self.c_bias, self.gate_bias)
            return compiled_swish_rnn(x12, *parameters, self.step_size, self.gate, self.reverse)
        state = torch.float64 if x12.dtype == torch.float64 else torch.float32  # half precision would lose the sum
        x1, x2 = x12.to(state).chunk(2, dim=-1)
        if self.kind != "none":
            x1 = x1.flip(0) if self.reverse else x1
            if self.kind == "swish-rnn":
                x1 = recurrence(x1, self.alpha.to(state), self.beta.to(state), self.step_size)
            else:
                x1 = short_convolution(x1, self.conv_weight.to(state), self.step_size)
            x1 = x1.flip(0) if self.reverse else x1
        gate = GATES[self.gate](x2 + self.gate_bias.to(state))
        return ((x1 + self.c_bias.to(state)) * gate).to(x12.dtype)


class FeedForwardBlock(nn.Module):
    """RoBERTa's own block, for encoders that transformers' RoBERTa cannot hold. (L, B, d) -> (L, B, d)."""

    def __init__(self, config):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(config.activation_dropout)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc2(self.dropout(self.activation(self.fc1(x))))


class RecurrentRobertaAttention(nn.Module):
    """Multi-head self-attention, time first.

    Shape:
        x: (L, B, d); visible: (B, 1, 1, L), True where a position may be seen, or None -> (L, B, d), and the weights
        (B, heads, L, L) where they are asked for.
    """

    def __init__(self, config):
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, x, visible, output_weights=False):
        length, batch, width = x.shape
        query, key, value = (self._heads(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        dropout, weights = (self.dropout if self.training else 0.0), None
        if output_weights:
            weights = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
            weights = weights if visible is None else weights.masked_fill(~visible, torch.finfo(x.dtype).min)
            weights = weights.softmax(dim=-1)
            seen = F.dropout(weights, dropout) @ value
        else:
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        return self.out_proj(seen.permute(2, 0, 1, 3).reshape(length, batch, width)), weights

    def _heads(self, x):  # (L, B, d) -> (B, heads, L, d / heads)
        return x.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)


class RecurrentRobertaLayer(GradientCheckpointingLayer):
    """Attention and a block, each with its residual and its layer norm."""

    def __init__(self, config, index):
        super().__init__()
        self.normalize_before = config.normalize_before
        self.self_attn = RecurrentRobertaAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        if config.block == "feed-forward":
            self.feed_forward = FeedForwardBlock(config)
        else:
            self.recurrence = RecurrentBlock(config, config.recurrence_directions[index] == "backward")
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x, visible=None, absent=None, output_weights=False):
        """x: (L, B, d); visible: (B, 1, 1, L) or None; absent: (L, B, 1), True at padding, or None."""
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, weights = self.self_attn(x, visible, output_weights)
        x = residual + self.dropout(x)
        if not self.normalize_before:
            x = self.self_attn_layer_norm(x)
        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        if hasattr(self, "recurrence"):  # zeros keep the state at 0 up to the first token, in either direction
            x = self.recurrence(x if absent is None else x.masked_fill(absent, 0))
        else:
            x = self.feed_forward(x)
        x = residual + self.dropout(x)
        if not self.normalize_before:
            x = self.final_layer_norm(x)
        return x, weights


class RecurrentRobertaPreTrainedModel(PreTrainedModel):
    """How weights start, and what transformers has to know of the model."""

    config_class = RecurrentRobertaConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar = ["RecurrentRobertaLayer"]
    # one folder may hold both heads
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^lm_head\.", r"^classifier\."]

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, RecurrentBlock):
            nn.init.zeros_(module.c_bias)
            nn.init.zeros_(module.gate_bias)
            if module.kind == "swish-rnn":
                nn.init.ones_(module.alpha)
                nn.init.zeros_(module.beta)
            elif module.kind == "short-conv":
                for j, row in enumerate(module.conv_weight):  # what the recurrence starts as, for small inputs
                    nn.init.constant_(row, 0.5 ** (j + 1))


class RecurrentRobertaModel(RecurrentRobertaPreTrainedModel):
    """The encoder: token ids -> one vector a position."""

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.embed_scale = width**0.5 if config.scale_embedding else 1.0
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        if config.position_embeddings:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, width, config.pad_token_id)
        if config.layernorm_embedding:
            self.layernorm_embedding = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList([RecurrentRobertaLayer(config, i) for i in range(config.num_hidden_layers)])
        if config.normalize_before:
            self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def present(self, input_ids, attention_mask, inputs_embeds=None):
        """(B, L), True where a position is no padding: what the mask says, or else the token ids."""
        if attention_mask is not None:
            return attention_mask.bool()
        if input_ids is not None:
            return input_ids.ne(self.config.pad_token_id)
        return torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """Encode a batch.

        Args:
            input_ids: (B, L), or `inputs_embeds`: (B, L, d).
            attention_mask: (B, L), 0 at padding; default: where the ids are padding.
            token_type_ids: not used; tokenizers of other models give them.
            position_ids: (B, L), rows of the table of positions; default: pad_token_id + 1 and so on.

        Returns:
            BaseModelOutput: last_hidden_state (B, L, d) and, where asked for, hidden_states and attentions.

        Raises:
            ValueError: the input is longer than the table of positions, or both or none of the inputs are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        present = self.present(input_ids, attention_mask, inputs_embeds)
        tracing = torch.compiler.is_compiling()
        if not tracing:
            self._check_length(present)
        x = self.embed_scale * (self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        if self.config.position_embeddings:
            x = x + self.embed_positions(self._positions(present) if position_ids is None else position_ids)
        if self.config.layernorm_embedding:
            x = self.layernorm_embedding(x)
        x = self.dropout(x).transpose(0, 1)
        if not tracing and present.device.type == "cpu" and present.all():
            visible = absent = None
        else:
            visible, absent = present[:, None, None, :], ~present.t().unsqueeze(-1)
            x = x.masked_fill(absent, 0)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, visible, absent, bool(output_attentions))
            states.append(x)
            attentions.append(weights)
        if self.config.normalize_before:
            x = self.layer_norm(x)
        output = BaseModelOutput(
            last_hidden_state=x.transpose(0, 1),
            hidden_states=tuple(state.transpose(0, 1) for state in states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _positions(self, present):
        places = present.to(torch.int64)
        return places.cumsum(dim=1) * places + self.config.pad_token_id

    def _check_length(self, present):
        longest = self.config.max_position_embeddings - self.config.pad_token_id - 1
        if self.config.position_embeddings and present.shape[1] > longest and present.sum(dim=1).max() > longest:
            raise ValueError(f"an input of {present.shape[1]} tokens, {longest} positions; use truncation=True")


class RecurrentRobertaLMHead(nn.Module):
    """Vector -> logits over the tokens."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x):
        return self.decoder(self.layer_norm(self.activation(self.dense(x))))


class RecurrentRobertaForMaskedLM(RecurrentRobertaPreTrainedModel):
    """The encoder with its output layer: logits over the tokens at every position."""

    _tied_weights_keys: ClassVar = {"lm_head.decoder.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.encoder = RecurrentRobertaModel(config)
        self.lm_head = RecurrentRobertaLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, value):
        self.lm_head.decoder = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """As `RecurrentRobertaModel.forward`, with logits (B, L, vocabulary).

        Args:
            labels: (B, L), token ids, -100 where none is to be predicted; given, the output has the mean loss.
        """
        output = self.encoder(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(output.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return output.to_tuple() if return_dict is False else output


class RecurrentRobertaClassifier(nn.Module):
    """Pooled vector -> one logit a class, or one score."""

    def __init__(self, config):
        super().__init__()
        parts = OF_TWO.get(config.pooling, 1)
        self.dense = nn.Linear(parts * config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.classifier_act]
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)
        if config.mark_shared:
            self.marks = nn.Embedding(SHARED + 1, config.hidden_size, padding_idx=NO_MARK)  # the encoder reads them

    def forward(self, x):
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(x)))))


class RecurrentRobertaForSequenceClassification(RecurrentRobertaPreTrainedModel):
    """The encoder with a classifier of sentences or sentence pairs, or a regression."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = RecurrentRobertaModel(config)
        self.classifier = RecurrentRobertaClassifier(config)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """As `RecurrentRobertaModel.forward`, with logits (B, classes).

        Args:
            labels: (B,), classes, or scores where there is one output; given, the output has the mean loss.

        Returns:
            With the poolings "apart" and "aligned", hidden states and attentions are those of 2 B texts: the first
            ones, then the second ones.

        Raises:
            ValueError: the configuration's pooling or its mark_shared is for two texts, and there are no input_ids, or
                a row is a single text; or position_ids are given for texts that are read apart.
        """
        is_pair = in_first = None
        apart = self.config.pooling in ("apart", "aligned")
        if self.config.pooling in OF_TWO or self.config.mark_shared:
            if input_ids is None:
                what = f"pooling {self.config.pooling!r}" if self.config.pooling in OF_TWO else "mark_shared"
                raise ValueError(f"{what} needs input_ids, which tell where a text ends")
            in_first, is_pair = first_texts(input_ids, self.config.eos_token_id)
        if apart:
            if position_ids is not None:
                raise ValueError(f"pooling {self.config.pooling!r} reads each text by itself; give no position_ids")
            present = self.encoder.present(input_ids, attention_mask, None)
            input_ids, attention_mask = texts_apart(input_ids, present, in_first, self.config.pad_token_id)
        if self.config.mark_shared and inputs_embeds is None:  # with both, the encoder refuses them
            attention_mask = self.encoder.present(input_ids, attention_mask)
            marks = self.classifier.marks(shared_tokens(input_ids, None if apart else in_first))
            marks = marks.masked_fill(~is_pair.repeat(1 + apart, 1).unsqueeze(-1), torch.nan)  # raises, but in a graph
            input_ids, inputs_embeds = None, self.encoder.embed_tokens(input_ids) + marks
        output = self.encoder(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        present = self.encoder.present(input_ids, attention_mask, inputs_embeds)
        logits = self.classifier(self._pool(output.last_hidden_state, present, in_first, is_pair))
        loss = None if labels is None else self._loss(logits.float(), labels)
        output = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return output.to_tuple() if return_dict is False else output

    def _pool(self, features, present, in_first, is_pair):
        if self.config.pooling in ("apart", "aligned"):
            both, pairs = pool(features, present, "mean"), is_pair.shape[0]  # chunk(2) is no operator of ONNX
            vector = pair_vector(both[:pairs], both[pairs:], is_pair)
            if self.config.pooling == "apart":
                return vector
            a, b, in_a, in_b = features[:pairs], features[pairs:], present[:pairs], present[pairs:]
            return torch.cat([vector, alignment(a, b, in_a, in_b)], dim=-1)
        if self.config.pooling == "pair":
            parts = (pool(features, part & present, "mean") for part in (in_first, ~in_first))
            return pair_vector(*parts, is_pair)
        return pool(features, present, self.config.pooling)

    def _loss(self, logits, labels):
        if self.num_labels == 1:
            return F.mse_loss(logits.squeeze(-1), labels.float())
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels)
