#!/usr/bin/env python
"""Tables and plots of fine-tuning sweeps: `python scripts/report_glue.py CSV...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # an uninstalled checkout works, too

from rt_plugin.glue.report import main

if __name__ == "__main__":
    sys.exit(main())
