"""Stored arrays: made once, by one of many processes, and never read damaged."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from rt_plugin.blocks import stored
from rt_plugin.blocks.stored import stored_arrays

KEY = {"data": [10, 20], "length": 5}
ARRAYS = {
    "starts": np.arange(1000, dtype=np.int64) * 3,
    "sizes": np.arange(77, dtype=np.uint16),
    "empty": np.zeros(0, np.int32),
    "pairs": np.arange(6, dtype=np.uint32).reshape(2, 3),
}
fork = multiprocessing.get_context("fork")


class Builder:
    """Counts how often it is asked."""

    def __init__(self, arrays=ARRAYS):
        self.calls, self.arrays = 0, arrays

    def __call__(self):
        self.calls += 1
        return self.arrays


def never():
    raise AssertionError("made again")


def assert_arrays(found, expected=ARRAYS):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_arrays_are_made_once_and_then_mapped(tmp_path):
    assert_arrays(stored_arrays(tmp_path / "new" / "folder", "train.blocks", KEY, Builder()))
    found = stored_arrays(tmp_path / "new" / "folder", "train.blocks", KEY, never)
    assert_arrays(found)
    with pytest.raises(ValueError, match="read-only"):
        found["starts"][0] = 1


def test_another_key_is_another_file_and_other_data_take_the_place(tmp_path):
    other = {"sizes": np.ones(3, np.uint16)}
    stored_arrays(tmp_path, "train.blocks", KEY, Builder())
    assert_arrays(stored_arrays(tmp_path, "train.blocks", {**KEY, "length": 6}, Builder(other)), other)
    assert_arrays(stored_arrays(tmp_path, "train.batches", KEY, Builder(other)), other)
    assert_arrays(stored_arrays(tmp_path, "train.blocks", KEY, never))
    assert len(files(tmp_path)) == 3
    assert_arrays(stored_arrays(tmp_path, "train.blocks", {**KEY, "data": [10, 21]}, Builder(other)), other)
    assert [name.rsplit(".", 1)[0] for name in files(tmp_path)] == ["train.batches", "train.blocks"]


def cut(content):
    return content[:-1]


def flip(content):
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        lambda content: content + b"\0",
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:8] + b"\xff" * 8 + content[16:],
        lambda content: content.replace(b'"version": 1', b'"version": 2'),
        lambda content: b"something else, and longer than a header would be",
    ],
    ids=["cut", "a bit", "longer", "empty", "header cut", "header's length", "version", "other"],
)
def test_damaged_files_are_made_anew(damage, tmp_path, caplog):
    stored_arrays(tmp_path, "train.blocks", KEY, Builder())
    (name,) = files(tmp_path)
    whole = (tmp_path / name).read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    (tmp_path / name).write_bytes(damaged)
    builder = Builder()
    assert_arrays(stored_arrays(tmp_path, "train.blocks", KEY, builder))
    assert builder.calls == 1
    assert f"{name} cannot be used and is made anew" in caplog.text
    assert (tmp_path / name).read_bytes() == whole


def test_folder_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    builder = Builder()
    assert_arrays(stored_arrays(tmp_path / "file" / "blocks", "train.blocks", KEY, builder))
    assert builder.calls == 1
    (line,) = caplog.messages
    assert "cannot be written (Not a directory); every process works out the train.blocks" in line


def test_full_disk_keeps_the_arrays_in_memory(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(
        stored, "write_arrays", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    builder = Builder()
    assert_arrays(stored_arrays(tmp_path, "train.blocks", KEY, builder))
    assert builder.calls == 1
    assert "No space left on device" in caplog.text


def build_slowly(folder, calls):
    def build():
        with calls.get_lock():
            calls.value += 1
        time.sleep(0.5)
        return ARRAYS

    assert_arrays(stored_arrays(folder, "train.blocks", KEY, build))


def test_of_processes_that_start_at_once_one_works(tmp_path):
    calls = fork.Value("i", 0)
    processes = [fork.Process(target=build_slowly, args=(tmp_path, calls)) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 5
    assert calls.value == 1


@pytest.mark.parametrize("moment", ["while it is made", "while it is written", "before it gets its name"])
def test_a_process_killed_at_work_leaves_nothing_in_the_way(moment, tmp_path):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def child():
        if moment == "before it gets its name":
            os.replace = die
        if moment == "while it is written":
            os.fsync = die
        stored_arrays(tmp_path, "train.blocks", KEY, die if moment == "while it is made" else Builder())

    process = fork.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    builder = Builder()
    assert_arrays(stored_arrays(tmp_path, "train.blocks", KEY, builder))
    assert builder.calls == 1
    assert len(files(tmp_path)) == 1
