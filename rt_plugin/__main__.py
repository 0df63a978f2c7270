"""`python -m rt_plugin`: which backends of the recurrence are there, why one is not, and how to get it."""

import argparse
import platform

import torch

from . import __version__, ops


def describe_backends() -> str:
    """One line on the versions, one per device type."""
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
    if device_type == "cpu":
        return f"instructions: {ops.cpu_capability()}"
    if not torch.cuda.is_available():
        return "torch sees no device at present"
    return torch.cuda.get_device_name()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rt_plugin", description=__doc__)
    parser.add_argument(
        "--require", choices=("cpu", "cuda"), action="append", default=[], help="exit with 1 where this one is missing"
    )
    required = parser.parse_args().require
    print(describe_backends())
    return int(any(ops.native_backends()[device_type] for device_type in required))


if __name__ == "__main__":
    raise SystemExit(main())
