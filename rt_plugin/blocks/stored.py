"""Arrays that are worked out once, kept in a file, and mapped into memory by every process that needs them."""

import contextlib
import hashlib
import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rt_plugin.console.files import replacing
from rt_plugin.console.locks import in_turn

logger = logging.getLogger(__name__)

VERSION = 1
MAGIC = b"RTARRAYS"
_ALIGNMENT = 64  # bytes

Arrays = dict[str, np.ndarray]


def stored_arrays(folder: Path, name: str, key: dict, build: Callable[[], Arrays]) -> Arrays:
    """The arrays of `build`, from a file in `folder` if some process has written it before.

    Of several processes that start at once one works, the others wait for it. A file that is damaged, of another
    version or another key is made anew. Files of the same name whose `key["data"]` is another are removed: they belong
    to data that are no longer there.

    Args:
        folder: made if needed. Where it cannot be written, the arrays stay in the memory of this process.
        name: of the arrays, for the file's name and the log.
        key: all that the arrays depend on, for JSON; `data` is what identifies the data.
        build: works them out.

    Returns:
        Read-only arrays by name.
    """
    path = path_of(folder, name, key)
    found = read_arrays(path, key)
    if found is not None:
        return found
    arrays = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with in_turn(folder / ".lock"):
            found = read_arrays(path, key)
            if found is None:
                logger.info("working out the %s, once; they are kept in %s", name, path)
                arrays = build()
                _remove_outdated(folder, name, key)
                write_arrays(path, key, arrays)
                found = read_arrays(path, key)
    except OSError as error:  # also of a file system without locks
        logger.warning(
            "%s: cannot be written (%s); every process works out the %s at each start and keeps them in its own memory",
            *(folder, error.strerror or error, name),
        )
    if found is not None:
        return found
    return arrays if arrays is not None else build()


def path_of(folder: Path, name: str, key: dict) -> Path:
    """The file of the arrays of that name and key."""
    return folder / f"{name}.{_digest(key)[:16]}"


def write_arrays(path: Path, key: dict, arrays: Arrays) -> None:
    """Write arrays, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    entries, offset, checksum = {}, 0, 0
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, array in contiguous.items():
        entries[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": offset}
        offset += array.nbytes + _padding(array.nbytes)
        checksum = zlib.crc32(bytes(_padding(array.nbytes)), zlib.crc32(array.reshape(-1).view(np.uint8), checksum))
    header = {"version": VERSION, "key": key, "arrays": entries, "bytes": offset, "crc32": checksum}
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * _padding(len(MAGIC) + 8 + len(text))
    with replacing(path) as file:
        file.write(MAGIC + len(text).to_bytes(8, "little") + text)
        for array in contiguous.values():
            file.write(array.reshape(-1).view(np.uint8).data)
            file.write(bytes(_padding(array.nbytes)))


def read_arrays(path: Path, key: dict) -> Arrays | None:
    """Map the arrays of a file; None where there is none of that key, or it is damaged (which is logged)."""
    try:
        with path.open("rb") as file:
            header, start = _read_header(file)
            if header["key"] != json.loads(json.dumps(key)):
                return None
            checksum, size = 0, 0
            while block := file.read(1 << 22):  # not through the map: what is mapped counts as memory of this process
                checksum, size = zlib.crc32(block, checksum), size + len(block)
            if (size, checksum) != (header["bytes"], header["crc32"]):
                raise ValueError(f"{size:,} bytes, expected {header['bytes']:,} with another checksum")
        data = np.memmap(path, mode="r", offset=start) if size else np.empty(0, np.uint8)
        return {name: _view(data, **entry) for name, entry in header["arrays"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        logger.warning("%s cannot be used and is made anew: %s", path, error)
        return None


def _read_header(file) -> tuple[dict, int]:
    """The header of a file, and where the arrays begin."""
    start = file.read(len(MAGIC) + 8)
    if len(start) < len(MAGIC) + 8 or not start.startswith(MAGIC):
        raise ValueError("no file of arrays")
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if length > 1 << 20:
        raise ValueError(f"a header of {length:,} bytes")
    header = json.loads(file.read(length))
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']}, expected {VERSION}")
    return header, len(start) + length


def _view(data: np.ndarray, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    # not np.memmap: its views carry the file's name and mode through every operation
    return np.asarray(data[offset : offset + size]).view(dtype).reshape(shape)


def _remove_outdated(folder: Path, name: str, key: dict) -> None:
    for other in folder.glob(f"{name}.*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with other.open("rb") as file:
                header, _ = _read_header(file)
            if header["key"]["data"] != json.loads(json.dumps(key["data"])):
                other.unlink()


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _digest(key: dict) -> str:
    return hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True).encode()).hexdigest()
