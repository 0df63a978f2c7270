"""What the scripts of a checkout share: how they read their options. Needs nothing that is installed."""

import argparse
import runpy
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser that prints its description as it stands, and knows `--version`, the one of this checkout."""
    made = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    version = runpy.run_path(str(REPOSITORY / "rt_plugin" / "_version.py"))["__version__"]
    made.add_argument("--version", action="version", version=f"rt-plugin {version}")
    return made
