"""Which backends of the recurrence are there, why one is not, and how to get it; and what fairseq's --user-dir takes.

fairseq-train DATA --user-dir "$(rt-plugin backends --user-dir)" ...
"""

import argparse
import platform
from collections.abc import Sequence

from rt_plugin._location import USER_DIR
from rt_plugin._version import __version__
from rt_plugin.console import commands, requirements


def describe_backends() -> str:
    """One line on the versions, one per device type."""
    import torch

    from rt_plugin import ops

    lines = [
        f"rt_plugin {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
    ]
    for device_type, reason in ops.native_backends().items():
        if reason:
            lines.append(f"{device_type:<5} plain PyTorch: {reason}")
        else:
            lines.append(f"{device_type:<5} compiled op ({_details(device_type)})")
    return "\n".join(lines)


def describe_fairseq() -> str:
    """Two lines: the fairseq that is there, or how to install it, and the path that its commands take.

    fairseq is not imported for it.
    """
    version = requirements.fairseq_version()
    if version is None:
        line = f"fairseq is not installed; run: {requirements.INSTALL['fairseq']}"
    else:
        expected = requirements.FAIRSEQ_VERSION
        line = f"fairseq {version}" + ("" if version == expected else f"; the plugin is written for {expected}")
    return f"{line}\n--user-dir {USER_DIR}"


def _details(device_type: str) -> str:
    import torch

    from rt_plugin import ops

    if device_type == "cpu":
        return f"instructions: {ops.cpu_capability()}"
    if not torch.cuda.is_available():
        return "torch sees no device at present"
    return torch.cuda.get_device_name()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = commands.parser("backends", __doc__)
    parser.add_argument(
        "--require", choices=("cpu", "cuda"), action="append", default=[], help="exit with 1 where this one is missing"
    )
    parser.add_argument("--user-dir", action="store_true", help="print the path for fairseq's --user-dir, nothing else")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    if args.user_dir:
        print(USER_DIR)
        return 0
    from rt_plugin import ops

    print(describe_backends())
    print(describe_fairseq())
    return int(any(ops.native_backends()[device_type] for device_type in args.require))
