"""Whether the files of a split are those that were written: read once, and remembered for as long as they stay."""

from pathlib import Path

import numpy as np

from rt_plugin.blocks.stored import Arrays, stored_arrays
from rt_plugin.console.checksums import check_digest, read_checksums, stamp
from rt_plugin.console.processes import is_first_of_machine


def check_split(prefix: Path, folder: Path) -> None:
    """Compare a split's files with the list of their folder, where that names them.

    They are read through once: what is remembered, in `folder`, holds as long as length, times and inode stay. Of
    several processes on a machine the first one does it.

    Args:
        prefix: the split's files, without the ending.
        folder: where it is remembered; see `stored_arrays`.

    Raises:
        UserError: a file is damaged, or another.
    """
    listed = read_checksums(prefix.parent)
    paths = [prefix.with_name(f"{prefix.name}.{ending}") for ending in ("idx", "bin")]
    expected = {path.name: listed[path.name] for path in paths if path.name in listed}
    if not expected or not is_first_of_machine():
        return

    def compare() -> Arrays:
        for name, digest in expected.items():
            check_digest(prefix.with_name(name), digest)
        return {"as listed": np.ones(len(expected), bool)}

    stamps = [stamp(prefix.with_name(name)) for name in expected if prefix.with_name(name).is_file()]
    stored_arrays(folder, f"{prefix.name}.checksums", {"data": stamps, "sha256": expected}, compare)
