"""docs/results: the committed reports come from the committed CSV files, and the tables of the documents from them."""

import re

import pytest
import remake_results

from conftest import REPOSITORY, rows_of_table

DOCS = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
TABLE = r"(?:^\|.*\n)+"
FROM_RESULTS = re.compile(rf"<!-- of (\S+)/report\.md -->\n\n({TABLE})", re.MULTILINE)
SHOWN = re.compile(r"!\[[^\]]*\]\((\S+\.png)\)")


@pytest.mark.parametrize("folder", remake_results.folders(), ids=lambda folder: folder.name)
def test_reports_come_from_the_csv_files(folder, tmp_path):
    """Texts and the data of figures are the same; figures themselves depend on matplotlib's version."""
    remake_results.remake(folder, tmp_path)
    made = {path.name: path for path in tmp_path.iterdir()}
    assert "report.md" in made
    for name, path in made.items():
        if name.endswith(".png"):
            assert (folder / name).is_file(), "run: python scripts/remake_results.py"
        else:
            assert path.read_text("utf-8") == (folder / name).read_text("utf-8"), (
                f"python scripts/remake_results.py {folder}"
            )
    drawn = {path.name for path in folder.glob("*.png")}
    assert drawn == {name for name in made if name.endswith(".png")}


def test_tables_in_the_docs_are_those_of_the_report():
    """Each row of a table with this mark is a row of the report, or the part of one that is in columns of that name."""
    tables = [(path, *found) for path in DOCS for found in FROM_RESULTS.findall(path.read_text(encoding="utf-8"))]
    assert {"replication.md", "glue.md", "evaluation.md", "README.md"} == {path.name for path, *_ in tables}
    for path, folder, table in tables:
        text = (path.parent / folder / "report.md").read_text(encoding="utf-8")
        known = [row.items() for found in re.findall(TABLE, text, re.MULTILINE) for row in rows_of_table(found)]
        for row in rows_of_table(table):
            assert any(row.items() <= there for there in known), f"{path}: {row}"


def test_figures_in_the_docs_are_there():
    for path in DOCS:
        for shown in SHOWN.findall(path.read_text(encoding="utf-8")):
            assert (path.parent / shown).is_file(), f"{path}: {shown}"


def test_a_folder_without_results_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["remake_results.py", str(tmp_path)])
    assert remake_results.main() == 1
    assert "found no results, expected one of plan.json, " in capsys.readouterr().err
