"""Compressed text: all frames of a .zst file, in bounded memory, and one line for a file that is broken."""

import contextlib
import importlib
import sys
import tracemalloc

import pytest

from rt_plugin.errors import UserError
from rt_plugin.text.raw import open_text, read_lines


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


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "text.zst").write_bytes(b"")
    with pytest.raises(UserError, match=r"text\.zst: reading \.zst needs .* pip install backports\.zstd$"):
        list(read_lines(tmp_path / "text.zst"))
