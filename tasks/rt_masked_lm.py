"""The masked-LM pretraining task: fairseq's, with errors that say what to do and a model folder that is complete."""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

from fairseq import utils
from fairseq.data import Dictionary
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

from rt_plugin.errors import UserError
from rt_plugin.model_folder import DICTIONARY_FILE, copy_files
from rt_plugin.text import NORMALIZATION_FILE, TOKENIZER_FILE, TextEncoder

logger = logging.getLogger(__name__)


@dataclass
class RtMaskedLMConfig(MaskedLMConfig):
    """The options of fairseq's masked_lm task."""


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
            TextEncoder.load(self.data_folder).check_dictionary(
                dictionary.symbols, str(self.data_folder / DICTIONARY_FILE)
            )
        # where fairseq's whole-word masking looks for the tokenizer
        self.args = argparse.Namespace(
            bpe="sentencepiece",
            sentencepiece_model=str(tokenizer),
            sentencepiece_enable_sampling=False,
            sentencepiece_alpha=None,
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
            UserError: there is no such split, or whole words cannot be told without the tokenizer.
        """
        if self.cfg.mask_whole_words and not (self.data_folder / TOKENIZER_FILE).is_file():
            raise UserError(f"--mask-whole-words needs the tokenizer: put {TOKENIZER_FILE} into {self.data_folder}")
        try:
            super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        except FileNotFoundError as error:
            splits = ", ".join(sorted(p.stem for p in self.data_folder.glob("*.idx"))) or "none"
            raise UserError(
                f"split {split!r} is missing in {self.cfg.data} (splits in {self.data_folder}: {splits}); "
                "binarise it with fairseq-preprocess, or name another with --train-subset or --valid-subset"
            ) from error

    def write_model_folder(self, save_dir: str) -> None:
        """Copy dictionary and tokenizer into `save_dir`, so that it can be loaded without the data."""
        names = (DICTIONARY_FILE, TOKENIZER_FILE, NORMALIZATION_FILE)
        copy_files([(self.data_folder / name, name) for name in names], save_dir)


def _first_folder(data: str) -> Path:
    return Path(utils.split_paths(data)[0])
