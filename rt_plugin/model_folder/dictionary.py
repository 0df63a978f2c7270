"""Reading fairseq dictionaries, with errors that say what to do."""

from pathlib import Path

from fairseq.data import Dictionary

from rt_plugin.errors import UserError


def load_dictionary(path: Path) -> Dictionary:
    """Read a fairseq dictionary.

    Raises:
        UserError: the file is missing or malformed.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the dictionary that was made with the tokenizer")
    try:
        return Dictionary.load(str(path))
    except Exception as error:  # fairseq raises a bare Exception for a wrong encoding
        raise UserError(f"{path}: not a fairseq dictionary ({error}); expected '<symbol> <count>' lines") from None
