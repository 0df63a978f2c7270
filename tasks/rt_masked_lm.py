"""The masked-LM pretraining task: fairseq's, with errors that say what to do and a model folder that is complete."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq import utils
from fairseq.data import (
    BaseWrapperDataset,
    Dictionary,
    PrependTokenDataset,
    RightPadDataset,
    SortDataset,
    TokenBlockDataset,
    data_utils,
)
from fairseq.data.shorten_dataset import maybe_shorten_dataset
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE, copy_files
from rt_plugin.text.tokenizer import Tokenizer

from .masking import MaskedDataset, Masker, Side


@dataclass
class RtMaskedLMConfig(MaskedLMConfig):
    """The options of fairseq's masked_lm task."""


logger = logging.getLogger(__name__)


class SplitSentencesDataset(BaseWrapperDataset):
    """Sentences, the longer ones cut into nearly equal parts of at most `max_length` tokens.

    fairseq makes a block of its own of a sentence that is longer than a block, then drops it in training and stops at
    it in validation. Equal parts, because a part of one token would read as the end of a document.

    Args:
        dataset: items are (length,) int64 tensors; `dataset.sizes` holds their lengths.
        max_length: tokens, at least 3.
    """

    def __init__(self, dataset, max_length: int):
        super().__init__(dataset)
        sizes = np.asarray(dataset.sizes, dtype=np.int64)
        parts = np.maximum(1, -(-sizes // max_length))
        self._sentence = np.repeat(np.arange(len(sizes)), parts)
        number = np.arange(len(self._sentence)) - np.repeat(np.cumsum(parts) - parts, parts)
        self._start = number * sizes[self._sentence] // parts[self._sentence]
        self._sizes = (number + 1) * sizes[self._sentence] // parts[self._sentence] - self._start

    def __getitem__(self, index: int) -> torch.Tensor:
        start = self._start[index]
        return self.dataset[int(self._sentence[index])][start : start + self._sizes[index]]

    def __len__(self) -> int:
        return len(self._sentence)

    @property
    def sizes(self) -> np.ndarray:
        return self._sizes

    def num_tokens(self, index: int) -> int:
        return int(self._sizes[index])

    def size(self, index: int) -> int:
        return int(self._sizes[index])


@register_task("rt_masked_lm", dataclass=RtMaskedLMConfig)
class RtMaskedLMTask(MaskedLMTask):
    """Pretraining on text binarised by fairseq-preprocess.

    The data folder (the first one where several are given, joined by colons) holds dict.txt, the binarised splits and,
    where whole words are masked or the model shall be used on new text, the tokenizer (sentencepiece.bpe.model and
    text_normalization.json). All but the splits are copied to --save-dir at the start of training.
    """

    def __init__(self, cfg: RtMaskedLMConfig, dictionary: Dictionary):
        super().__init__(cfg, dictionary)
        self.data_folder = _first_folder(cfg.data)
        tokenizer = self.data_folder / TOKENIZER_FILE
        if tokenizer.is_file():
            Tokenizer.load(self.data_folder).check_dictionary(
                dictionary.symbols, str(self.data_folder / DICTIONARY_FILE)
            )

    @classmethod
    def load_dict(cls, cfg: RtMaskedLMConfig) -> Dictionary:
        folder = _first_folder(cfg.data)
        if not folder.is_dir():
            raise UserError(f"data folder {folder}: no such folder; give the folder that fairseq-preprocess wrote")
        if not (folder / DICTIONARY_FILE).is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
            raise UserError(
                f"data folder {folder}: found {found}, but no {DICTIONARY_FILE}; "
                "give the folder that fairseq-preprocess --only-source wrote"
            )
        return super().load_dict(cfg)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Load a split with its masks.

        Raises:
            UserError: there is no such split, whole words cannot be told without the tokenizer, or an option of
                masking is out of range.
        """
        if self.cfg.mask_whole_words and not (self.data_folder / TOKENIZER_FILE).is_file():
            raise UserError(f"--mask-whole-words needs the tokenizer: put {TOKENIZER_FILE} into {self.data_folder}")
        masker = self._masker()
        blocks = self._load_dataset_split(split, epoch, combine)
        masked = MaskedDataset(blocks, masker)
        targets = RightPadDataset(Side(masked, 1), pad_idx=self.source_dictionary.pad())
        with data_utils.numpy_seed(self.cfg.seed):
            shuffled = np.random.permutation(len(blocks))
        dataset = self._regular_dataset(Side(masked, 0), targets)
        self.datasets[split] = SortDataset(dataset, sort_order=[shuffled, blocks.sizes])

    def _masker(self) -> Masker:
        cfg = self.cfg
        for option in ("skip_masking", "d2v2_multi"):
            if getattr(cfg, option):
                raise UserError(f"--{option.replace('_', '-')} is for data2vec, not for rt_masked_lm; leave it out")
        return Masker(
            self.source_dictionary,
            self.mask_idx,
            seed=cfg.seed,
            mask_prob=cfg.mask_prob,
            leave_unmasked_prob=cfg.leave_unmasked_prob,
            random_token_prob=cfg.random_token_prob,
            freq_weighted_replacement=cfg.freq_weighted_replacement,
            whole_words=cfg.mask_whole_words,
            span_length=cfg.mask_multiple_length,
            span_stdev=cfg.mask_stdev,
        )

    def _load_dataset_split(self, split, epoch, combine):
        """The blocks of a split, `<s>` first, without masks; fairseq's own, but for sentences longer than a block."""
        folders = utils.split_paths(self.cfg.data)
        path = Path(folders[(epoch - 1) % len(folders)]) / split
        sentences = data_utils.load_indexed_dataset(str(path), self.source_dictionary, combine=combine)
        if sentences is None:
            raise UserError(
                f"split {split!r} is missing in {path.parent} (splits there: {_splits(path.parent)}); binarise it with "
                "fairseq-preprocess, or name another with --train-subset or --valid-subset"
            )
        block_length = self.cfg.tokens_per_sample - 1  # one less for <s>
        sentences = maybe_shorten_dataset(
            sentences,
            split,
            self.cfg.shorten_data_split_list,
            self.cfg.shorten_method,
            self.cfg.tokens_per_sample,
            self.cfg.seed,
        )
        if self.cfg.sample_break_mode != "none":
            sentences = SplitSentencesDataset(sentences, block_length)
        blocks = TokenBlockDataset(
            sentences,
            sentences.sizes,
            block_length,
            pad=self.source_dictionary.pad(),
            eos=self.source_dictionary.eos(),
            break_mode=self.cfg.sample_break_mode,
        )
        logger.info("%s: %d blocks of at most %d tokens", path, len(blocks), self.cfg.tokens_per_sample)
        return PrependTokenDataset(blocks, self.source_dictionary.bos())

    def write_model_folder(self, save_dir: str) -> None:
        """Copy dictionary and tokenizer into `save_dir`, so that it can be loaded without the data."""
        names = (DICTIONARY_FILE, TOKENIZER_FILE, NORMALIZATION_FILE)
        copy_files([(self.data_folder / name, name) for name in names], save_dir)


def _splits(folder: Path) -> str:
    return ", ".join(sorted(p.stem for p in folder.glob("*.idx"))) or "none"


def _first_folder(data: str) -> Path:
    return Path(utils.split_paths(data)[0])
