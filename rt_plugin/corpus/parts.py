"""Text files -> token ids -> fairseq's indexed data sets, by several processes, in parts.

A part, the unit of work, is a chunk of an input file. A worker process encodes it and writes one file, which appears
when it is complete: an interrupted run continues with the parts that have none. A shard is the parts that belong to it,
one after the other: the same bytes for any number of workers.
"""

import contextlib
import itertools
import json
import multiprocessing
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rt_plugin.console.files import replacing
from rt_plugin.console.processes import end_with_parent
from rt_plugin.console.progress import Progress
from rt_plugin.corpus.encoders import LineEncoder, load_line_encoder
from rt_plugin.errors import UserError
from rt_plugin.text.raw import Chunk, read_chunks

_LINES_AT_ONCE = 2000  # Python's lists of ids take some 40 bytes a token
_DTYPE_CODES = {np.dtype(np.uint16): 8, np.dtype(np.uint32): 9}  # of fairseq's index files


@dataclass(frozen=True)
class Part:
    """A unit of work.

    Attributes:
        stream: the split whose input files it comes from.
        number: of the part in its stream, from 0 on.
        file: the number of its input file.
        shard: where its documents go.
        chunk: the text.
        inside: it continues the last document of the part before.
        documents_before: that begin before this part, over all files of the stream.
        ends_stream: it is the last one.
    """

    stream: str
    number: int
    file: int
    shard: int
    chunk: Chunk
    inside: bool
    documents_before: int
    ends_stream: bool

    @property
    def name(self) -> str:
        return f"{self.stream}-{self.number:06d}"


@dataclass(frozen=True)
class Layout:
    """How text is cut into parts, documents and splits.

    Attributes:
        shards: each document of "train" goes to the shard with the least text so far, part by part.
        document_per_line: each line is a document; else blank lines separate documents.
        part_bytes: of text in a part.
        held_out: numbers (from 1 on) of the documents of "train" that make up "valid".
    """

    shards: int
    document_per_line: bool
    part_bytes: int
    held_out: frozenset[int] = frozenset()


def cut_into_parts(stream: str, files: Sequence[Path], layout: Layout) -> Iterator[Part]:
    """The parts of a split's files, in order.

    Raises:
        UserError: a file cannot be read; with held-out documents also where it is not UTF-8.
    """
    shards = layout.shards if stream == "train" else 1
    numbers, documents, inside, shard, sizes = itertools.count(), 0, False, 0, [0] * shards
    for file, path in enumerate(files):
        for chunk in read_chunks(path, layout.part_bytes, layout.document_per_line):
            last = chunk.ends_file and file == len(files) - 1
            if not inside:
                shard = sizes.index(min(sizes))
            sizes[shard] += len(chunk.data)
            yield Part(stream, next(numbers), file, shard, chunk, inside, documents, last)
            if stream == "train" and layout.held_out:
                documents = documents_begun(chunk.lines(), layout.document_per_line, documents, inside)[-1]
            inside = not chunk.ends_document


def documents_begun(lines: Iterable[str], document_per_line: bool, before: int = 0, inside: bool = False) -> list[int]:
    """For each line how many documents have begun with it; one more entry at the front: `before`."""
    begun = [before]
    for line in lines:
        blank = not line.strip()
        begun.append(begun[-1] + (not blank and (document_per_line or not inside)))
        inside = not blank
    return begun


def check_shards(stream: str, files: Sequence[Path], layout: Layout) -> None:
    """Read a split's files until each shard has a document, which fairseq needs to train on it.

    Raises:
        UserError: a shard stays without one; or a file cannot be read.
    """
    filled = set()
    for part in cut_into_parts(stream, files, layout):
        if part.shard not in filled and _has_document(part, layout):
            filled.add(part.shard)
        if len(filled) == (layout.shards if stream == "train" else 1):
            return
    if not filled:
        raise UserError(f"{files[0]}: no text for {stream}, only white space; give UTF-8 text")
    lines = "" if layout.document_per_line else ", or --documents lines where each line is a document"
    raise UserError(
        f"--shards {layout.shards}: the training text fills only {len(filled)} of them, since documents stay whole and "
        f"small ones stay together by {layout.part_bytes // 1024} KiB; use --shards {len(filled)}{lines}"
    )


def _has_document(part: Part, layout: Layout) -> bool:
    """Whether some of the part's text is not held out."""
    lines = part.chunk.lines()
    begun = documents_begun(lines, layout.document_per_line, part.documents_before, part.inside)[1:]
    return any(line.strip() and number not in layout.held_out for line, number in zip(lines, begun, strict=True))


def count_documents(files: Sequence[Path], layout: Layout) -> int:
    """The number of documents in the files of one split."""
    total, inside = 0, False
    for path in files:
        for chunk in read_chunks(path, layout.part_bytes, layout.document_per_line):
            total = documents_begun(chunk.lines(), layout.document_per_line, total, inside)[-1]
            inside = not chunk.ends_document
    return total


@dataclass(frozen=True)
class Worker:
    """What encodes a part and writes its file.

    Attributes:
        parts: the folder of the parts' files.
    """

    encoder: LineEncoder
    layout: Layout
    parts: Path

    def __call__(self, part: Part) -> None:
        lines = part.chunk.lines()
        begun = documents_begun(lines, self.layout.document_per_line, part.documents_before, part.inside)
        lines, begun = self._separated(part, lines, begun)
        tokens, lengths = self._encode(lines)
        splits = np.where(np.isin(begun, list(self.layout.held_out)), "valid", part.stream)
        arrays, counts = {}, {}
        for split in np.unique(splits):
            chosen = splits == split
            arrays[f"{split}-tokens"] = tokens[np.repeat(chosen, lengths)]
            arrays[f"{split}-lengths"] = lengths[chosen]
            counts[str(split)] = self._counts(lines, chosen, arrays[f"{split}-tokens"], lengths)
        for split, documents in self._documents(part, begun, splits).items():
            counts[split]["documents"] = documents
        about = {"shard": part.shard, "file": part.file, "bytes": len(part.chunk.data), "counts": counts}
        with replacing(self.parts / f"{part.name}.npz") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    def _separated(self, part: Part, lines: list[str], begun: list[int]) -> tuple[list[str], np.ndarray]:
        """The lines with a blank one behind each document, where the file has none, and the document of each."""
        last, begun = begun[-1], begun[1:]
        if self.layout.document_per_line:
            pairs = [
                (text, number)
                for line, number in zip(lines, begun, strict=True)
                for text in ((line, "") if line.strip() else (line,))
                for number in (number,)
            ]
            lines, begun = [text for text, _ in pairs], [number for _, number in pairs]
        elif part.chunk.ends_file and not part.ends_stream and (lines[-1].strip() if lines else part.inside):
            lines, begun = [*lines, ""], [*begun, last]
        return lines, np.array(begun, dtype=np.int64)

    def _encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        batches = [
            self.encoder.encode(lines[start : start + _LINES_AT_ONCE])
            for start in range(0, len(lines) or 1, _LINES_AT_ONCE)
        ]
        return tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))

    def _counts(self, lines: list[str], chosen: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> dict[str, int]:
        has_text = np.array([bool(line.strip()) for line in lines], dtype=bool) & chosen
        return {
            "documents": 0,
            "sentences": int(has_text.sum()),
            "blank_lines": int(chosen.sum() - has_text.sum()),
            "lines_without_pieces": int((has_text & (lengths == 1)).sum()),
            "tokens": len(tokens),
            "unknown": int((tokens == self.encoder.unknown).sum()),
        }

    def _documents(self, part: Part, begun: np.ndarray, splits: np.ndarray) -> Counter:
        """split -> documents that begin in the part."""
        first = np.flatnonzero(np.diff(begun, prepend=part.documents_before))
        return Counter(str(split) for split in splits[first])


_worker: Worker | None = None  # of a worker process


def _start_worker(tokenizer: Path, layout: Layout, parts: Path) -> None:
    global _worker
    _worker = Worker(load_line_encoder(tokenizer), layout, parts)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the first one ends the others
    end_with_parent()


def _work(part: Part) -> None:
    _worker(part)


def encode_stream(
    stream: str,
    files: Sequence[Path],
    layout: Layout,
    tokenizer: Path,
    parts: Path,
    processes: int,
    report: Callable[[str], None],
) -> None:
    """Encode the parts of a split's files that have no file yet.

    Args:
        stream: the split.
        tokenizer: the folder with tokenizer and dictionary, see `load_line_encoder`.
        parts: the folder that gets the parts' files.
        processes: that encode, besides this one, which reads.
        report: takes lines of progress, see `Progress`.

    Raises:
        UserError: text is not UTF-8, a part's file cannot be written, or a worker process was killed.
    """
    before = [0, *itertools.accumulate(path.stat().st_size for path in files)]
    running: dict[Future, Part] = {}
    # fork spares each worker the import of torch; macOS' system libraries do not survive it
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        with (
            ProcessPoolExecutor(processes, context, _start_worker, (tokenizer, layout, parts)) as pool,
            Progress(f"{stream}: encoding", before[-1], "B", report) as progress,
        ):
            try:
                for part in cut_into_parts(stream, files, layout):
                    if (parts / f"{part.name}.npz").exists():
                        progress.skip_to(before[part.file] + part.chunk.bytes_read)
                        continue
                    while len(running) >= processes + 2:
                        _collect(running, before, progress)
                    running[pool.submit(_work, part)] = part
                while running:
                    _collect(running, before, progress)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out; run the same command again with fewer "
            "--workers: it continues"
        ) from None


def _collect(running: dict[Future, Part], before: Sequence[int], progress: Progress) -> None:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        part = running.pop(future)
        future.result()
        progress.reach(before[part.file] + part.chunk.bytes_read)


class FinishedParts:
    """The files of a stream's parts, in order."""

    def __init__(self, folder: Path, stream: str):
        self._paths = sorted(folder.glob(f"{stream}-*.npz"))

    def about(self) -> Iterator[dict]:
        """What each part says of itself: shard, file, bytes, counts by split."""
        for path in self._paths:
            with np.load(path) as part:
                yield json.loads(str(part["about"]))

    def write_dataset(self, split: str, shard: int | None, prefix: Path, dtype: np.dtype) -> None:
        """Join the parts of a shard to an indexed data set, unless it is there; both files appear when complete.

        Args:
            split: what the documents are for; those held out from "train" are "valid".
            shard: its number; None for the documents of all.
            prefix: of the two files.

        Raises:
            OSError: they cannot be written.
        """
        data, index = (prefix.with_name(f"{prefix.name}.{kind}") for kind in ("bin", "idx"))
        if data.exists() and index.exists():
            return
        lengths = [np.zeros(0, np.int32)]
        with replacing(data) as file:
            for path, about in zip(self._paths, self.about(), strict=True):
                if shard in (None, about["shard"]) and split in about["counts"]:
                    with np.load(path) as part:
                        file.write(part[f"{split}-tokens"].astype(dtype).tobytes())
                        lengths.append(part[f"{split}-lengths"])
        with replacing(index) as file:
            file.write(index_header(np.concatenate(lengths), dtype))


def index_header(lengths: np.ndarray, dtype: np.dtype) -> bytes:
    """The content of an .idx file of fairseq's `mmap` format: type, number, lengths and byte offsets of the items."""
    dtype = np.dtype(dtype)
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) if len(lengths) else np.zeros(0)
    return b"".join(
        (
            b"MMIDIDX\x00\x00",
            struct.pack("<QBQ", 1, _DTYPE_CODES[dtype], len(lengths)),
            lengths.astype("<i4").tobytes(),
            (offsets * dtype.itemsize).astype("<i8").tobytes(),
        )
    )


@contextlib.contextmanager
def explained_write_errors(folder: Path) -> Iterator[None]:
    """Turns a full or read-only disk into an error that a user can act on."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: the data cannot be written ({error.strerror or error}); make room and run the same command "
            "again: it continues"
        ) from None
