"""Tables, and the last line of a log."""

import pytest

from rt_plugin.console.files import last_line
from rt_plugin.console.tables import markdown_table, plain_table

HEADINGS = ("task", "rows", "labels")
ROWS = [("QNLI", "1,234", "-"), ("RTE", "5e-4", "a 1, b 20")]


def test_plain_table_leaves_cells_as_they_are():
    assert plain_table(HEADINGS, ROWS).splitlines() == [
        "task      rows     labels",
        "QNLI     1,234          -",
        "RTE       5e-4  a 1, b 20",
    ]


def test_any_column_may_be_to_the_left():
    assert plain_table(HEADINGS, ROWS, left=(0, 2)).splitlines() == [
        "task      rows  labels",
        "QNLI     1,234  -",
        "RTE       5e-4  a 1, b 20",
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
