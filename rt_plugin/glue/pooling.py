"""Which vector of an encoded sentence a classification head reads: the first position's, or one made of all.

mean, max: over all positions that are no padding, <s> and </s> among them: no text is so short that nothing is left,
and in an encoder whose recurrence runs left to right </s> comes last.

pair: of the means u and v over the two texts, read together as ever, the four parts u, v, |u-v| and u*v side by side.
apart: the same of texts that are read apart, each as `<s> a </s>`, as in InferSent (Conneau et al. 2017, arXiv
1705.02364) and Sentence-BERT (Reimers and Gurevych 2019, arXiv 1908.10084). With both, the head's first matrix is four
times as wide.
aligned: beside those of apart two parts more, which tell what of a text is not in the other: the means of |a_i - a'_i|
and |b_j - b'_j|, where a'_i is the mean over b's states, weighted by how like a_i they are, as in decomposable
attention (Parikh et al. 2016, arXiv 1606.01933). The head's first matrix is six times as wide.

Marks (`--mark-shared`) are for the encoder and go with any of these: to the embedding of each token of a pair a learned
vector is added, one where the other text has the same token and another where it has not, as the exact match feature of
Chen et al. (2017, arXiv 1704.00051). An encoder that has not learned to look for equal tokens by attention is told so.
"""

import functools
import threading

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rt_plugin.errors import UserError
from rt_plugin.model_folder.pooling import ALIGNED, APART, FIRST, OF_TWO, PAIR, vectors

AUTO = "auto"
TEMPERATURE = 0.05  # of the softmax over cosines that aligns two texts
SPECIAL_SYMBOLS = 4  # <s>, <pad>, </s>, <unk> have the first ids
NO_MARK, ALONE, SHARED = range(3)
MARKS_STD = 0.1  # of the marks at the start


def check_marks(texts: int, task: str) -> None:
    """Refuse --mark-shared for single texts.

    Args:
        texts, task: see `settle`.

    Raises:
        UserError: as said.
    """
    if texts == 1:
        raise UserError(f"--mark-shared is for pairs of texts, and {task} has one; leave it out")


def settle(pooling: str, texts: int, task: str) -> str:
    """Which of `rt_plugin.model_folder.pooling.POOLINGS` an option means for a task.

    Args:
        pooling: one of them, or `AUTO`: pair for two texts, first for one.
        texts: in each row, 1 or 2.
        task: its name, for errors.

    Raises:
        UserError: it is for pairs, and the task has single texts.
    """
    if pooling in OF_TWO and texts == 1:
        raise UserError(f"--pooling {pooling} is for pairs of texts, and {task} has one; use --pooling mean")
    if pooling == AUTO:
        return PAIR if texts == 2 else FIRST
    return pooling


def pool(features: Tensor, padding: Tensor, pooling: str) -> Tensor:
    """One vector a row.

    Args:
        features: (B, L, C).
        padding: (B, L), True where a position is padding; each row has one that is not.
        pooling: "first", "mean" or "max".

    Returns:
        (B, C), in the type of the features; a mean is summed in float32.
    """
    if pooling == FIRST:
        return features[:, 0]
    padding = padding.unsqueeze(-1)
    if pooling == "max":
        return features.masked_fill(padding, -torch.inf).amax(dim=1)
    total = features.masked_fill(padding, 0).sum(dim=1, dtype=torch.float32)
    return (total / (~padding).sum(dim=1)).to(features.dtype)


def first_texts(tokens: Tensor, eos: int) -> Tensor:
    """(B, L), True at `<s> a </s>` of each row `<s> a </s> </s> b </s>`.

    Raises:
        UserError: a row is no pair.
    """
    ends = tokens.eq(eos)
    between = ends[:, :-1] & ends[:, 1:]  # at the first of two </s> one after the other
    if not between.any(dim=1).all():
        raise UserError("--pooling for pairs of texts: found a single text, expected two, with </s> </s> between them")
    last = between.int().argmax(dim=1, keepdim=True)
    return torch.arange(tokens.shape[1], device=tokens.device) <= last


def texts_apart(tokens: Tensor, pad: int, eos: int) -> Tensor:
    """Each text of some pairs in a row of its own.

    Args:
        tokens: (B, L), each row `<s> a </s> </s> b </s>` and padding.
        pad, eos: the ids of <pad> and </s>.

    Returns:
        (2 B, M): the rows `<s> a </s>`, then as many `<s> b </s>`, with padding up to the longest of them.

    Raises:
        UserError: a row is no pair.
    """
    begins = first_texts(tokens, eos).sum(dim=1, keepdim=True)  # where the second text does
    lengths = torch.cat([begins, tokens.ne(pad).sum(dim=1, keepdim=True) - begins])
    places = torch.arange(int(lengths.max()), device=tokens.device)
    found = places + torch.cat([torch.zeros_like(begins), begins])
    rows = tokens.repeat(2, 1).gather(1, found.clamp(max=tokens.shape[1] - 1)).masked_fill(places >= lengths, pad)
    rows[:, 0] = tokens[0, 0]
    return rows


def pair_vector(u: Tensor, v: Tensor) -> Tensor:
    """(B, 4 C) of the two texts' vectors (B, C): u, v, |u-v|, u*v."""
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


def alignment(a: Tensor, b: Tensor, no_a: Tensor, no_b: Tensor) -> Tensor:
    """How far the states of two texts are from what is nearest to them in the other one.

    Args:
        a, b: (B, L, C) and (B, M, C).
        no_a, no_b: (B, L) and (B, M), True where a position is padding.

    Returns:
        (B, 2 C): the means of |a_i - a'_i| and |b_j - b'_j|; a'_i is the mean of b's states, weighted by the softmax of
        their cosines with a_i over `TEMPERATURE`, b'_j that of a's.
    """
    cosines = F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).transpose(1, 2) / TEMPERATURE
    of_a = cosines.masked_fill(no_b.unsqueeze(1), -torch.inf).softmax(dim=2).to(b.dtype) @ b
    of_b = cosines.masked_fill(no_a.unsqueeze(2), -torch.inf).softmax(dim=1).to(a.dtype).transpose(1, 2) @ a
    return torch.cat([pool((a - of_a).abs(), no_a, "mean"), pool((b - of_b).abs(), no_b, "mean")], dim=-1)


def shared_tokens(tokens: Tensor, in_first: Tensor | None) -> Tensor:
    """Which mark each token gets.

    Args:
        tokens: (B, L), each row both texts; or the first texts, then as many second ones, as of `texts_apart`.
        in_first: (B, L), see `first_texts`; None for texts apart.

    Returns:
        (B, L): `SHARED` where the other text has the same token, `ALONE` where not, `NO_MARK` at special symbols.
    """
    if in_first is None:
        a, b = tokens.chunk(2)
        shared = torch.cat([_is_in(a, b), _is_in(b, a)])
    else:
        a, b = tokens.masked_fill(~in_first, -1), tokens.masked_fill(in_first, -2)
        shared = _is_in(a, b) | _is_in(b, a)
    return (ALONE + (SHARED - ALONE) * shared.long()).masked_fill(tokens < SPECIAL_SYMBOLS, NO_MARK)


def _is_in(a: Tensor, b: Tensor) -> Tensor:
    """(B, L), True where the token of a, (B, L), is among those of b, (B, M)."""
    return a.unsqueeze(2).eq(b.unsqueeze(1)).any(dim=2)


class _LastRead(threading.local):
    """What the model has read last in this thread; a copy, of a copied or pickled model, begins without.

    Attributes:
        tokens: the token ids, as the encoder gets them; None where they are of no use for the head.
    """

    tokens: Tensor | None = None

    def __reduce__(self):
        return _LastRead, ()


class PoolingHook:
    """Has a model's classification head read the pooled vector in place of the first position's.

    fairseq's head takes the features alone and reads position 0. The tokens, which tell texts and padding, are those
    that the model has read last in the same thread; for `apart`, `aligned` and marks it reads them otherwise when it is
    called for this head. Weights and their names stay as they are; the head's first matrix is a new one for two texts,
    and the marks are weights of the head: `classification_heads.NAME.marks.weight`.

    Args:
        model: fairseq's roberta, or recurrent_roberta.
        head: name of its classification head.
        pooling: one of `rt_plugin.model_folder.pooling.POOLINGS`.
        marks: add the marks of shared tokens to the embeddings.
        pad, eos: the ids of <pad> and </s>.
    """

    def __init__(self, model: nn.Module, head: str, pooling: str, marks: bool, pad: int, eos: int):
        self._name, self._pooling, self._marks, self._pad, self._eos = head, pooling, marks, pad, eos
        self._last = _LastRead()
        head = model.classification_heads[head]
        width = head.dense.in_features
        if pooling in OF_TWO:
            head.dense = nn.Linear(vectors(pooling) * width, head.dense.out_features)
        if marks:
            head.marks = nn.Embedding(SHARED + 1, width, padding_idx=NO_MARK)
            nn.init.normal_(head.marks.weight[ALONE:], std=MARKS_STD)
            embed = model.encoder.sentence_encoder.embed_tokens
            embed.register_forward_hook(functools.partial(self._add_marks, head))
        model.register_forward_pre_hook(self._read, with_kwargs=True)
        head.register_forward_pre_hook(self._replace)

    @property
    def _apart(self) -> bool:
        return self._pooling in (APART, ALIGNED)

    def _read(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        tokens = args[0] if args else kwargs["src_tokens"]
        if (self._apart or self._marks) and kwargs.get("classification_head_name") != self._name:
            tokens = None  # what is read for something else is of no use for this head
        elif self._apart:
            tokens = texts_apart(tokens, self._pad, self._eos)
        self._last.tokens = tokens
        if tokens is None:
            return args, kwargs
        return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, "src_tokens": tokens})

    def _add_marks(self, head: nn.Module, embed: nn.Module, args: tuple, output: Tensor) -> Tensor:
        tokens = self._last.tokens
        if tokens is None or args[0] is not tokens:
            return output
        in_first = None if self._apart else first_texts(tokens, self._eos)
        return output + head.marks(shared_tokens(tokens, in_first))

    def _replace(self, head: nn.Module, args: tuple) -> tuple:
        features, *others = args
        tokens = self._last.tokens
        if tokens is None or tokens.shape != features.shape[:2]:
            raise UserError(
                f"--pooling {self._pooling}: the classification head got features of shape {tuple(features.shape)}, "
                "not those of the tokens that the model read last; use predict of the loaded model"
            )
        return (self._vector(features, tokens).unsqueeze(1), *others)

    def _vector(self, features: Tensor, tokens: Tensor) -> Tensor:
        padding = tokens.eq(self._pad)
        if self._apart:
            vector = pair_vector(*pool(features, padding, "mean").chunk(2))
            if self._pooling == APART:
                return vector
            return torch.cat([vector, alignment(*features.chunk(2), *padding.chunk(2))], dim=-1)
        if self._pooling == PAIR:
            in_first = first_texts(tokens, self._eos)
            return pair_vector(pool(features, ~in_first, "mean"), pool(features, in_first | padding, "mean"))
        return pool(features, padding, self._pooling)
