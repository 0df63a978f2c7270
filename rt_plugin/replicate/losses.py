"""Measuring the masked-LM loss of one model on held-out text; needs torch and fairseq."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary, data_utils
from torch.nn import functional as F

from rt_plugin.errors import UserError
from rt_plugin.model_folder.checkpoint import check_token_ids, checkpoint_path
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import DICTIONARY_FILE, data_folders
from rt_plugin.pretrain.unigram import unigram_bits

POSITION_EDGES = (1, 2, 3, 5, 9, 17, 33, 49, 65, 81, 97, 113, 129, 193, 257, 385, 513)
FREQUENCY_EDGES = (0, 10, 32, 100, 320, 1_000, 3_200, 10_000, 1_000_000)  # in a million tokens
_TOKENS_A_BATCH = 8_192
_SENTENCES_AT_A_TIME = 10_000


@dataclass(frozen=True)
class HeldOut:
    """Losses of a model, in bits a token.

    Attributes:
        loss, masked: over the positions that hold <mask>, and their number.
        chosen_loss, chosen: over all positions that were chosen for guessing, and their number.
        accuracy: share of the <mask> positions whose most probable token is right.
        unigram_loss: of the unigram model over the <mask> positions.
        positions, frequencies: (from, below, tokens, loss) over the <mask> positions; empty intervals are left out.
    """

    loss: float
    masked: int
    chosen_loss: float
    chosen: int
    accuracy: float
    unigram_loss: float
    positions: list[tuple[int, int, int, float]]
    frequencies: list[tuple[int, int, int, float]]


def measure(model_folder: Path, data: str, mask_seed: int, split: str, checkpoint: str, device: str) -> HeldOut:
    """Evaluate a masked LM, of this package or fairseq's roberta.

    Args:
        model_folder: with the checkpoint.
        data: the corpus folder, or several joined by colons; the split is in the first one.
        mask_seed: of the masks.
        device: "cpu" or "cuda".

    Raises:
        UserError: checkpoint or split are missing, or the corpus has another dictionary.
    """
    task, model = _load(checkpoint_path(model_folder, checkpoint), data, mask_seed)
    task.load_dataset(split)
    model = model.eval().to(device)
    guesses = [_guess(model, batch, task, device) for batch in _batches(task, split)]
    targets, positions, is_mask, bits, right = map(np.concatenate, zip(*guesses, strict=True))
    counts = token_counts(data, "train", task.source_dictionary)
    probabilities = (counts + 1) / (counts + 1).sum()
    per_million = 1e6 * counts[targets] / counts.sum()
    m = is_mask
    return HeldOut(
        loss=float(bits[m].mean()),
        masked=int(m.sum()),
        chosen_loss=float(bits.mean()),
        chosen=len(bits),
        accuracy=float(right[m].mean()),
        unigram_loss=float(-np.log2(probabilities[targets[m]]).mean()),
        positions=_by(POSITION_EDGES, positions[m], bits[m]),
        frequencies=_by(FREQUENCY_EDGES, per_million[m], bits[m]),
    )


def _load(checkpoint: Path, data: str, mask_seed: int):
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint; give the folder of a trained model")
    folder = Path(data_folders(data)[0])
    dictionary = load_dictionary(folder / DICTIONARY_FILE)
    dictionary.add_symbol("<mask>")
    check_token_ids(dictionary, folder, checkpoint, advice="give the corpus that it was trained on as --data")
    overrides = {"data": data, "seed": mask_seed}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], arg_overrides=overrides)
    if not hasattr(task, "mask_idx"):
        raise UserError(f"{checkpoint}: no masked LM, its task is {type(task).__name__}")
    return task, models[0]


def _batches(task, split: str) -> Iterable[dict]:
    iterator = task.get_batch_iterator(task.datasets[split], max_tokens=_TOKENS_A_BATCH, num_workers=0)
    return iterator.next_epoch_itr(shuffle=False)


@torch.inference_mode()
def _guess(model, batch: dict, task, device: str) -> tuple[np.ndarray, ...]:
    """For each chosen position: its token, its place, whether it holds <mask>, its bits, whether it is right."""
    if device != "cpu":
        batch = utils.move_to_cuda(batch)
    chosen = batch["target"].ne(task.source_dictionary.pad())
    targets = batch["target"][chosen]
    logits = model(**batch["net_input"], masked_tokens=chosen)[0].float()
    bits = F.cross_entropy(logits, targets, reduction="none") / math.log(2)
    is_mask = batch["net_input"]["src_tokens"][chosen].eq(task.mask_idx)
    values = (targets, chosen.nonzero()[:, 1], is_mask, bits, logits.argmax(dim=-1).eq(targets))
    return tuple(value.cpu().numpy() for value in values)


def _by(edges: Sequence[int], where: np.ndarray, bits: np.ndarray) -> list[tuple[int, int, int, float]]:
    found = []
    for low, high in itertools.pairwise(edges):
        inside = bits[(where >= low) & (where < high)]
        if len(inside):
            found.append((low, high, len(inside), float(inside.mean())))
    return found


def token_counts(data: str, split: str, dictionary: Dictionary) -> np.ndarray:
    """(symbols,) int64: how often each token occurs in a split, in all folders of a corpus; 0 for <s>, <pad>, </s>.

    Raises:
        UserError: a folder has no such split.
    """
    counts = np.zeros(len(dictionary), dtype=np.int64)
    for folder in data_folders(data) if split == "train" else data_folders(data)[:1]:
        sentences = data_utils.load_indexed_dataset(str(Path(folder) / split), dictionary)
        if sentences is None:
            raise UserError(f"{folder}: no split {split!r} there; prepare the corpus with it")
        for begin in range(0, len(sentences), _SENTENCES_AT_A_TIME):
            some = range(begin, min(begin + _SENTENCES_AT_A_TIME, len(sentences)))
            counts += np.bincount(torch.cat([sentences[i] for i in some]).numpy(), minlength=len(counts))
    counts[[dictionary.bos(), dictionary.pad(), dictionary.eos()]] = 0
    return counts


def unigram_loss(data: str, split: str = "valid") -> float:
    """Bits a token of a split under the unigram model: what is reached by knowing token counts only.

    Raises:
        UserError: the dictionary or a split is missing.
    """
    dictionary = load_dictionary(Path(data_folders(data)[0]) / DICTIONARY_FILE)
    dictionary.add_symbol("<mask>")
    special = [dictionary.bos(), dictionary.pad(), dictionary.eos()]
    train, held_out = (np.delete(token_counts(data, name, dictionary), special) for name in ("train", split))
    return unigram_bits(train, held_out)
