"""Which version of the code a training is of."""

import re
import subprocess
from pathlib import Path

from rt_plugin._location import USER_DIR
from rt_plugin._version import __version__

_BRANCH, _COMMIT, _DIGITS = re.compile(r"ref: (refs/heads/[\w./-]+)"), re.compile(r"[0-9a-f]{40,64}"), 7


def revision(package: Path = USER_DIR) -> str:
    """The commit of the checkout that holds a package folder, or the version where it is none.

    git runs in the checkout of this package alone: a checkout's settings name programs that git starts, and the name of
    any other one is what a training's folder says, which somebody else may have made.
    """
    if package.resolve() != USER_DIR.resolve():
        return _head_of(package.parent) or __version__
    if not (package.parent / ".git").exists():  # installed, maybe below somebody else's checkout
        return __version__
    command = ("git", "-C", str(package.parent), "describe", "--always", "--dirty", "--exclude", "*")
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return said.stdout.strip() or __version__


def _head_of(checkout: Path) -> str | None:
    """The beginning of the commit that a checkout stands at, read without git; None where its files do not say."""
    git = checkout / ".git"
    try:
        word = (git / "HEAD").read_text(encoding="ascii").strip()
        name = _BRANCH.fullmatch(word)
        if name and (git / name[1]).is_file():
            word = (git / name[1]).read_text(encoding="ascii").strip()
        elif name:
            packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
            word = next((line.split()[0] for line in packed if line.endswith(f" {name[1]}")), "")
    except (OSError, ValueError):
        return None
    return word[:_DIGITS] if _COMMIT.fullmatch(word) else None
