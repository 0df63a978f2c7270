"""The help of GLUE's verbs comes at once."""

import subprocess
import sys

import pytest

from conftest import REPOSITORY


@pytest.mark.parametrize("verb", ["prepare", "finetune", "report", "predict"])
def test_help_loads_neither_fairseq_nor_torch(verb):
    code = (
        f"import sys\nfrom rt_plugin.glue.{verb} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print(*{'fairseq', 'torch', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith(f"usage: rt-plugin {verb}-glue ") and result.stderr == "\n"
