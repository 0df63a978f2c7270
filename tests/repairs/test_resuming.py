"""A training that is started again: a finished one stays as it is, clock and TensorBoard are of all attempts."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from fairseq.logging import progress_bar

from repair_cases import with_and_without


def logged(caplog) -> list[dict]:
    """What training logged every few updates."""
    records = [json.loads(record.getMessage()) for record in caplog.records if record.name == "train_inner"]
    caplog.clear()
    return records


def test_finished_training(train_here, caplog):
    """Started once more, a finished training writes nothing; with more updates to make, it goes on."""
    caplog.set_level("INFO")
    options = ("--save-interval-updates", "3", "--keep-interval-updates", "2", "--log-interval", "1")
    folder = train_here(*options, "--max-update", "3")
    first = {path: path.read_bytes() for path in folder.glob("*.pt")}
    assert len(first) == 2
    logged(caplog)

    def again():
        for path, content in first.items():
            path.write_bytes(content)
        train_here(*options, "--max-update", "3", save_dir=folder)
        assert logged(caplog) == []
        assert {path: path.read_bytes() for path in folder.glob("*.pt")} == first

    assert isinstance(with_and_without("finished_training", again), AssertionError)
    train_here(*options, "--max-update", "5", save_dir=folder)
    assert [record["num_updates"] for record in logged(caplog)] == ["4", "5"]


def test_patience_of_all_attempts(train_here, tmp_path, caplog):
    """Nothing gets better where the learning rate is next to nothing: after the third validation training ends."""
    caplog.set_level("INFO")
    interval = ("--validate-interval-updates", "1", "--save-interval-updates", "1", "--log-interval", "1")
    options = (*interval, "--lr", "1e-20", "--max-valid-steps", "0", "--keep-interval-updates", "1")
    folders = (tmp_path / str(number) for number in itertools.count())

    def train_twice_and_again():
        folder = next(folders)
        for updates, made in ((2, ["1", "2"]), (9, ["3"]), (9, [])):
            train_here(*options, "--patience", "2", "--max-update", updates, save_dir=folder, validate=True)
            assert [record["num_updates"] for record in logged(caplog)] == made
        train_here(*options, "--patience", "4", "--max-update", "9", save_dir=folder, validate=True)
        assert [record["num_updates"] for record in logged(caplog)] == ["4", "5"]

    assert isinstance(with_and_without("patience_of_all_attempts", train_twice_and_again), AssertionError)


def test_clock_of_all_attempts(train_here, caplog):
    """Resumed within an epoch and at its end, `wall` goes on from what the checkpoint says."""
    caplog.set_level("INFO")
    options = ("--save-interval-updates", "3", "--log-interval", "1")
    within = train_here(*options, "--max-update", "3")
    at_end = train_here("--batch-size", "128", "--max-epoch", "1", "--max-update", "1000")
    for folder in (within, at_end):
        path = folder / "checkpoint_last.pt"
        state = torch.load(path, weights_only=True)
        assert (state["extra_state"]["train_iterator"]["iterations_in_epoch"] == 0) == (folder == at_end)
        state["extra_state"]["previous_training_time"] = torch.tensor(7200.0)  # several processes save it so
        torch.save(state, path)
    updates = state["last_optimizer_state"] and state["optimizer_history"][-1]["num_updates"]
    logged(caplog)

    def resume():
        train_here(*options, "--no-save", "--restore-file", within / "checkpoint_last.pt", "--max-update", "5")
        last = ("--batch-size", "128", "--max-update", updates + 1)
        train_here(*options, "--no-save", "--restore-file", at_end / "checkpoint_last.pt", *last)
        walls = [float(record["wall"]) for record in logged(caplog)]
        assert len(walls) == 3 and min(walls) >= 7200, walls
        train_here(*options, "--no-save", "--finetune-from-model", within / "checkpoint_last.pt", "--max-update", "1")
        (wall,) = (float(record["wall"]) for record in logged(caplog))
        assert wall < 3600, "the hours of the model that training starts from do not count"

    assert isinstance(with_and_without("clock_of_all_attempts", resume), AssertionError)


def events(path: Path) -> list:
    """What is in an event file of TensorBoard: records of a length (8 bytes), its checksum (4), data, theirs (4)."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def points(folder: Path) -> list[int]:
    """The updates that TensorBoard shows: an attempt's start removes what is known from there on."""
    shown: list[int] = []
    for path in sorted(folder.iterdir()):
        for event in events(path):
            if event.HasField("session_log"):
                shown = [step for step in shown if step < event.step]
            shown += [event.step for value in event.summary.value if value.tag == "loss"]
    return shown


def test_tensorboard_of_all_attempts(tmp_path, monkeypatch):
    """Points are on disk as soon as they are logged, and those of a resumed training are there once."""
    pytest.importorskip("tensorboardX")
    folders = (tmp_path / str(number) for number in itertools.count())

    def attempts():
        folder = next(folders)
        for updates in (range(1, 8), range(5, 11), range(10, 13)):  # killed after 7, taken up after 4, and so on
            monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})
            bar = progress_bar.TensorboardProgressBarWrapper(progress_bar.BaseProgressBar([]), str(folder))
            monkeypatch.setattr(bar.wrapped_bar, "log", lambda *args, **kwargs: None)
            for update in updates:
                bar.log({"loss": 2.0, "num_updates": update}, tag="train_inner", step=update)
                assert points(folder / "train_inner") == list(range(1, update + 1))

    assert isinstance(with_and_without("tensorboard_of_all_attempts", attempts), AssertionError)
