#!/usr/bin/env python
"""Fine-tune a model on all of GLUE: `python scripts/finetune_glue.py DATA OUT --model FOLDER`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.glue.finetune import main

if __name__ == "__main__":
    sys.exit(main())
