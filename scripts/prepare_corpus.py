#!/usr/bin/env python
"""Prepare raw text for pretraining: `python scripts/prepare_corpus.py TEXT... --out FOLDER --vocab-size N`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.corpus.prepare import main

if __name__ == "__main__":
    sys.exit(main())
