"""Text files -> token ids -> fairseq's indexed data sets, by several processes of one or more machines, in parts.

A part, the unit of work, is a chunk of an input file, or the chunks of several small ones. A worker process encodes it
and writes one file, which appears when it is complete: an interrupted run continues with the parts that have none. A
shard is what the parts have for it, one after the other: the same bytes for any number of workers and machines.
"""

import contextlib
import itertools
import json
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rt_plugin.console.files import replacing
from rt_plugin.console.progress import Progress
from rt_plugin.corpus.encoders import LineEncoder, load_line_encoder
from rt_plugin.corpus.inputs import Cut, Form, Input, documents_begun, read_cuts
from rt_plugin.corpus.workers import pool_of
from rt_plugin.errors import UserError
from rt_plugin.text.raw import Chunk

_DROPPED = ""  # the split of a document that is equal to an earlier one
_LINES_AT_ONCE = 2000  # Python's lists of ids take some 40 bytes a token
_DTYPE_CODES = {np.dtype(np.uint16): 8, np.dtype(np.uint32): 9}  # of fairseq's index files


@dataclass(frozen=True)
class Section:
    """A chunk of an input file as a part of the work.

    Attributes:
        file: the number of the input file.
        shard: where its documents go.
        cut: which text.
        inside: it continues the last document of the section before.
        documents_before: that begin before it, over all files of the stream; 0 where nobody counts them.
        ends_stream: it is the last one.
    """

    file: int
    shard: int
    cut: Cut
    inside: bool
    documents_before: int
    ends_stream: bool


@dataclass(frozen=True)
class Part:
    """A unit of work.

    Attributes:
        stream: the split whose input files it comes from.
        number: of the part in its stream, from 0 on.
        share: of several machines, from 0 on, whose work it is.
        sections: what is in it, in order.
    """

    stream: str
    number: int
    share: int
    sections: tuple[Section, ...]

    @property
    def name(self) -> str:
        return f"{self.stream}-{self.number:06d}"

    def file_in(self, folder: Path) -> Path:
        """Its file in the folder of the parts."""
        return folder / f"{self.name}.npz"


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Layout:
    """How text is cut into parts, documents and splits.

    Attributes:
        shards: each document of "train" goes to the shard with the least text so far, chunk by chunk.
        form: how files are read, and the size of a chunk.
        part_bytes: of text in a part, if a chunk is smaller; chunks of small files share a part.
        held_out: numbers (from 1 on, sorted) of the documents of "train" that make up "valid".
        repeated: numbers of those that are dropped, since they are equal to an earlier one.
    """

    shards: int
    form: Form
    part_bytes: int
    held_out: np.ndarray = field(default_factory=_none)
    repeated: np.ndarray = field(default_factory=_none)


def cut_into_parts(stream: str, inputs: Sequence[Input], layout: Layout, shares: int = 1) -> list[Part]:
    """The parts of a split's files, in order, and whose of several machines each is: about the same text for each."""
    sections = list(_sections(stream, inputs, layout))
    total = max(1, sum(section.cut.length for section in sections))
    parts, group, size, before = [], [], 0, 0
    for section in sections:
        if group and size + section.cut.length > layout.part_bytes:
            parts.append(Part(stream, len(parts), before * shares // total, tuple(group)))
            group, size, before = [], 0, before + size
        group.append(section)
        size += section.cut.length
    if group:
        parts.append(Part(stream, len(parts), min(before * shares // total, shares - 1), tuple(group)))
    return parts


def _sections(stream: str, inputs: Sequence[Input], layout: Layout) -> Iterator[Section]:
    shards = layout.shards if stream == "train" else 1
    documents, inside, shard, sizes = 0, False, 0, [0] * shards
    for file, known in enumerate(inputs):
        for cut in known:
            if not inside:
                shard = sizes.index(min(sizes))
            sizes[shard] += cut.length
            last = cut.ends_file and file == len(inputs) - 1
            yield Section(file, shard, cut, inside, documents if stream == "train" else 0, last)
            documents += cut.documents
            inside = not cut.ends_document


def check_shards(stream: str, inputs: Sequence[Input], layout: Layout) -> None:
    """See that each shard has a document, which fairseq needs to train on it.

    Raises:
        UserError: a shard stays without one.
    """
    filled = {section.shard for section in _sections(stream, inputs, layout) if _has_document(stream, section, layout)}
    if len(filled) == (layout.shards if stream == "train" else 1):
        return
    if not filled:
        raise UserError(f"{inputs[0].path}: no text for {stream}, only white space; give UTF-8 text")
    raise UserError(
        f"--shards {layout.shards}: the training text fills only {len(filled)} of them, since documents stay whole and "
        f"small ones stay together by {layout.form.chunk_bytes // 1024} KiB; use --shards {len(filled)}"
        f"{hint_of_lines(layout.form)}"
    )


def hint_of_lines(form: Form) -> str:
    """What else to do about too few documents, for the end of an error."""
    return "" if form.document_per_line else ", or --documents lines where each line is a document"


def _has_document(stream: str, section: Section, layout: Layout) -> bool:
    """Whether some of the section's text is neither held out nor dropped."""
    if stream != "train" or not section.cut.documents or not section.cut.has_text:
        return section.cut.has_text
    numbers = np.arange(section.documents_before, section.documents_before + section.cut.documents) + 1
    return not (_among(numbers, layout.held_out) | _among(numbers, layout.repeated)).all()


def _among(numbers: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For each of some neighbouring numbers whether it is one of the chosen ones, which are sorted."""
    if not len(numbers):
        return np.zeros(0, dtype=bool)
    first, last = np.searchsorted(chosen, (numbers.min(), numbers.max() + 1))
    return np.isin(numbers, chosen[first:last])


@dataclass(frozen=True)
class Worker:
    """What encodes a part and writes its file.

    Attributes:
        parts: the folder of the parts' files.
    """

    encoder: LineEncoder
    layout: Layout
    parts: Path

    def __call__(self, part: Part, chunks: Sequence[Chunk]) -> None:
        arrays, about = defaultdict(list), []
        for section, chunk in zip(part.sections, chunks, strict=True):
            counts = self._encode_section(part.stream, section, chunk, arrays)
            about.append({"file": section.file, "shard": section.shard, "counts": counts})
        joined = {name: np.concatenate(pieces) for name, pieces in arrays.items()}
        with replacing(part.file_in(self.parts)) as file:
            np.savez(file, about=np.array(json.dumps(about)), **joined)

    def _encode_section(self, stream: str, section: Section, chunk: Chunk, arrays: dict[str, list]) -> dict:
        """Add the ids and lengths of a section's lines to `arrays`, by where they go; returns counts by split."""
        lines = chunk.lines()
        begun = documents_begun(lines, self.layout.form.document_per_line, section.documents_before, section.inside)
        lines, begun = self._separated(section, lines, begun)
        splits = self._splits(stream, begun)
        documents = Counter(splits[np.diff(begun, prepend=section.documents_before) > 0].tolist())
        kept = splits != _DROPPED
        lines, splits = list(itertools.compress(lines, kept)), splits[kept]
        tokens, lengths = self._encode(lines)
        counts = {}
        for split in np.unique(splits).tolist():
            chosen = splits == split
            here = tokens[np.repeat(chosen, lengths)]
            place = dataset_name(split, section.shard)
            arrays[f"{place}-tokens"].append(here)
            arrays[f"{place}-lengths"].append(lengths[chosen])
            counts[split] = {**self._counts(lines, chosen, here, lengths), "documents": documents[split]}
        if documents[_DROPPED]:
            counts.setdefault(stream, Counter())["repeated_documents"] = documents[_DROPPED]
        return counts

    def _separated(self, section: Section, lines: list[str], begun: list[int]) -> tuple[list[str], np.ndarray]:
        """The lines with a blank one behind each document, where the file has none, and the document of each."""
        last, begun = begun[-1], begun[1:]
        if self.layout.form.document_per_line:
            pairs = [
                (text, number)
                for line, number in zip(lines, begun, strict=True)
                for text in ((line, "") if line.strip() else (line,))
                for number in (number,)
            ]
            lines, begun = [text for text, _ in pairs], [number for _, number in pairs]
        elif section.cut.ends_file and not section.ends_stream and (lines[-1].strip() if lines else section.inside):
            lines, begun = [*lines, ""], [*begun, last]
        return lines, np.array(begun, dtype=np.int64)

    def _splits(self, stream: str, begun: np.ndarray) -> np.ndarray:
        """For each line the split that its document goes to."""
        splits = np.full(len(begun), stream, dtype="U8")
        if stream == "train":
            splits[_among(begun, self.layout.held_out)] = "valid"
            splits[_among(begun, self.layout.repeated)] = _DROPPED
        return splits

    def _encode(self, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
        batches = [
            self.encoder.encode(lines[start : start + _LINES_AT_ONCE])
            for start in range(0, len(lines) or 1, _LINES_AT_ONCE)
        ]
        return tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))

    def _counts(self, lines: list[str], chosen: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> dict[str, int]:
        has_text = np.array([bool(line.strip()) for line in lines], dtype=bool) & chosen
        return {
            "sentences": int(has_text.sum()),
            "blank_lines": int(chosen.sum() - has_text.sum()),
            "lines_without_pieces": int((has_text & (lengths == 1)).sum()),
            "tokens": len(tokens),
            "unknown": int((tokens == self.encoder.unknown).sum()),
        }


_worker: Worker | None = None  # of a worker process


def _start_worker(tokenizer: Path, layout: Layout, parts: Path) -> None:
    global _worker
    _worker = Worker(load_line_encoder(tokenizer), layout, parts)


def _work(part: Part, chunks: list[Chunk]) -> None:
    _worker(part, chunks)


def encode_parts(
    parts: Sequence[Part],
    inputs: Sequence[Input],
    layout: Layout,
    tokenizer: Path,
    folder: Path,
    processes: int,
    report: Callable[[str], None],
) -> None:
    """Encode parts of one split that have no file yet.

    Args:
        inputs: the split's files.
        tokenizer: the folder with tokenizer and dictionary, see `load_line_encoder`.
        folder: gets the parts' files.
        processes: that encode, besides this one, which reads.
        report: takes lines of progress, see `Progress`.

    Raises:
        UserError: text is not UTF-8, a part's file cannot be written, or a worker process was killed.
    """
    left = [part for part in parts if not part.file_in(folder).exists()]
    if not left:
        return
    sizes = {part.number: sum(section.cut.length for section in part.sections) for part in parts}
    running: dict[Future, Part] = {}
    with (
        pool_of(processes, _start_worker, (tokenizer, layout, folder)) as pool,
        Progress(f"{left[0].stream}: encoding", sum(sizes.values()), "B", report) as progress,
    ):
        progress.skip_to(sum(sizes.values()) - sum(sizes[part.number] for part in left))
        for part, chunks in _read_parts(left, inputs, layout.form):
            while len(running) >= processes + 2:
                _collect(running, sizes, progress)
            running[pool.submit(_work, part, chunks)] = part
        while running:
            _collect(running, sizes, progress)


def _read_parts(parts: Sequence[Part], inputs: Sequence[Input], form: Form) -> Iterator[tuple[Part, list[Chunk]]]:
    """The parts with their text; each file is opened once."""
    chunks = itertools.chain.from_iterable(
        read_cuts(inputs[file].path, [section.cut for section in sections], form)
        for file, sections in itertools.groupby(
            (section for part in parts for section in part.sections), key=lambda section: section.file
        )
    )
    for part in parts:
        yield part, list(itertools.islice(chunks, len(part.sections)))


def _collect(running: dict[Future, Part], sizes: dict[int, int], progress: Progress) -> None:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        part = running.pop(future)
        future.result()
        progress.advance(sizes[part.number])


def dataset_name(split: str, shard: int) -> str:
    """What a data set is called in the files of parts: only training text goes to shards."""
    return f"train{shard}" if split == "train" else split


class FinishedParts:
    """The files of a stream's parts, in order; each is looked into once, however many shards there are."""

    def __init__(self, folder: Path, stream: str):
        self.about: list[dict] = []  # what each section says of itself: file, shard, counts by split
        self._with: dict[str, list[Path]] = defaultdict(list)  # by the arrays that they hold
        for path in sorted(folder.glob(f"{stream}-*.npz")):
            with np.load(path) as part:
                self.about += json.loads(str(part["about"]))
                for name in part.files:
                    self._with[name].append(path)

    def write_dataset(self, name: str, prefix: Path, dtype: np.dtype) -> None:
        """Join the parts of a data set, unless it is there; both of its files appear when complete.

        Args:
            name: see `dataset_name`.
            prefix: of the two files.

        Raises:
            OSError: they cannot be written.
        """
        data, index = (prefix.with_name(f"{prefix.name}.{kind}") for kind in ("bin", "idx"))
        if data.exists() and index.exists():
            return
        lengths = [np.zeros(0, np.int32)]
        with replacing(data) as file:
            for path in self._with[f"{name}-tokens"]:
                with np.load(path) as part:
                    file.write(part[f"{name}-tokens"].astype(dtype, copy=False).data)
                    lengths.append(part[f"{name}-lengths"])
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
