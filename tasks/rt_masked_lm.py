"""The masked-LM pretraining task: fairseq's, with errors that say what to do and a model folder that is complete."""

import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
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
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from rt_plugin.blocks.ahead import Ahead
from rt_plugin.blocks.batches import BatchIterator, BatchOptions, load_batches, order_by_size
from rt_plugin.blocks.cutting import split_sentences
from rt_plugin.blocks.dataset import FOLDER, BlockDataset, BlockOptions, TokenFiles
from rt_plugin.blocks.verified import check_split
from rt_plugin.errors import UserError
from rt_plugin.model_folder.companions import WithCompanions
from rt_plugin.model_folder.dictionary import load_dictionary
from rt_plugin.model_folder.files import DICTIONARY_FILE, NORMALIZATION_FILE, TOKENIZER_FILE, copy_files, data_folders
from rt_plugin.text.tokenizer import Tokenizer

from .masking import MaskedDataset, Masker, Side

logger = logging.getLogger(__name__)

_COMPANIONS = (DICTIONARY_FILE, TOKENIZER_FILE, NORMALIZATION_FILE)  # of the checkpoints

PACKING_CHOICES = ChoiceEnum(["no", "joined", "separate"])


@dataclass
class RtMaskedLMConfig(MaskedLMConfig):
    """The options of fairseq's masked_lm task, how documents share blocks, and where blocks and batches are kept."""

    pack_documents: PACKING_CHOICES = field(
        default="no",
        metadata={
            "help": "fill every block over the ends of documents, in place of --sample-break-mode; each document "
            "begins with <s>. joined: the tokens of a block see each other; separate: a token sees those of its "
            "document alone, and positions are counted from its start (default: no)"
        },
    )
    reset_recurrence: bool = field(
        default=False,
        metadata={"help": "with --pack-documents: the recurrence begins anew with every document"},
    )
    index_folder: str = field(
        default="",
        metadata={
            "help": "where blocks and batches, worked out once, are kept for the next start and for other processes "
            "(default: the folder `blocks` in each data folder); for data that cannot be written to"
        },
    )
    compile_encoder: bool = field(
        default=False,
        metadata={"help": "torch.compile the encoder, for any length and number of rows; takes a minute at the start"},
    )


class SplitSentencesDataset(BaseWrapperDataset):
    """Sentences, the longer ones cut into nearly equal parts of at most `max_length` tokens (see `split_sentences`).

    fairseq makes a block of its own of a sentence that is longer than a block, then drops it in training and stops at
    it in validation. Memory is needed for the sentences that are cut alone, and for the lengths.

    Args:
        dataset: items are (length,) int64 tensors; `dataset.sizes` holds their lengths.
        max_length: tokens, at least 3.
    """

    def __init__(self, dataset, max_length: int):
        super().__init__(dataset)
        sizes = np.asarray(dataset.sizes)
        self._sizes = split_sentences(sizes, max_length)
        self._cut = np.flatnonzero(sizes > max_length)  # sentences
        added = np.cumsum(-(-sizes[self._cut].astype(np.int64) // max_length) - 1)  # parts, up to each and with it
        self._first = self._cut + np.concatenate([[0], added])[:-1]  # the first part of each
        self._added = added

    def __getitem__(self, index: int) -> torch.Tensor:
        number = int(np.searchsorted(self._first, index, side="right")) - 1  # the last that was cut before, or is
        if number < 0 or index > self._first[number] + self._parts(number) - 1:
            return self.dataset[int(index - (self._added[number] if number >= 0 else 0))]
        first = int(self._first[number])
        start = int(self._sizes[first:index].sum())
        return self.dataset[int(self._cut[number])][start : start + int(self._sizes[index])]

    def _parts(self, number: int) -> int:
        return int(self._added[number] - (self._added[number - 1] if number else 0)) + 1

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def sizes(self) -> np.ndarray:
        return self._sizes

    def num_tokens(self, index: int) -> int:
        return int(self._sizes[index])

    def size(self, index: int) -> int:
        return int(self._sizes[index])


class MaskedSplit(BaseWrapperDataset):
    """What training reads of a split, and the blocks that its batches are made of.

    Args:
        dataset: items as the criterion wants them.
        blocks: their tokens.
        seed: of the order of blocks of one length.
    """

    def __init__(self, dataset, blocks: BlockDataset, seed: int):
        super().__init__(dataset)
        self.blocks = blocks
        self._seed = seed

    def ordered_indices(self) -> np.ndarray:
        return order_by_size(np.asarray(self.blocks.sizes), self._seed)


class DocumentNumbers(BaseWrapperDataset):
    """For each token of a packed block the number of its document, from 1; every document begins with `<s>`.

    Args:
        blocks: items are (length,) int64 tensors.
        bos: the id of `<s>`.
    """

    def __init__(self, blocks, bos: int):
        super().__init__(blocks)
        self._bos = bos

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.dataset[index] == self._bos).cumsum(0)


@register_task("rt_masked_lm", dataclass=RtMaskedLMConfig)
class RtMaskedLMTask(WithCompanions, MaskedLMTask):
    """Pretraining on text binarised by fairseq-preprocess.

    The data folder (the first one where several are given, joined by colons) holds dict.txt, the binarised splits and,
    where whole words are masked or the model shall be used on new text, the tokenizer (sentencepiece.bpe.model and
    text_normalization.json). All but the splits are copied to --save-dir at the start of training.
    """

    def __init__(self, cfg: RtMaskedLMConfig, dictionary: Dictionary):
        super().__init__(cfg, dictionary)
        self._ahead = Ahead()
        self.data_folder = _first_folder(cfg.data)
        self.keep_companions({name: self.data_folder / name for name in _COMPANIONS})
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
        dictionary = load_dictionary(folder / DICTIONARY_FILE)
        logger.info("dictionary: %d symbols", len(dictionary))
        return dictionary

    def build_model(self, cfg, from_checkpoint=False):
        """fairseq's, if the model can do what the options of packing ask of it.

        Raises:
            UserError: it cannot.
        """
        model = super().build_model(cfg, from_checkpoint)
        asked = "--pack-documents separate" if self.cfg.pack_documents == "separate" else "--reset-recurrence"
        if self.cfg.reset_recurrence and not self._packs:
            raise UserError(
                "--reset-recurrence needs --pack-documents joined or separate: else a block is one document"
            )
        if self._document_inputs() and not getattr(model, "separates_documents", False):
            raise UserError(f"{asked} needs a recurrent_roberta: {type(model).__name__} cannot tell documents apart")
        if self.cfg.compile_encoder and not from_checkpoint:
            model.encoder.sentence_encoder.compile(dynamic=True)  # in place: names in checkpoints stay
        return model

    def _document_inputs(self) -> list[str]:
        """What the model is given the documents' numbers for."""
        attention = ["attention_documents"] if self.cfg.pack_documents == "separate" else []
        return attention + (["recurrence_documents"] if self.cfg.reset_recurrence else [])

    def _regular_dataset(self, src_dataset, target_dataset):
        dataset = super()._regular_dataset(src_dataset, target_dataset)
        for name in self._document_inputs():
            numbers = DocumentNumbers(src_dataset, self.source_dictionary.bos())
            dataset.defn[f"net_input.{name}"] = RightPadDataset(numbers, pad_idx=0)
        return dataset

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
        dataset = self._regular_dataset(Side(masked, 0), targets)
        if isinstance(blocks, BlockDataset):
            self.datasets[split] = MaskedSplit(dataset, blocks, self.cfg.seed)
            return
        with data_utils.numpy_seed(self.cfg.seed):
            shuffled = np.random.permutation(len(blocks))
        self.datasets[split] = SortDataset(dataset, sort_order=[shuffled, blocks.sizes])

    def get_batch_iterator(
        self,
        dataset,
        max_tokens=None,
        max_sentences=None,
        max_positions=None,
        ignore_invalid_inputs=False,
        required_batch_size_multiple=1,
        seed=1,
        num_shards=1,
        shard_id=0,
        num_workers=0,
        epoch=1,
        data_buffer_size=0,
        disable_iterator_cache=False,
        skip_remainder_batch=False,
        grouped_shuffling=False,
        update_epoch_batch_itr=False,
    ):
        """fairseq's, from batches that are kept on disk where the data allow it; the arguments are fairseq's.

        Workers begin anew with every epoch: those that fairseq keeps would go on with the masks of the first one.
        """
        limits = (max_tokens, max_sentences, max_positions, ignore_invalid_inputs, required_batch_size_multiple)
        order = {
            "seed": seed,
            "num_shards": num_shards,
            "shard_id": shard_id,
            "num_workers": num_workers,
            "epoch": epoch,
            "skip_remainder_batch": skip_remainder_batch,
            "grouped_shuffling": grouped_shuffling,
        }
        kept = not disable_iterator_cache and not update_epoch_batch_itr and self.can_reuse_epoch_itr(dataset)
        if kept and dataset in self.dataset_to_epoch_iter:
            return self.dataset_to_epoch_iter[dataset]
        if isinstance(dataset, MaskedSplit):
            # fairseq asks for an iterator that is not kept where it trains
            ahead = disable_iterator_cache
            iterator = self._iterator_of_stored(dataset, limits, data_buffer_size, ahead, order)
        else:
            iterator = super().get_batch_iterator(
                dataset, *limits, data_buffer_size=data_buffer_size, disable_iterator_cache=not kept, **order
            )
            iterator.reuse_dataloader = iterator.persistent_workers = False
        if kept:
            self.dataset_to_epoch_iter[dataset] = iterator
        return iterator

    def post_validate(self, model, stats: dict, agg) -> None:
        """Called by fairseq-train after every validation, before its loss is compared with the best.

        Raises:
            UserError: there is no loss, since no token was masked.
        """
        if "loss" in agg and not agg["loss"].count:
            raise UserError(
                "no token of the validation text is masked, so it has no loss; give a longer text as --valid-subset, "
                f"raise --mask-prob ({self.cfg.mask_prob:g}), or leave validation out with --disable-validation"
            )

    def _iterator_of_stored(
        self, dataset: MaskedSplit, limits: tuple, buffer_size: int, ahead: bool, order: dict
    ) -> BatchIterator:
        """From batches that are kept on disk.

        Args:
            limits: max_tokens, max_sentences, max_positions, ignore_invalid_inputs, required_batch_size_multiple.
            ahead: work out the batches of the next shard in the background.
            order: the other options of fairseq's iterator.
        """
        max_tokens, max_sentences, max_positions, skip_too_long, multiple = limits
        options = BatchOptions(self.cfg.seed, max_tokens, max_sentences, multiple, max_positions, skip_too_long)
        dataset.set_epoch(order["epoch"])
        batches = load_batches(dataset.blocks, options)
        if left_out := len(dataset) - batches.blocks:
            logger.warning("%d of %d blocks are left out: longer than %s", left_out, len(dataset), max_positions)
        if ahead and self.has_sharded_data(dataset.blocks.name):
            following = self._prefix(dataset.blocks.name, order["epoch"] + 1)
            self._ahead.prepare(following, self._index_folder(following.parent), self._block_options(), options)
        workers = {"reuse_dataloader": False, "persistent_workers": False}
        return BatchIterator(dataset, dataset.collater, batches, buffer_size=buffer_size, **workers, **order)

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
        path = self._prefix(split, epoch)
        check_split(path, self._index_folder(path.parent))
        alone = not (combine and path.with_name(f"{split}1.idx").exists())
        if alone and self.cfg.shorten_method == "none" and TokenFiles.are_there(path):
            blocks = BlockDataset(
                path,
                self._block_options(),
                self._index_folder(path.parent),
                self.source_dictionary.bos(),
                self.source_dictionary.eos(),
                mark_documents=self._packs,
            )
            mask_is_added = self.mask_idx == len(self.source_dictionary) - 1  # and is in no data
            blocks.files.check_ids(len(self.source_dictionary) - mask_is_added)
        elif self._packs:
            raise UserError(
                f"--pack-documents {self.cfg.pack_documents}: {path} has to be one file of fairseq-preprocess's "
                "default format (mmap), and --shorten-method cannot be used with it"
            )
        else:
            blocks = self._blocks_of_sentences(path, combine)
        logger.info("%s: %d blocks of at most %d tokens", path, len(blocks), self.cfg.tokens_per_sample)
        return blocks

    def _prefix(self, split: str, epoch: int) -> Path:
        """The files of a split in the folder that this epoch reads, without their endings."""
        folders = data_folders(self.cfg.data)
        return Path(folders[(epoch - 1) % len(folders)]) / split

    def _block_options(self) -> BlockOptions:
        mode = "none" if self._packs else str(self.cfg.sample_break_mode)
        return BlockOptions(self.cfg.tokens_per_sample - 1, mode)  # one less for <s>

    @property
    def _packs(self) -> bool:
        return self.cfg.pack_documents != "no"

    def _index_folder(self, data: Path) -> Path:
        """Where blocks and batches of a data folder are kept."""
        if not self.cfg.index_folder:
            return data / FOLDER
        path = os.path.abspath(data)  # every shard has a split of that name
        return Path(self.cfg.index_folder) / f"{data.name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"

    def _blocks_of_sentences(self, path: Path, combine: bool):
        """The blocks where they are not runs of tokens of one file: by fairseq, in the memory of every process."""
        sentences = data_utils.load_indexed_dataset(str(path), self.source_dictionary, combine=combine)
        if sentences is None:
            raise UserError(
                f"split {path.name!r} is missing in {path.parent} (splits there: {_splits(path.parent)}); binarise it "
                "with fairseq-preprocess, or name another with --train-subset or --valid-subset"
            )
        block_length = self.cfg.tokens_per_sample - 1  # one less for <s>
        sentences = maybe_shorten_dataset(
            sentences,
            path.name,
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
        return PrependTokenDataset(blocks, self.source_dictionary.bos())

    def write_model_folder(self, save_dir: str) -> None:
        """Copy dictionary and tokenizer into `save_dir`, so that it can be loaded without the data."""
        copy_files([(self.data_folder / name, name) for name in _COMPANIONS], save_dir)


def _splits(folder: Path) -> str:
    return ", ".join(sorted(p.stem for p in folder.glob("*.idx"))) or "none"


def _first_folder(data: str) -> Path:
    return Path(data_folders(data)[0])
