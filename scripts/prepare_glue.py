#!/usr/bin/env python
"""Prepare GLUE and SuperGLUE data for fine-tuning: `python scripts/prepare_glue.py GLUE_DIR OUT --model DIR`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.glue.prepare import main

if __name__ == "__main__":
    sys.exit(main())
