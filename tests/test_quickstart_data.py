"""The sample data of examples/quickstart: complete, as its README says, with no dev pair in the text."""

import collections
import csv
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "quickstart"


def documents(split):
    return (FOLDER / f"{split}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n\n")


def pairs(split):
    with (FOLDER / "QNLI" / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def letters(text):
    """What is left of a text without spaces, punctuation and case, which differ between the sources."""
    return re.sub(r"\W+", "", text).casefold()


@pytest.mark.parametrize(("split", "count", "lines"), [("train", 3406, 36139), ("valid", 87, 893)])
def test_text_is_what_the_readme_says(split, count, lines):
    found = documents(split)
    assert (len(found), sum(len(document.split("\n")) for document in found)) == (count, lines)


def test_every_document_is_attributed():
    with (FOLDER / "documents.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len({row["title"] for row in rows}) == len(rows)
    for split in ("train", "valid"):
        lengths = [int(row["lines"]) for row in rows if row["split"] == split]
        assert lengths == [len(document.split("\n")) for document in documents(split)]


def test_no_document_is_in_both_splits():
    training = set(documents("train"))
    assert not [document for document in documents("valid") if document in training]


@pytest.mark.parametrize(
    ("split", "labels"),
    [
        ("train", {"entailment": 3018, "not_entailment": 2982}),
        ("dev", {"entailment": 471, "not_entailment": 529}),
    ],
)
def test_pairs_are_what_the_readme_says(split, labels):
    rows = pairs(split)
    assert list(rows[0]) == ["index", "question", "sentence", "label"]
    assert collections.Counter(row["label"] for row in rows) == labels
    assert all(row["question"].strip() and row["sentence"].strip() for row in rows)


def test_no_dev_pair_occurs_in_the_text_or_in_training():
    text = letters("".join(documents("train") + documents("valid")))
    training = {letters(row["sentence"]) for row in pairs("train")}
    for row in pairs("dev"):
        sentence = letters(row["sentence"])
        assert sentence not in text and letters(row["question"]) not in text and sentence not in training


def test_licences_are_named():
    attribution = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "by-sa/3.0" in attribution and "by-sa/4.0" in attribution
