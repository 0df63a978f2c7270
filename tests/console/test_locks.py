"""A folder is taken by one run at a time; a lock that is handed on is held as long as either process lives."""

import os
import subprocess
import sys
import threading
import time

import pytest

from rt_plugin.console.locks import handed_on, in_turn, note_holder, only_user_of
from rt_plugin.errors import UserError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_second_user_is_refused_until_the_first_is_done(tmp_path):
    folder = tmp_path / "new" / "folder"
    with only_user_of(folder, "taken"):
        with pytest.raises(UserError, match=f"^{folder}: taken$"), only_user_of(folder, "taken"):
            pytest.fail("two at a time")
        with only_user_of(tmp_path, "taken"):
            pass
    with only_user_of(folder, "taken"):
        pass


def test_children_do_not_keep_the_folder(tmp_path):
    """Neither one that was started nor one that was forked."""
    with only_user_of(tmp_path, "taken"):
        child = subprocess.Popen(SLEEP, close_fds=False)
        forked = os.fork()
        if not forked:
            time.sleep(60)
            os._exit(0)
    try:
        with only_user_of(tmp_path, "taken"):
            pass
    finally:
        child.kill()
        child.wait()
        os.kill(forked, 9)
        os.waitpid(forked, 0)


def test_a_forked_child_does_not_hold_the_lock_of_a_process_that_was_killed(tmp_path):
    reading, writing = os.pipe()
    holder = os.fork()
    if not holder:
        with only_user_of(tmp_path, "taken"):
            child = os.fork()
            if child:
                os.write(writing, f"{child}\n".encode())
            time.sleep(60)
        os._exit(0)
    child = int(os.read(reading, 20))
    os.kill(holder, 9)
    os.waitpid(holder, 0)
    try:
        with in_turn(tmp_path / ".lock"):  # at once; until the child has started, it waits
            os.kill(child, 0)
    finally:
        os.kill(child, 9)
        os.close(reading)
        os.close(writing)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written"), only_user_of(tmp_path / "file", "taken"):
        pass


def test_in_turn_waits(tmp_path):
    mine = threading.Event()

    def wait_and_take() -> None:
        with in_turn(tmp_path / "lock"):
            mine.set()

    with in_turn(tmp_path / "lock"):
        second = threading.Thread(target=wait_and_take)
        second.start()
        assert not mine.wait(0.3)
    assert mine.wait(20)
    second.join()


def test_lock_that_is_handed_on_outlives_its_first_holder(tmp_path):
    (tmp_path / "lock").write_text("4711 of a run before")
    with handed_on(tmp_path, "lock", "used by {process}") as lock:
        child = subprocess.Popen(SLEEP, pass_fds=[lock])
        note_holder(lock, child.pid)
    expected = f"^{tmp_path}: used by {child.pid}$"
    with pytest.raises(UserError, match=expected), handed_on(tmp_path, "lock", "used by {process}"):
        pass
    assert (tmp_path / "lock").read_text() == str(child.pid), "emptied by who did not get the lock"
    child.kill()
    child.wait()
    with handed_on(tmp_path, "lock", "used by {process}"):
        assert (tmp_path / "lock").read_text() == ""
