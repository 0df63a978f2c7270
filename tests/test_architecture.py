"""The rooms keep to the table of scripts/architecture.py: imports point one way, in no circle, to public names."""

import doctest
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import architecture
from conftest import REPOSITORY

MODULES = architecture.modules()
IMPORTS = architecture.read_imports(MODULES)


def lines(imports):
    return "\n".join(f"{i.place}: {i.source} imports {i.target} {i.name}" for i in imports)


def test_every_room_is_in_the_table():
    rooms = {architecture.room_of(module) for module in MODULES}
    assert rooms - set(architecture.COMPOSITION_ROOTS) == set(architecture.MAY_IMPORT)


def test_the_table_itself_points_one_way():
    table = [
        architecture.Import(f"rt_plugin.{room}", f"rt_plugin.{other}", "", "table")
        for room, others in architecture.MAY_IMPORT.items()
        for other in others
    ]
    assert architecture.circle(table) == []


def test_no_import_points_upwards():
    found = architecture.forbidden(IMPORTS)
    assert not found, lines(found)


def test_no_modules_import_each_other():
    assert architecture.circle(IMPORTS) == []


def test_private_names_stay_in_their_file():
    scripts = {path.stem: path for path in (REPOSITORY / "scripts").glob("*.py")}
    found = architecture.read_private_uses({**MODULES, **scripts}, MODULES)
    assert not found, lines(found)


def test_the_glue_table_needs_the_standard_library_alone():
    """By itself, and with what it imports of the package."""
    found = architecture.needed_from_outside(architecture.STANDARD_LIBRARY_ONLY, IMPORTS)
    assert found and found <= sys.stdlib_module_names


def test_no_folder_that_fairseq_would_import_by_itself():
    """fairseq imports every file in <user-dir>/models."""
    assert not (REPOSITORY / "rt_plugin" / "models").exists()


@pytest.fixture
def package(tmp_path):
    """Writes a small package, and reads it."""

    def write(**files):
        for name, code in files.items():
            path = tmp_path / "rt_plugin" / Path(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        return architecture.modules(tmp_path)

    return write


@pytest.mark.parametrize(
    "code",
    [
        "from rt_plugin.glue import specs",
        "from rt_plugin.glue.specs import TASKS",
        "def f():\n    import rt_plugin.glue.specs",
        "from ..glue.specs import TASKS",
        "import importlib\nimportlib.import_module('rt_plugin.glue.specs')",
    ],
)
def test_an_arrow_upwards_is_seen(code, package):
    files = package(text__raw=code, glue__specs="TASKS = ()")
    (found,) = architecture.forbidden(architecture.read_imports(files))
    assert (found.source, found.target) == ("rt_plugin.text.raw", "rt_plugin.glue.specs")


def test_what_points_downwards_is_allowed(package):
    files = package(text__raw="TEXT = 1", glue__specs="from rt_plugin.text.raw import TEXT")
    assert architecture.forbidden(architecture.read_imports(files)) == []


def test_what_is_needed_from_outside_is_seen(package):
    files = package(glue__specs="import re\nfrom rt_plugin.text.raw import A", text__raw="import numpy.random\nA = 1")
    assert architecture.needed_from_outside("rt_plugin.glue.specs", architecture.read_imports(files)) == {"re", "numpy"}


def test_a_circle_is_seen(package):
    files = package(text__raw="import rt_plugin.text.b", text__b="def f():\n    from rt_plugin.text import raw")
    assert set(architecture.circle(architecture.read_imports(files))) == {"rt_plugin.text.raw", "rt_plugin.text.b"}


@pytest.mark.parametrize(
    "code",
    [
        "from rt_plugin.text.raw import _hidden",
        "from rt_plugin.text import raw\nraw._hidden()",
        "from rt_plugin.text.raw import Text as T\nT._hidden()",
        "from rt_plugin.text._parts import cut",
    ],
)
def test_a_private_name_is_seen(code, package):
    files = package(glue__specs=code, text__raw="", text___parts="", text__open="from rt_plugin.text._parts import cut")
    assert [i.source for i in architecture.read_private_uses(files, files)] == ["rt_plugin.glue.specs"]


def test_the_picture_is_that_of_the_code():
    script = REPOSITORY / "scripts" / "draw_architecture.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


DOCUMENT = REPOSITORY / "docs" / "architecture.md"


def test_the_document_names_what_is_there():
    names = set(re.findall(r"`(rt_plugin(?:\.\w+)+)`", DOCUMENT.read_text(encoding="utf-8")))
    assert len(names) > 10
    for name in names:
        pkgutil.resolve_name(name)


def test_the_way_of_a_sentence(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert doctest.testfile(str(DOCUMENT), module_relative=False, encoding="utf-8").failed == 0
