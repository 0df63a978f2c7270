"""Downloads the official GLUE and SuperGLUE files: checked, resumed after an interruption, whole or not at all.

The publishers name no checksums, and none are invented here: the first download of a file records its SHA-256 in
GLUE_DIR/checksums.json, and later ones must equal it. A table of your own (JSON: task -> {"url": ..., "sha256": ...},
the second optional) replaces or adds addresses and says what you expect. MRPC has no official archive; put its three
TSV files into GLUE_DIR/MRPC by hand, or give an archive of your own.
"""

import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rt_plugin.console.files import appending, replacing, replacing_folder, sha256
from rt_plugin.console.progress import Progress
from rt_plugin.errors import UserError
from rt_plugin.glue.specs import TASKS, GlueTask

CHECKSUMS_FILE = "checksums.json"
_GLUE = "https://dl.fbaipublicfiles.com/glue/data"
_SUPERGLUE = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2"
URLS = {
    **{name: f"{_GLUE}/{name}.zip" for name in ("CoLA", "SST-2", "STS-B", "MNLI", "RTE", "WNLI")},
    **{"QQP": f"{_GLUE}/QQP-clean.zip", "QNLI": f"{_GLUE}/QNLIv2.zip", "AX": f"{_GLUE}/AX.tsv"},
    **{name: f"{_SUPERGLUE}/{name}.zip" for name in ("BoolQ", "MultiRC", "CB", "COPA", "WiC")},
}
MOST_RECEIVED = 1 << 29  # bytes; the largest of these files, MNLI's, has 313 MB
MOST_UNPACKED = 3 << 28  # of all files of a task; MNLI's have some 450 MB
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError)  # zipfile raises all of them


@dataclass(frozen=True)
class Source:
    """Where a task's files are; sha256: of that file, None where it is not known."""

    url: str
    sha256: str | None = None


def read_sources(path: Path | None) -> dict[str, Source]:
    """The official addresses, with those of a JSON file in their place.

    Raises:
        UserError: the file is missing or is not such a table.
    """
    sources = {name: Source(url) for name, url in URLS.items()}
    if path is None:
        return sources
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return sources | {name: Source(entry["url"], entry.get("sha256")) for name, entry in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: {error}; expected JSON: {{"CoLA": {{"url": ..., "sha256": ...}}}}') from None


def download(
    names: Sequence[str] | None, glue_dir: Path, sources: dict[str, Source], report: Callable[[str], None]
) -> None:
    """Put the official files of tasks into GLUE_DIR/<TASK>; tasks that are there already are left as they are.

    Args:
        names: of the tasks; None for all that have an address.
        report: takes lines of progress.

    Raises:
        UserError: a task has no address, the server cannot be reached, a file is damaged or not the expected one, or
            the disk cannot be written. What an interrupted download received stays, and the next attempt goes on there.
    """
    if names and (missing := [name for name in names if name not in sources and not (glue_dir / name).is_dir()]):
        raise UserError(f"{missing[0]}: no address known; put its files into {glue_dir / missing[0]}, or use --urls")
    for task in TASKS:
        if task.name not in (names or sources) or (glue_dir / task.name).is_dir():
            continue
        try:
            glue_dir.mkdir(parents=True, exist_ok=True)
            _download_task(task, glue_dir, sources[task.name], report)
        except OSError as error:
            raise UserError(f"{task.name}: cannot write into {glue_dir} ({error.strerror or error})") from None


def _download_task(task: GlueTask, glue_dir: Path, source: Source, report: Callable[[str], None]) -> None:
    name = source.url.rsplit("/", 1)[-1]
    archive = glue_dir / f".{task.name}-{name}.part"
    report(f"{task.name}: downloading {source.url}")
    record = glue_dir / CHECKSUMS_FILE
    try:
        recorded = json.loads(record.read_text()) if record.is_file() else {}
    except ValueError as error:
        raise UserError(f"{record}: {error}; expected the JSON that an earlier download wrote; remove it") from None
    _receive(source.url, archive, report)
    digest = _check(archive, source.url, source.sha256 or recorded.get(source.url))
    try:
        with replacing_folder(glue_dir / task.name) as folder:
            _unpack(archive, task, folder, source.url)
            if source.sha256 is None and source.url not in recorded:  # not before it is known to be whole
                report(f"  SHA-256 {digest}: not known before, recorded in {record}")
                with replacing(record) as file:
                    file.write(json.dumps({**recorded, source.url: digest}, indent=2).encode())
    finally:
        archive.unlink(missing_ok=True)


def _receive(url: str, target: Path, report: Callable[[str], None]) -> None:
    """Append to `target` what it lacks of the file at `url`; one that is larger than it may be is removed.

    Raises:
        UserError: the server cannot be reached, breaks off, or sends more than it announced, or `MOST_RECEIVED`.
    """
    have = target.stat().st_size if target.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, appending(target) as file:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                file.truncate(0)  # a server that does not know ranges sends all of it again
            begin, length = file.seek(0, os.SEEK_END), max(0, int(response.headers.get("Content-Length", 0)))
            expected = begin + length
            most = min(expected, MOST_RECEIVED) if length else MOST_RECEIVED
            received = begin
            with Progress(url.rsplit("/", 1)[-1], expected if length else None, "B", report) as progress:
                progress.skip_to(begin)
                while expected <= MOST_RECEIVED and received <= most and (chunk := response.read(_CHUNK)):
                    file.write(chunk)
                    received += len(chunk)
                    progress.advance(len(chunk))
    except UserError:  # is a ValueError
        raise
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is there
        raise UserError(
            f"{url}: the server answers {error.code} {error.reason}; give another address with --urls"
        ) from None
    except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{url}: cannot be downloaded ({error}); run the same command again to go on") from None
    if expected > MOST_RECEIVED or received > most:
        target.unlink()
        if expected > MOST_RECEIVED:
            what = f"the server announces {expected:,} bytes, and none of these files has more than {MOST_RECEIVED:,}"
        elif length:
            what = f"the server sends more than the {expected:,} bytes that it announced"
        else:
            what = f"the server sends more than {MOST_RECEIVED:,} bytes, and none of these files has as many"
        raise UserError(f"{url}: {what}; refused, and removed; give another address with --urls")
    if received < expected:
        raise UserError(
            f"{url}: broke off after {received:,} of {expected:,} bytes; run the same command again to go on"
        )


def _check(archive: Path, url: str, expected: str | None) -> str:
    """The SHA-256 of the file; one that is not the expected file is removed."""
    found = sha256(archive)
    if expected is not None and found != expected.lower():
        archive.unlink()
        raise UserError(f"{url}: SHA-256 {found}, expected {expected}; it is another file, and was removed")
    return found


def _unpack(archive: Path, task: GlueTask, folder: Path, url: str) -> None:
    """Write the task's official files into a folder: members of a zip file, or the one file itself."""
    if not zipfile.is_zipfile(archive) and len(task.files) == 1 and not url.endswith(".zip"):
        shutil.copyfile(archive, folder / next(iter(task.files.values())))
        return
    try:
        _unzip(archive, task, folder, url)
    except _DAMAGED as error:
        raise UserError(
            f"{url}: not a zip file, or a damaged one ({error}), and was removed; expected one with "
            f"{', '.join(task.files.values())}; run the same command again, or give another address with --urls"
        ) from None


def _unzip(archive: Path, task: GlueTask, folder: Path, url: str) -> None:
    with zipfile.ZipFile(archive) as members:
        # the official archives hold other versions of the files in deeper folders
        names = sorted(members.namelist(), key=lambda name: name.count("/"), reverse=True)
        shallowest = {PurePosixPath(name).name: name for name in names if not name.startswith("__MACOSX")}
        for name in task.files.values():
            if name not in shallowest:
                raise UserError(f"{url}: no {name} in it; expected {', '.join(task.files.values())}")
        size = sum(members.getinfo(shallowest[name]).file_size for name in task.files.values())
        if size > MOST_UNPACKED:
            raise UserError(
                f"{url}: unpacks to {size:,} bytes, more than any of these tasks has ({MOST_UNPACKED:,}); refused, and "
                f"removed; put the files of your own data into a folder {task.name}"
            )
        for name in task.files.values():  # no more than these bytes are unpacked, whatever the archive holds
            with members.open(shallowest[name]) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
