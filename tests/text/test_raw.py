"""Text files: compressed ones with all frames, in bounded memory; one line for a file that is broken or no text."""

import contextlib
import gzip
import importlib
import sys
import tracemalloc

import pytest

from rt_plugin.errors import UserError
from rt_plugin.text import raw
from rt_plugin.text.raw import open_text, read_chunks, read_lines


@pytest.fixture
def compress():
    for name in ("compression.zstd", "backports.zstd"):  # the standard library's since Python 3.14
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name).compress
    pytest.skip("backports.zstd is not installed")


def test_all_frames_of_a_zst_file_are_read(compress, tmp_path):
    path = tmp_path / "text.zst"
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"  # a frame for other programs
    path.write_bytes(compress(b"one\ntwo, cut ") + skippable + compress(b"between frames\n") + compress(b""))
    assert list(read_lines(path)) == ["one", "two, cut between frames"]


def test_a_broken_zst_file_is_named(compress, tmp_path):
    path = tmp_path / "text.zst"
    whole = compress(b"some words\n" * 1000)
    flipped = whole[:9] + bytes([whole[9] ^ 255]) + whole[10:]
    for content in (whole[:-1], whole[:7], whole + whole[:-1], whole + b"something else", flipped, b"plain text\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"text\.zst: the archive is broken or cut off \(.+\); copy the file again"):
            list(read_lines(path))


def test_a_small_file_of_much_text_takes_little_memory(compress, tmp_path):
    path = tmp_path / "text.zst"
    path.write_bytes(compress(bytes(1 << 27)))
    assert path.stat().st_size < 1 << 16
    tracemalloc.start()
    try:
        with open_text(path) as (file, _):
            assert sum(map(len, iter(lambda: file.read(1 << 20), b""))) == 1 << 27
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_line_ends_of_old_files_are_named(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\rtwo\r")
    for read in (read_lines, lambda path: [chunk.lines() for chunk in read_chunks(path, 1 << 16, True)]):
        with pytest.raises(UserError, match=r"text\.txt: its only line holds carriage returns, .* tr '\\r' '\\n'"):
            list(read(path))
    for content, lines in ((b"one\r\ntwo\r\n", ["one", "two"]), (b"a\rb\nc", ["a\rb", "c"]), (b"one\r", ["one"])):
        path.write_bytes(content)
        assert list(read_lines(path)) == lines
        assert [line for chunk in read_chunks(path, 1 << 16, True) for line in chunk.lines()] == lines


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "text.zst").write_bytes(b"")
    with pytest.raises(UserError, match=r"text\.zst: reading \.zst needs .* pip install backports\.zstd$"):
        list(read_lines(tmp_path / "text.zst"))


def test_a_line_without_end_is_refused(tmp_path):
    """A file without line ends, say, or a picture: in lines, in chunks, and before it fills the memory."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\ntwo\n" + b"x" * (raw.LONGEST_LINE + 1) + b"\nfour\n" + b"y" * 99)
    message = rf"text\.txt, line 3: longer than {raw.LONGEST_LINE >> 20} MiB; .* break it into lines"
    with pytest.raises(UserError, match=message):
        list(read_lines(path))
    for size in (1 << 16, 1 << 30):  # of a chunk: below the line, and all of the file
        for document_per_line in (True, False):
            with pytest.raises(UserError, match=message):
                for chunk in read_chunks(path, size, document_per_line):
                    chunk.lines()
    path.write_bytes(b"one\n" + b"x" * raw.LONGEST_LINE + b"\nthree\n")
    assert [len(line) for line in read_lines(path)] == [3, raw.LONGEST_LINE, 5]
    chunks = list(read_chunks(path, 1 << 16, True))
    assert [len(line) for chunk in chunks for line in chunk.lines()] == [3, raw.LONGEST_LINE, 5]


def test_a_line_without_end_takes_little_memory(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(bytes(1 << 27)))
    tracemalloc.start()
    try:
        for read in (read_lines, lambda path: read_chunks(path, 1 << 16, True)):
            with pytest.raises(UserError, match="line 1: longer than"):
                list(read(path))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
