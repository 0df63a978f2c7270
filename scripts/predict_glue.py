#!/usr/bin/env python
"""Predictions of fine-tuned models, submissions: `python scripts/predict_glue.py rows MODEL INPUT OUT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.glue.predict import main

if __name__ == "__main__":
    sys.exit(main())
