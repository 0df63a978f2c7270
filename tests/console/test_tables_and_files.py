"""Tables, folders that appear whole, and the last line of a log."""

import os

import pytest

from rt_plugin.console.files import check_output, last_line, replacing, replacing_folder
from rt_plugin.console.tables import markdown_table, plain_table
from rt_plugin.errors import UserError

HEADINGS = ("task", "rows", "labels")
ROWS = [("QNLI", "1,234", "-"), ("RTE", "5e-4", "a 1, b 20")]


def test_plain_table_leaves_cells_as_they_are():
    assert plain_table(HEADINGS, ROWS).splitlines() == [
        "task   rows     labels",
        "QNLI  1,234          -",
        "RTE    5e-4  a 1, b 20",
    ]


def test_any_column_may_be_to_the_left():
    assert plain_table(HEADINGS, ROWS, left=(0, 2)).splitlines() == [
        "task   rows  labels",
        "QNLI  1,234  -",
        "RTE    5e-4  a 1, b 20",
    ]


def test_markdown_table_names_the_sides():
    lines = markdown_table(HEADINGS, ROWS, left=(0, 1)).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(HEADINGS)
    assert [cell.strip("-") for cell in lines[1].strip("|").split("|")] == [":", ":", ":"]
    assert [cell.endswith(":") for cell in lines[1].strip("|").split("|")] == [False, False, True]
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == list(ROWS[1])


@pytest.mark.parametrize(
    ("content", "line"),
    [(None, "nothing"), ("", "nothing"), (" \n\n", "nothing"), ("a\n b \n \n", "b"), ("a\nb", "b")],
)
def test_last_line_of_a_log(content, line, tmp_path):
    if content is not None:
        (tmp_path / "log").write_text(content)
    assert last_line(tmp_path / "log", "nothing") == line


def test_a_folder_replaces_another_whole_or_not_at_all(tmp_path):
    target = tmp_path / "data"
    for content in ("old", "new"):
        with replacing_folder(target) as folder:
            (folder / content).touch()
            assert not (target / content).exists()
        assert [path.name for path in target.iterdir()] == [content]
    with pytest.raises(ZeroDivisionError), replacing_folder(target) as folder:
        (folder / "broken").touch()
        raise ZeroDivisionError
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_a_killed_process_left_is_no_part_of_the_folder(tmp_path):
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / "half").touch()
    with replacing_folder(tmp_path / "data") as folder:
        (folder / "whole").touch()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["whole"]


def test_a_pipe_stays_a_pipe(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for target in (pipe, link):
        with pytest.raises(UserError, match="is a pipe or a device, expected a file"), replacing(target):
            pass
        with pytest.raises(UserError, match="is a pipe or a device"):
            check_output(target)
    assert pipe.is_fifo()
    assert link.is_symlink()
