"""Which backends of the recurrence are there, why one is not, and how to get it."""

import argparse
import platform
from collections.abc import Sequence

from rt_plugin._version import __version__
from rt_plugin.console import commands


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
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(argv)
    from rt_plugin import ops

    print(describe_backends())
    return int(any(ops.native_backends()[device_type] for device_type in args.require))
