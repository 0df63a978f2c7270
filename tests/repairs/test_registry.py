"""What repairs declare is what they do, what the tests cover and what the documentation says."""

import re
from pathlib import Path

import pytest

import repairs_table
from conftest import REPOSITORY
from rt_plugin.repairs import registry

REPAIRS = registry.all_repairs()


def test_every_repair_has_a_test_of_its_topic():
    for topic in registry.TOPICS:
        source = Path(__file__).with_name(f"test_{topic}.py").read_text(encoding="utf-8")
        names = [one.name for one in REPAIRS if one.topic == topic]
        assert names and [name for name in names if f'"{name}"' not in source] == []


@pytest.mark.parametrize("one", REPAIRS, ids=lambda one: one.name)
def test_a_repair_replaces_what_it_declares(one):
    with registry.without("warnings_for_fairseq"):
        pass  # makes all repairs again
    assert sorted(registry.patched_names(one.name)) == sorted(one.patches)


def test_declarations_are_complete():
    kinds = dict.fromkeys(registry.TOPICS, "repair") | {"behaviour": "changed behaviour", "refusals": "refusal"}
    for one in REPAIRS:
        assert one.kind == kinds[one.topic], one.name
        assert one.without and one.until, one.name
        assert all(re.fullmatch(r"[\w-]+/[\w-]+#\d+", thread) for thread in one.threads), one.name


def test_refusals_come_first_whichever_module_is_imported_first():
    """Of two wrappers of one function the one that was made last is called first."""
    assert [one.topic for one in REPAIRS] == sorted((one.topic for one in REPAIRS), key=registry.TOPICS.index)
    assert registry.TOPICS[-1] == "refusals"


def test_tables_in_the_documentation_are_up_to_date():
    documented = (REPOSITORY / "docs" / "fairseq.md").read_text(encoding="utf-8")
    assert repairs_table.with_tables(documented) == documented, "run: python scripts/repairs_table.py"
    assert [one.name for one in REPAIRS if f"| `{one.name}` ({one.topic}) |" not in documented] == []


def test_another_fairseq_is_told_in_one_warning(caplog):
    registry.make_all(registry.FAIRSEQ_VERSION)
    assert not caplog.records
    registry.make_all("0.12.2")
    (record,) = caplog.records
    assert "fairseq is 0.12.2 here" in record.message and "fairseq-fixed==0.12.3.1" in record.message
