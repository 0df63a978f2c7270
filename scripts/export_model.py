#!/usr/bin/env python
"""Pass a trained model on: `python scripts/export_model.py SAVE_DIR OUT`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.model_folder.export import main

if __name__ == "__main__":
    sys.exit(main())
