"""docs/using-a-model: its Python gives what it says, and the notebook runs."""

import doctest
import os

import nbclient
import nbformat
import pytest

from conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "using-a-model.ipynb"


def test_the_page(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    results = doctest.testfile(str(NOTEBOOK.with_suffix(".md")), module_relative=False, encoding="utf-8")
    assert results.attempted > 7 and not results.failed


def test_the_notebook_but_for_its_training(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    names = {}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and "slow" not in cell.metadata.get("tags", []):
            assert not cell.outputs
            exec(compile(cell.source, NOTEBOOK.name, "exec"), names)
    said = capsys.readouterr().out
    assert "The president of the United States signed the law." in said and "(3, 256)" in said


@pytest.mark.slow
def test_the_whole_notebook(monkeypatch):
    """In a kernel of this Python, as Jupyter runs it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    last = notebook.cells[-1].outputs[0]["data"]["text/plain"]
    assert last.count("entailment") == 2
