"""docs/results: the committed reports come from the committed CSV files, and the tables of the documents from them."""

import csv
import hashlib
import re

import pytest
import remake_results

from conftest import REPOSITORY, rows_of_table
from rt_plugin.text.tokenizer import Tokenizer

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


ARMS_OF_MODELS = {
    "recurrent_roberta_mini_alternate": ("laptop-mini-rate", "swish-rnn-alternate"),
    "recurrent_roberta_mini": ("laptop-mini-rate", "swish-rnn"),
    "roberta_mini": ("laptop-mini", "ffn"),
}


def final_run(folder: str, arm: str) -> dict[str, str]:
    with (REPOSITORY / "docs" / "results" / folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        (run,) = (row for row in csv.DictReader(file) if row["stage"] == "final" and row["arm"] == arm)
    return run


@pytest.mark.parametrize("model", ARMS_OF_MODELS)
def test_figures_of_the_committed_models_are_those_of_their_runs(model):
    """On the first page, on that of the pretraining and on the model's card."""
    run = final_run(*ARMS_OF_MODELS[model])
    loss = float(run["valid_loss"])
    first, pretraining = (
        row
        for path in (REPOSITORY / "README.md", REPOSITORY / "docs" / "pretraining.md")
        for table in re.findall(TABLE, path.read_text(encoding="utf-8"), re.MULTILINE)
        for row in rows_of_table(table)
        if "of `<mask>` alone" in row and float(row["validation loss, bits"]) == loss
    )
    assert f"`{model}`" in first[next(iter(first))]
    assert first["tokens read"] == f"{float(run['tokens']) / 1e6:.0f} M"
    assert first["perplexity"] == pretraining["perplexity"]
    assert float(first["perplexity"]) == pytest.approx(2**loss, abs=0.05 + 2**loss * 0.0005)  # both are rounded
    assert pretraining["parameters"] == f"{int(run['parameters']):,}"
    assert float(pretraining["learning rate"]) == float(run["learning_rate"])
    assert pretraining["updates"] == f"{int(run['updates']):,}"
    assert pretraining["hours"] == f"{float(run['hours']):.2f}"
    card = (REPOSITORY / "examples" / "checkpoints" / model / "README.md").read_text(encoding="utf-8")
    assert f"| validation loss | {loss:.3f} " in card


def test_the_tokenizer_of_the_replication_is_the_one_its_page_names():
    """Its dictionary decides the ids, and with them `train.bin`."""
    dictionary = Tokenizer.load(REPOSITORY / "docs" / "results" / "laptop" / "tokenizer").dictionary()
    digest = hashlib.sha256(dictionary.encode()).hexdigest()
    text = (REPOSITORY / "docs" / "replication.md").read_text(encoding="utf-8")
    assert re.search(r"their `dict\.txt`\s+`(\w+)\.\.\.`", text)[1] == digest[:12]


def test_figures_in_the_docs_are_there():
    for path in DOCS:
        for shown in SHOWN.findall(path.read_text(encoding="utf-8")):
            assert (path.parent / shown).is_file(), f"{path}: {shown}"


def test_a_folder_without_results_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["remake_results.py", str(tmp_path)])
    assert remake_results.main() == 1
    assert "found no results, expected one of plan.json, " in capsys.readouterr().err
