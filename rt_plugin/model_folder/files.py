"""A model folder, the unit that people pass around: checkpoints with all that is needed to use them on new text.

checkpoint*.pt                 written by fairseq
dict.txt                       the dictionary
label_dict.txt                 class names in order, for a fine-tuned classifier
glue.json                      the task that it was fine-tuned on
sentencepiece.bpe.model        the tokenizer, under the name that fairseq's hub_utils looks for
text_normalization.json        what is done to text before the tokenizer
model.safetensors, rt_plugin.json   instead of a checkpoint: the same without pickle, see `safetensors`
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from rt_plugin.console.files import replacing

BEST_CHECKPOINT = "checkpoint_best.pt"
SAFETENSORS_FILE = "model.safetensors"
CONFIGURATION_FILE = "rt_plugin.json"
LAST_CHECKPOINT = "checkpoint_last.pt"
DICTIONARY_FILE = "dict.txt"
LABEL_DICTIONARY_FILE = "label_dict.txt"
TOKENIZER_FILE = "sentencepiece.bpe.model"
NORMALIZATION_FILE = "text_normalization.json"
GLUE_FILE = "glue.json"
BESIDE_CHECKPOINTS = (DICTIONARY_FILE, LABEL_DICTIONARY_FILE, TOKENIZER_FILE, NORMALIZATION_FILE, GLUE_FILE)


def data_folders(data: str) -> list[str]:
    """The folders that `data` names, joined by colons; one whose own path holds a colon is one, if it is there."""
    return [data] if os.path.isdir(data) else data.split(os.pathsep)


def copy_files(
    pairs: Iterable[tuple[str | os.PathLike, str]], save_dir: str | os.PathLike, remove: bool = False
) -> None:
    """Copy (source, name in the folder) pairs into `save_dir`. Each file appears whole or not at all.

    Args:
        remove: a source that does not exist takes its file in the folder away, which is another model's; default: it is
            passed over, and a file that was put there stays.

    Raises:
        OSError: a file cannot be read, written or removed.
    """
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in pairs:
        target = folder / name
        if not Path(source).is_file():
            if remove:
                target.unlink(missing_ok=True)
            continue
        if target.exists() and os.path.samefile(source, target):
            continue
        with open(source, "rb") as original, replacing(target) as copy:
            shutil.copyfileobj(original, copy)
