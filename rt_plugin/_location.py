"""Where the package lies, which is also what fairseq's `--user-dir` takes."""

from pathlib import Path

USER_DIR = Path(__file__).parent
