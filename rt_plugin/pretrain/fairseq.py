"""One of fairseq's own commands, with the plugin imported before fairseq: `rt-plugin fairseq train` is fairseq-train.

From Python 3.14 on fairseq cannot be imported otherwise: its own commands end in `TypeError: ... is not callable`.
The options are those of fairseq's command; --user-dir can be left out.
"""

import importlib
import sys
from collections.abc import Sequence

from rt_plugin.console import commands, requirements

COMMANDS = ("train", "validate", "preprocess", "eval-lm", "generate", "interactive", "score", "hydra-train")


def command_line(name: str) -> list[str]:
    """How to start `fairseq-NAME` with this Python: its own program, where that can import fairseq."""
    if sys.version_info < (3, 14):
        return [f"fairseq-{name}"]
    return [sys.executable, "-m", "rt_plugin", "fairseq", name]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    name, *options = list(sys.argv[1:] if argv is None else argv) or [""]
    parser = commands.parser("fairseq", __doc__, usage="%(prog)s COMMAND [options of fairseq-COMMAND]")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=f"one of {', '.join(COMMANDS)}")
    parser.parse_args([name] if name else [])
    status = commands.run("fairseq", lambda: requirements.require("fairseq"))
    if status == 0:
        sys.argv = [f"fairseq-{name}", *options]  # before the import: how errors are shown depends on it
        importlib.import_module(f"fairseq_cli.{name.replace('-', '_')}").cli_main()
    return status
