"""The files that a checkpoint needs beside it, and their SHA-256, which a training writes into it.

Token ids mean what dictionary, tokenizer and normalisation make of them: with others, weights that fit compute
nonsense. A checkpoint keeps the checksums in its `task_state`; one that has none is compared with the list of its
folder (`rt_plugin.console.checksums`), and where there is none either, a warning says so, once.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from rt_plugin.console.checksums import CHECKSUMS_FILE, check_listed, digest, read_checksums, shown
from rt_plugin.console.processes import is_first_of_machine
from rt_plugin.errors import UserError
from rt_plugin.model_folder.files import (
    BESIDE_CHECKPOINTS,
    DICTIONARY_FILE,
    LABEL_DICTIONARY_FILE,
    NORMALIZATION_FILE,
    TOKENIZER_FILE,
)

logger = logging.getLogger(__name__)

STATE = "sha256"  # in a checkpoint's task_state: name -> SHA-256, or None for what was not there
_DICTIONARIES = (DICTIONARY_FILE, LABEL_DICTIONARY_FILE)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_warned = False

Digests = Mapping[str, str | None]


def digests(files: Mapping[str, Path]) -> dict[str, str | None]:
    """The SHA-256 of files, by their names in a model folder; None for what is not there.

    Of dictionaries, it is that of the symbols in their order, one a line: their counts do not matter. A normalisation
    that says "none" counts as not there: it does what the absence of the file does.

    Raises:
        UserError: the list of a file's folder has another checksum for it.
    """
    for path in files.values():
        check_listed(path.parent, [path.name])
    return {name: _digest(name, path) for name, path in files.items()}


def _digest(name: str, path: Path) -> str | None:
    if not path.is_file() or (name == NORMALIZATION_FILE and _says_none(path)):
        return None
    return _digest_of_symbols(path) if name in _DICTIONARIES else digest(path)


def _digest_of_symbols(path: Path) -> str:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return hashlib.sha256(b"".join(line.rsplit(b" ", 1)[0] + b"\n" for line in lines)).hexdigest()


def _says_none(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["normalization"] == "none"
    except (OSError, ValueError, KeyError, TypeError):
        return False  # reading it will say more


def stored_digests(checkpoint: dict, path: str | Path) -> Digests | None:
    """What a checkpoint keeps of the files that it was trained with; None where it keeps nothing.

    Raises:
        UserError: that is no table of checksums.
    """
    state = {} if checkpoint.get("task_state") is None else checkpoint["task_state"]
    stored = state.get(STATE, {}) if isinstance(state, dict) else None
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and (value is None or (isinstance(value, str) and _DIGEST.fullmatch(value)))
        for name, value in stored.items()
    ):
        raise UserError(f"{path}: its checksums of other files are none; expected a name and a SHA-256 each")
    return stored or None


def listed_digests(folder: Path) -> Digests | None:
    """`digests` of the files that a checkpoint needs, as far as the list of its folder names them; None where it does
    not.

    Raises:
        UserError: one is not what the list says.
    """
    listed = read_checksums(folder)
    return digests({name: folder / name for name in BESIDE_CHECKPOINTS if name in listed}) or None


def check_beside(checkpoint: dict, path: Path) -> None:
    """Compare the files in a checkpoint's folder, if they are there, with what it was trained with.

    Raises:
        UserError: one is another, or the normalisation is missing.
    """
    files = {name: path.parent / name for name in BESIDE_CHECKPOINTS}
    stored, found = stored_digests(checkpoint, path), digests(files)
    if stored is not None:
        refuse_others(stored, found, files, str(path))
    elif listed_digests(path.parent) is None:
        _warn(path)


def refuse_others(stored: Digests, found: Digests, files: Mapping[str, Path], checkpoint: str) -> None:
    """Refuse files that are not those that a checkpoint was trained with.

    What either side does not have cannot be compared, but for the normalisation, which is missed.

    Args:
        stored: by the checkpoint.
        found: of `files`.
        checkpoint: its name in the error.

    Raises:
        UserError: one is another, or the normalisation is missing.
    """
    for name in (*_DICTIONARIES, TOKENIZER_FILE):
        expected, there = stored.get(name), found.get(name)
        if None not in (expected, there) and expected != there:
            what = "of its symbols " if name in _DICTIONARIES else ""
            raise UserError(
                f"{files[name]}: SHA-256 {what}is {shown(there)}, expected {shown(expected)}: it is not the file that "
                f"{checkpoint} was trained with; put that one back"
            )
    if None in (stored.get(TOKENIZER_FILE), found.get(TOKENIZER_FILE)):
        return
    expected, there, path = stored.get(NORMALIZATION_FILE), found.get(NORMALIZATION_FILE), files[NORMALIZATION_FILE]
    if expected == there:
        return
    if expected is None:
        raise UserError(f"{path}: {checkpoint} was trained without a normalisation of text; remove the file")
    what = f"SHA-256 is {shown(digest(path))}" if path.is_file() else "no such file"
    raise UserError(
        f"{path}: {what}, expected {shown(expected)}: {checkpoint} was trained with that normalisation of text; "
        "put that file back"
    )


def _warn(path: Path) -> None:
    """Say, once, that nothing can be compared: in the first process of a machine."""
    global _warned
    if _warned or not is_first_of_machine():
        return
    _warned = True
    logger.warning(
        "%s has no checksums of the dictionary and the tokenizer (it is fairseq's own, or older than they are), so "
        "others are not noticed; to list those of a folder that is known to be right: sha256sum * > %s",
        *(path, CHECKSUMS_FILE),
    )


class WithCompanions:
    """Of a fairseq task whose checkpoints keep the checksums of the files that it reads."""

    def keep_companions(self, files: Mapping[str, Path]) -> None:
        """Take the checksums of the task's files, by their names in a model folder; when the task is set up.

        Raises:
            UserError: the list of a file's folder has another checksum for it.
        """
        self._companions, self._digests = files, digests(files)

    def refuse_other_companions(self, stored: Digests | None, checkpoint: str, labels: bool = True) -> None:
        """Refuse a checkpoint that was trained with other files.

        Args:
            labels: those of the classes, too; a fine-tuning has its own.

        Raises:
            UserError: see `refuse_others`.
        """
        found = {name: value for name, value in self._digests.items() if labels or name != LABEL_DICTIONARY_FILE}
        if stored is not None:
            refuse_others(stored, found, self._companions, checkpoint)

    def state_dict(self) -> dict:
        """fairseq's, which goes into checkpoints, with the checksums."""
        return {**super().state_dict(), STATE: dict(self._digests)}

    def load_state_dict(self, state_dict: dict) -> None:
        """fairseq's, of a checkpoint that is loaded for inference or validation.

        Raises:
            UserError: the checkpoint was trained with other files than those of the task's folder.
        """
        stored = stored_digests({"task_state": state_dict}, "the checkpoint")
        self.refuse_other_companions(stored, "the checkpoint")
        super().load_state_dict(state_dict)
