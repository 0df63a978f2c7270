"""What is done to text before the tokenizer, and the file that keeps it beside the tokenizer.

Data preparation, fine-tuning and the hub then treat text alike. Imports the standard library only; sacremoses is loaded
when a first text needs it.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

from rt_plugin.errors import UserError

NORMALIZATIONS = ("none", "moses", "moses-tokenize")
_VERSION = 1
_FURTHER_LANGUAGES = ("ja", "ko", "cjk")  # of which Moses has other rules than for abbreviations


class TextNormalizer:
    """Brings text into the form that the tokenizer was trained on.

    Every choice turns each run of white space, line separators such as U+2028 and U+0085 included, into one space:
    fairseq splits an encoded line at any of these characters, so no piece may hold one. Half a surrogate pair, which
    JSON can hold and UTF-8 cannot, becomes a question mark.

    Args:
        choice: "none" (white space only), "moses" (Moses punctuation normalisation) or "moses-tokenize" (that, then
            the Moses tokenizer without HTML escapes and without splitting at dashes).
        language: two-letter code, default "en"; Moses' rules depend on it.

    Raises:
        UserError: the choice is unknown.
    """

    def __init__(self, choice: str = "none", language: str = "en"):
        if choice not in NORMALIZATIONS:
            raise UserError(f"text normalisation is {choice!r}, expected one of {', '.join(NORMALIZATIONS)}")
        self.choice = choice
        self.language = language

    def tell_of_missing_rules(self, report: Callable[[str], None]) -> None:
        """Report where Moses has no rules for the language, and goes on with those of English."""
        if self.choice == "none":
            return
        from sacremoses.corpus import NonbreakingPrefixes

        known = {*NonbreakingPrefixes().available_langs.values(), *_FURTHER_LANGUAGES}
        if self.language not in known:
            report(
                f"--language {self.language}: Moses has no rules for it, and takes those of English; it has some for "
                f"{', '.join(sorted(known))}"
            )

    def normalize(self, text: str) -> str:
        """The text as the tokenizer shall see it, on one line."""
        # before Moses, which would join the words around some of these characters
        text = " ".join(_encodable(text).split())
        if self.choice != "none":
            text = self._punctuation.normalize(text)
        if self.choice == "moses-tokenize":
            text = self._tokenizer.tokenize(text, aggressive_dash_splits=False, escape=False, return_str=True)
        return " ".join(text.split())

    def restore(self, text: str) -> str:
        """Text for people from normalised text; what punctuation normalisation changed stays changed."""
        if self.choice == "moses-tokenize":
            return self._detokenizer.detokenize(text.split(), unescape=False)
        return text

    @functools.cached_property
    def _punctuation(self):
        import sacremoses

        return sacremoses.MosesPunctNormalizer(lang=self.language)

    @functools.cached_property
    def _tokenizer(self):
        import sacremoses

        return sacremoses.MosesTokenizer(lang=self.language)

    @functools.cached_property
    def _detokenizer(self):
        import sacremoses

        return sacremoses.MosesDetokenizer(lang=self.language)

    def to_json(self) -> str:
        """What `text_normalization.json` holds."""
        settings = {"version": _VERSION, "normalization": self.choice, "language": self.language}
        return json.dumps(settings, indent=2) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TextNormalizer":
        """Read `text_normalization.json`; a file that is not there means "none" (a tokenizer from elsewhere)."""
        path = Path(path)
        if not path.exists():
            return cls()
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            version, choice, language = (settings[key] for key in ("version", "normalization", "language"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a text normalisation file ({error}); expected JSON with version, normalization and "
                "language; copy the file that lies beside the tokenizer's original"
            ) from None
        if version != _VERSION:
            raise UserError(
                f"{path}: version {version!r}, expected {_VERSION}; use the version of rt-plugin that wrote the file"
            )
        try:
            return cls(choice, language)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
