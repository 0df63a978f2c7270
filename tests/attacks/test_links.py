"""Names that can be guessed, with a link to somebody's file in their place: nothing is written through it."""

import errno
import fcntl
import functools
import os

import pytest
from fairseq.file_io import PathManager
from fairseq.logging import metrics

from conftest import REPOSITORY
from rt_plugin.console.files import appending, continue_log, replacing, replacing_folder, temporary_name
from rt_plugin.console.locks import handed_on, in_turn, only_user_of
from rt_plugin.errors import UserError
from rt_plugin.glue import report, run
from rt_plugin.glue.download import Source, download
from rt_plugin.repairs import resuming
from rt_plugin.replicate.pool import Job, Pool
from rt_plugin.tasks.rt_glue import RtGlueConfig, RtGlueTask


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


def test_a_written_folder_follows_no_link(precious, tmp_path):
    (tmp_path / "QNLI").symlink_to(tmp_path / "elsewhere")
    for kept in ([], [tmp_path / "elsewhere"]):  # to nothing, and to a folder
        for folder in kept:
            folder.mkdir()
        with pytest.raises(UserError, match="QNLI: is a symbolic link"), replacing_folder(tmp_path / "QNLI"):
            pass
        assert {*tmp_path.iterdir()} == {precious, tmp_path / "QNLI", *kept}


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


def test_what_killed_processes_left_is_removed_on_nfs(tmp_path, monkeypatch):
    """It locks a file for one process alone only where that one may write to it."""
    flock = fcntl.flock

    def flock_of_nfs(descriptor, operation):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    temporary_name(tmp_path / "file").touch()
    with replacing(tmp_path / "file") as file:
        file.write(b"x")
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_nothing_is_left_where_files_cannot_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No locks"), replacing(tmp_path / "file"):
        pass
    assert not [*tmp_path.iterdir()] and len(os.listdir("/proc/self/fd")) == opened


def refused(write, path) -> None:
    with pytest.raises(UserError, match=rf"{path.name}: is a symbolic link"):
        write()


def test_what_is_appended_follows_no_link(precious, tmp_path):
    """Logs and the like, whose names everybody knows."""
    for name in ("log.jsonl", "train.log", "job.log", ".QNLI-data:,text.part"):
        (tmp_path / name).symlink_to(precious)
    refused(lambda: continue_log(tmp_path / "log.jsonl", keep_rest=False), tmp_path / "log.jsonl")
    refused(lambda: continue_log(tmp_path / "train.log", keep_rest=True), tmp_path / "train.log")
    refused(lambda: run._redirect_output(tmp_path / "train.log"), tmp_path / "train.log")
    refused(lambda: [*Pool(1, {}).run([Job("job", ["true"], tmp_path / "job.log")])], tmp_path / "job.log")
    download_it = functools.partial(download, ["QNLI"], tmp_path, {"QNLI": Source("data:,text")}, print)
    refused(download_it, tmp_path / ".QNLI-data:,text.part")
    for line in (b"one\n", b"two\n"):
        with appending(tmp_path / "new.log") as file:
            file.write(line)
    assert (tmp_path / "new.log").read_text() == "one\ntwo\n"
    assert precious.read_text() == "kept"


def test_metrics_of_a_fine_tuning_follow_no_link(precious, glue_dir, tmp_path):
    (tmp_path / "dev_metrics.jsonl").symlink_to(precious)
    best = {"best_checkpoint_metric": "loss", "maximize_best_checkpoint_metric": False}
    task = RtGlueTask.setup_task(RtGlueConfig(data=str(glue_dir / "out" / "QNLI"), **best))
    task.write_model_folder(str(tmp_path))
    with metrics.aggregate("train"):
        metrics.log_scalar("loss", 1.0)
        refused(lambda: task._append_metrics({"loss": 1.0}, {}), tmp_path / "dev_metrics.jsonl")
    assert precious.read_text() == "kept"


def test_reports_follow_no_link(precious, tmp_path):
    names = ("table.csv", "differences.csv", "report.md", "learning_rates.png", "boxes.png")
    for name in names:
        (tmp_path / name).symlink_to(precious)
    table = REPOSITORY / "docs" / "results" / "glue-mini" / "roberta_mini.csv"
    assert report.main([str(table), "--out", str(tmp_path)]) == 0
    assert precious.read_text() == "kept"
    assert all((tmp_path / name).stat().st_size and not (tmp_path / name).is_symlink() for name in names)


def test_names_of_tensorboards_files_cannot_be_guessed(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming.time, "time_ns", lambda: 5)
    for _ in range(2):
        resuming._writer(str(tmp_path), 0).close()
    assert len({path.name.split(".", 4)[-1] for path in tmp_path.iterdir()}) == 2
