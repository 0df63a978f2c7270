"""The configuration of a recurrent RoBERTa for transformers (arXiv 2205.11588)."""

from transformers import PretrainedConfig


class RecurrentRobertaConfig(PretrainedConfig):
    """What a `RecurrentRobertaModel` is built from.

    Args:
        vocab_size: tokens, the special ones and <mask> among them.
        hidden_size, num_hidden_layers, num_attention_heads: d, layers, heads.
        intermediate_size: d', the inner width of the blocks.
        max_position_embeddings: rows of the table of positions: the longest input, and pad_token_id + 1 more.
        block: what follows attention in each layer: "swish-rnn" (the paper's recurrence), "none" (the same gated block
            with c = x1), "short-conv" (c is a causal convolution of x1) or "feed-forward" (RoBERTa's own).
        recurrence_step_size: k; position i depends on position i - k.
        recurrence_gate: "gelu", "sigmoid" or "silu".
        recurrence_directions: "forward" or "backward" for each layer; default: all forward.
        recurrence_impl: "auto" (the compiled operation where rt_plugin is installed, else plain PyTorch) or "reference"
            (plain PyTorch).
        hidden_act: of the output layer, and of feed-forward blocks.
        normalize_before: layer norms stand before attention and blocks, and one after the last layer.
        layernorm_embedding: a layer norm follows the embeddings.
        scale_embedding: token embeddings are multiplied by the square root of hidden_size.
        position_embeddings: there is a table of positions.
        pooling: what a classifier reads: "first" (the first position), "mean" or "max" (of all that are no padding),
            "pair" (the means of two texts, their difference and product), "apart" (the same of texts that the encoder
            reads one by one) or "aligned" (and how far each text is from what the other has nearest to it).
        mark_shared: for a classifier, a learned vector is added to each token of two texts, by whether the other text
            has the same token.
        classifier_act: between the classifier's two layers.
        rt_glue: the content of glue.json of a model fine-tuned by rt_plugin, or None.
    """

    model_type = "recurrent_roberta"

    def __init__(
        self,
        vocab_size=32000,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=2048,
        max_position_embeddings=514,
        block="swish-rnn",
        recurrence_step_size=1,
        recurrence_gate="gelu",
        recurrence_directions=None,
        recurrence_impl="auto",
        hidden_act="gelu",
        normalize_before=False,
        layernorm_embedding=True,
        scale_embedding=False,
        position_embeddings=True,
        pooling="first",
        mark_shared=False,
        classifier_act="tanh",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        activation_dropout=0.0,
        classifier_dropout=0.0,
        layer_norm_eps=1e-5,
        initializer_range=0.02,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=True,
        rt_glue=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.block = block
        self.recurrence_step_size = recurrence_step_size
        self.recurrence_gate = recurrence_gate
        self.recurrence_directions = recurrence_directions or ["forward"] * num_hidden_layers
        self.recurrence_impl = recurrence_impl
        self.hidden_act = hidden_act
        self.normalize_before = normalize_before
        self.layernorm_embedding = layernorm_embedding
        self.scale_embedding = scale_embedding
        self.position_embeddings = position_embeddings
        self.pooling = pooling
        self.mark_shared = mark_shared
        self.classifier_act = classifier_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.activation_dropout = activation_dropout
        self.classifier_dropout = classifier_dropout
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.rt_glue = rt_glue
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
