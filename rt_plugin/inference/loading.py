"""Loading a model folder for inference: checkpoint, dictionary, tokenizer. No network."""

from pathlib import Path

from fairseq import hub_utils

from rt_plugin.errors import UserError
from rt_plugin.inference.interface import RecurrentRobertaHubInterface
from rt_plugin.model_folder.checkpoint import find_checkpoint, read_checkpoint
from rt_plugin.model_folder.files import BEST_CHECKPOINT, NORMALIZATION_FILE, TOKENIZER_FILE
from rt_plugin.text.tokenizer import Tokenizer


def from_pretrained(
    model_folder: str,
    checkpoint_file: str = BEST_CHECKPOINT,
    data: str = ".",
    bpe: str = "sentencepiece",
    **overrides,
) -> RecurrentRobertaHubInterface:
    """Load a checkpoint with its dictionary and tokenizer, ready for inference (in eval mode, on the CPU).

    Args:
        model_folder: the `--save-dir` of a training, or a copy of it.
        checkpoint_file: the name of a checkpoint in the folder, default "checkpoint_best.pt", else model.safetensors.
        data: the folder with dict.txt (and label_dict.txt), relative to the model folder; default: the model folder.
        bpe: fairseq's name of the tokenizer, default "sentencepiece": sentencepiece.bpe.model of the model folder or
            of the data folder. Others (such as "gpt2") take their files through `overrides`.
        overrides: values that replace those stored in the checkpoint, by their names.

    Raises:
        UserError: a folder or a file is missing, or tokenizer and dictionary do not belong together.
    """
    folder = Path(model_folder)
    data_folder = folder / data  # an absolute path stays what it is
    for place in (folder, data_folder):
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; give the folder that holds checkpoint, dict.txt and tokenizer")
    path = find_checkpoint(folder, checkpoint_file)
    read_checkpoint(path)  # before a tokenizer that is another one is read
    text = None
    if bpe == "sentencepiece":
        tokenizer_folder = _tokenizer_folder(folder, data_folder)
        text = Tokenizer.load(tokenizer_folder)
        overrides.setdefault("sentencepiece_model", str(tokenizer_folder / TOKENIZER_FILE))
    loaded = hub_utils.from_pretrained(
        str(folder.resolve()),
        path.name,
        str(data_folder.resolve()),
        bpe=bpe,
        load_checkpoint_heads=True,
        **overrides,
    )
    interface = RecurrentRobertaHubInterface(loaded["args"], loaded["task"], loaded["models"][0], text)
    return interface.eval()


def _tokenizer_folder(*folders: Path) -> Path:
    for folder in folders:
        if (folder / TOKENIZER_FILE).is_file():
            return folder
    raise UserError(
        f"{folders[0]}: no {TOKENIZER_FILE} there; copy it (and {NORMALIZATION_FILE}) from the data folder that the "
        "model was trained on, or name another tokenizer with bpe=..."
    )
