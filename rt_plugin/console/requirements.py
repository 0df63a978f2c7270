"""Packages that not all of the work needs, and for each the command that installs it."""

import importlib.util
import re
from pathlib import Path

from rt_plugin.errors import UserError

FAIRSEQ_VERSION = "0.12.3.1"  # of the distribution fairseq-fixed; pyproject.toml and scripts/setup.sh name it, too
# what is imported -> what installs it
INSTALL = {
    # what an installation of this package brings, and a checkout alone does not
    "torch": "pip install torch",
    "numpy": "pip install 'numpy>=2'",
    **{name: f"pip install {name}" for name in ("sentencepiece", "sacremoses", "tqdm", "tabulate")},
    # built in isolation it would bring a torch of its own (docs/install.md)
    "fairseq": "pip install 'numpy>=2' 'setuptools>=77' wheel cython && "
    f"pip install --no-build-isolation fairseq-fixed=={FAIRSEQ_VERSION}",
    "sklearn": "pip install scikit-learn",
    "scipy": "pip install scipy",
    "matplotlib": "pip install matplotlib",
    "safetensors": "pip install safetensors",
    "transformers": "pip install transformers",
    "onnx": "pip install onnx",
    "onnxscript": "pip install onnxscript",
    "onnxruntime": "pip install onnxruntime",
}


def missing(package: str) -> str:
    """What to tell where `package`, one of `INSTALL`, is not there."""
    return f"{package} is not installed, which this needs; run: {INSTALL[package]}"


def require(package: str) -> None:
    """Look whether one of `INSTALL` is there, for programs that only start others which import it.

    Raises:
        UserError: it is not.
    """
    if _folder(package) is None:
        raise UserError(missing(package))


def fairseq_version() -> str | None:
    """The version of the fairseq that an import would find, without importing it; None where there is none."""
    folder = _folder("fairseq")
    if folder is None:
        return None
    for name in ("version.py", "version.txt"):  # as fairseq itself looks for it
        if (folder / name).is_file():
            found = re.search(r"\d[\w.+-]*", (folder / name).read_text(encoding="utf-8"))
            return found[0] if found else "of an unknown version"
    return "of an unknown version"


def _folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ModuleNotFoundError, ValueError):  # hidden, or put into sys.modules by hand
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
