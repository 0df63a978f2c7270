#!/usr/bin/env python
"""Pretrain with a recipe: `python scripts/pretrain.py DATA --recipe mini --save-dir FOLDER`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.pretrain.launch import main

if __name__ == "__main__":
    sys.exit(main())
