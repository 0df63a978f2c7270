"""The file of a checkpoint: its format, checksums and sizes are checked, then plain data are read, and nothing else.

torch writes a zip archive, whose checksums (CRC-32) it does not look at when it reads. Its format of before 1.6 has
none. A file of safetensors is read with the configuration beside it.
"""

import functools
import mmap
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import torch

from rt_plugin.console.processes import is_first_of_machine
from rt_plugin.errors import UserError
from rt_plugin.model_folder import safetensors

_ZIP = b"PK\x03\x04"
_BLOCK = 1 << 24  # bytes whose checksum is taken at a time
_MOST_RECORDS = 1 << 20
_MOST_PICKLED = 1 << 28  # bytes of what is not weights; 1 MB is usual


def load(path: Path, mapped: bool) -> object:
    """What a file holds; weights on the CPU.

    Args:
        mapped: map the file where its format can be.

    Raises:
        UserError: it is cut off, damaged, no file of torch's, or holds more than weights and plain data.
    """
    if safetensors.is_safetensors(path):
        return safetensors.read(path)
    size = os.path.getsize(path)
    try:
        with path.open("rb") as file:
            archive = file.read(len(_ZIP)) == _ZIP
        if archive:
            _check_archive(path, size)
        return torch.load(path, map_location="cpu", mmap=mapped and archive, weights_only=True)
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} cannot be read ({size:,} bytes; {error}): it is cut off or damaged") from None
    except EOFError:
        raise UserError(f"{path} cannot be read ({size:,} bytes; it ends too early): it is cut off") from None
    except Exception as error:  # whatever a file that is no checkpoint makes of torch.load
        kind = type(error).__name__
        forbidden = re.search(r"GLOBAL (\S+)|Unsupported class (\S+)", str(error))
        what = (
            f": it holds {forbidden[1] or forbidden[2]}, and only weights and plain data are read" if forbidden else ""
        )
        raise UserError(f"{path}: not a fairseq checkpoint ({kind}){what}") from None


def _check_archive(path: Path, size: int) -> None:
    """Sizes at once; checksums once a process, and of several processes on a machine in the first.

    Raises:
        UserError: a size or a checksum is another than that written down.
        zipfile.BadZipFile: it is no archive.
    """
    status = path.stat()
    _check_once(path, status.st_dev, status.st_ino, size, status.st_mtime_ns, is_first_of_machine())


@functools.lru_cache(maxsize=64)
def _check_once(path: Path, device: int, inode: int, size: int, changed: int, checksums: bool) -> None:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if len(records) > _MOST_RECORDS or len({record.filename.lower() for record in records}) != len(records):
        raise UserError(f"{path}: its {len(records):,} records are too many, or have one name; refused")
    unpacked = sum(record.file_size for record in records)
    if unpacked > size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise UserError(
            f"{path}: its records are packed, or larger than it is ({unpacked:,} bytes in a file of {size:,}); "
            "refused: torch never writes such a file"
        )
    for record in records:
        if record.filename.endswith("data.pkl") and record.file_size > _MOST_PICKLED:
            raise UserError(f"{path}: holds {record.file_size:,} bytes beside its weights; refused")
    if not checksums:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        try:
            wrong = [record.filename for record in records if _checksum(view, record) != record.CRC]
        finally:
            view.release()
    if wrong:
        raise UserError(
            f"{path} is damaged: {len(wrong)} of its {len(records)} records have another checksum than was written "
            f"with them ({wrong[0]} is the first); get the file again"
        )


def _checksum(content: memoryview, record: zipfile.ZipInfo) -> int:
    """CRC-32 of a record, from where its own header says that it begins."""
    at = record.header_offset
    if at + 30 > len(content):
        return -1
    name, extra = struct.unpack_from("<HH", content, at + 26)
    begin = at + 30 + name + extra
    checksum = 0
    for start in range(begin, begin + record.file_size, _BLOCK):
        checksum = zlib.crc32(content[start : min(start + _BLOCK, begin + record.file_size)], checksum)
    return checksum


def check_weights(weights: dict, path: Path, finite: bool) -> None:
    """Refuse what are no weights.

    Args:
        finite: look at the numbers, too, which reads them all.

    Raises:
        UserError: one is no tensor, is larger than what is stored of it, or is not finite.
    """
    for name, weight in weights.items():
        if not isinstance(weight, torch.Tensor):
            raise UserError(f"{path}: not a fairseq checkpoint (its weight {name} is a {type(weight).__name__})")
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise UserError(f"{path}: its weight {name} is larger ({tuple(weight.shape)}) than what is stored; refused")
    broken = [name for name, weight in weights.items() if finite and not _is_finite(weight)]
    if broken:
        raise UserError(
            f"{path}: {len(broken)} weights are not finite ({broken[0]} is the first): the training diverged, or the "
            "file is damaged; use another checkpoint"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel():
        return True
    return bool(torch.stack(torch.aminmax(weight)).isfinite().all())  # no mask of the size of the weight
