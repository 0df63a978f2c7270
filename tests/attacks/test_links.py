"""Names that can be guessed, with a link to somebody's file in their place: nothing is written through it."""

import os

import pytest
from fairseq.file_io import PathManager

from rt_plugin.console.files import replacing, temporary_name
from rt_plugin.console.locks import handed_on, in_turn, only_user_of
from rt_plugin.errors import UserError


@pytest.fixture
def precious(tmp_path):
    file = tmp_path / "precious"
    file.write_text("kept")
    return file


def test_a_written_file_follows_no_link(precious, tmp_path):
    for name in ("model.pt", "model.pt.tmp", ".model.pt.tmp"):
        (tmp_path / name).symlink_to(precious)
    with replacing(tmp_path / "model.pt") as file:
        file.write(b"new")
    assert (tmp_path / "model.pt").read_text() == "new" and not (tmp_path / "model.pt").is_symlink()
    assert precious.read_text() == "kept"


def test_a_copied_checkpoint_follows_no_link(precious, tmp_path, monkeypatch):
    (tmp_path / "checkpoint_best.pt.tmp").symlink_to(precious)
    (tmp_path / "checkpoint1.pt").write_text("new")
    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no hard links here")))
        assert PathManager.copy(str(tmp_path / "checkpoint1.pt"), str(tmp_path / "checkpoint_best.pt"), overwrite=True)
        assert (tmp_path / "checkpoint_best.pt").read_text() == "new"
    assert precious.read_text() == "kept" and (tmp_path / "checkpoint_best.pt.tmp").is_symlink()


def test_locks_follow_no_link_and_empty_nothing(precious, tmp_path):
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match="cannot be written"), only_user_of(tmp_path, "busy"):
        pass
    with pytest.raises(OSError, match="symbolic"), in_turn(tmp_path / ".lock"):
        pass
    with pytest.raises(UserError, match=r"\.lock: is a symbolic link"), handed_on(tmp_path, ".lock", "{process}"):
        pass
    assert precious.read_text() == "kept"
    os.link(precious, tmp_path / ".lock2")
    with only_user_of(tmp_path, "busy", tmp_path / ".lock2"):
        assert precious.read_text() == "kept"


def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "file") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_what_killed_processes_left_is_removed(tmp_path):
    left, other = (temporary_name(tmp_path / name) for name in ("file", "file2"))
    for path in (left, other):
        path.touch()
    with replacing(tmp_path / "file") as held:
        (path,) = {*tmp_path.iterdir()} - {other}
        assert path != left
        with replacing(tmp_path / "file") as file:  # another writer leaves what is held
            file.write(b"first")
        assert path.exists()
        held.write(b"second")
    assert {*tmp_path.iterdir()} == {tmp_path / "file", other}
    assert (tmp_path / "file").read_text() == "second"
