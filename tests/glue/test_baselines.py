"""The floor of GLUE tables: on made-up tasks with a known answer, and on layouts of the official files."""

import csv

import pytest

from conftest import write_tsv
from rt_plugin.glue import baselines
from rt_plugin.glue.hold_out import is_held_out
from rt_plugin.glue.linear_models import Split
from rt_plugin.glue.results import COLUMNS
from rt_plugin.glue.specs import BY_NAME

NAMES = ("Anna", "Ben", "Carla", "Dora", "Emil", "Frieda", "Georg", "Hanna")


def run(*arguments):
    return baselines.main([*map(str, arguments)])


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == list(COLUMNS)
    return {(row["task"], row["model"]): row for row in found}


def write_cola(folder, count, share_of_ones=0.75):
    """The label is told by one word; the classes are unequal."""
    for split, offset in (("train", 0), ("dev", 3)):
        lines = []
        for i in range(count):
            good = i % 100 < 100 * share_of_ones
            word = "gladly" if good else "gladlier"
            name = NAMES[(i + offset) % len(NAMES)]
            lines.append(("src", str(int(good)), "", f"{name} {word} came at {(i + offset) % 9} ."))
        write_tsv(folder / "CoLA" / f"{split}.tsv", lines)


def write_sts(folder, count):
    """The score is how many of five words two sentences share."""
    for split, offset in (("train", 0), ("dev", 1)):
        lines = [("sentence1", "sentence2", "score")]
        for i in range(offset, offset + count):
            words = [f"{name}{(i * k) % 11}" for k, name in enumerate(NAMES[:5], start=1)]
            other = [word if place < i % 6 else f"other{(i + place) % 7}" for place, word in enumerate(words)]
            lines.append((" ".join(words), " ".join(other), f"{i % 6}.0"))
        write_tsv(folder / "STS-B" / f"{split}.tsv", lines)


def test_a_task_that_a_word_decides(tmp_path, capsys):
    write_cola(tmp_path, 200)
    assert run(tmp_path, tmp_path / "floor.csv") == 0
    found = rows(tmp_path / "floor.csv")
    assert list(found) == [("CoLA", "majority"), ("CoLA", "tf-idf")]
    majority, tfidf = found.values()
    assert float(majority["best_accuracy"]) == float(majority["majority"]) == 0.75
    assert float(majority["best_score"]) == 0  # Matthews correlation of a constant
    assert float(tfidf["best_score"]) == float(tfidf["last_score"]) == 1
    assert {row["lr"] for row in found.values()} == {""} and {row["failed"] for row in found.values()} == {"0"}
    assert "| CoLA   | tf-idf   |   100.0 |" in capsys.readouterr().out


def test_scores_by_cosine_and_overlap(tmp_path):
    write_sts(tmp_path, 120)
    assert run(tmp_path, tmp_path / "floor.csv") == 0
    found = rows(tmp_path / "floor.csv")
    assert list(found) == [("STS-B", "cosine"), ("STS-B", "majority"), ("STS-B", "tf-idf")]
    assert found["STS-B", "majority"]["best_score"] == "undefined"
    assert float(found["STS-B", "cosine"]["best_spearman"]) > 0.8
    assert float(found["STS-B", "tf-idf"]["best_pearson"]) > 0.95


def test_official_layouts(glue_dir, tmp_path):
    """Pairs with classes, scores, and two dev sets."""
    # by name: other tests put more tasks into the folder
    assert run(glue_dir, tmp_path / "floor.csv", "--tasks", "STS-B", "MNLI", "QNLI") == 0
    found = rows(tmp_path / "floor.csv")
    assert [task for task, model in found if model == "tf-idf"] == ["STS-B", "MNLI", "QNLI"]
    mnli = found["MNLI", "majority"]
    assert float(mnli["best_accuracy"]) == pytest.approx(1 / 3) and mnli["best_accuracy_mismatched"]
    assert found["QNLI", "majority"]["best_accuracy_mismatched"] == ""


def test_the_same_input_gives_the_same_rows(tmp_path):
    write_cola(tmp_path, 100)
    found = []
    for name in ("one.csv", "two.csv"):
        assert run(tmp_path, tmp_path / name) == 0
        found.append([{**row, "seconds": ""} for row in rows(tmp_path / name).values()])
    assert found[0] == found[1]


def test_the_dev_set_is_no_part_of_the_choice(tmp_path):
    """Other labels in the dev set change scores, and nothing else: not what was chosen."""
    write_cola(tmp_path, 100)
    path = tmp_path / "CoLA" / "dev.tsv"
    outputs = []
    for swap in (False, True):
        if swap:
            lines = path.read_text().splitlines()
            path.write_text(
                "".join(f"src\t{1 - int(line.split(chr(9))[1])}\t\t{line.split(chr(9))[3]}\n" for line in lines)
            )
        assert run(tmp_path, tmp_path / "floor.csv") == 0
        outputs.append(float(rows(tmp_path / "floor.csv")["CoLA", "tf-idf"]["best_score"]))
    assert outputs == [1, -1]


def test_rows_held_out_take_the_place_of_the_dev_set(tmp_path, capsys):
    """The dev set is not read, and need not be there; the same rows are held out as elsewhere."""
    write_sts(tmp_path, 120)
    (tmp_path / "STS-B" / "dev.tsv").write_text("broken, and never read\n")
    assert run(tmp_path, tmp_path / "floor.csv", "--hold-out", "0.2") == 0
    assert float(rows(tmp_path / "floor.csv")["STS-B", "tf-idf"]["best_pearson"]) > 0.9
    (tmp_path / "STS-B" / "dev.tsv").unlink()
    assert run(tmp_path, tmp_path / "again.csv", "--hold-out", "0.2") == 0
    train = Split.read(BY_NAME["STS-B"], "train", tmp_path / "STS-B" / "train.tsv")
    rest, held_out = train.divide(0.2, tmp_path)
    assert len(rest.examples) + len(held_out.examples) == 120 and 5 < len(held_out.examples) < 60
    assert all(is_held_out(example.texts[0], 0.2) for example in held_out.examples)
    assert not {e.texts[0] for e in rest.examples} & {e.texts[0] for e in held_out.examples}
    assert run(tmp_path, tmp_path / "floor.csv", "--hold-out", "1e-9") == 1
    assert "train.tsv: --hold-out 1e-09 of 120 rows leaves a side without rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "no task folder there"), (("--tasks", "RTE"), "no folder for RTE")],
)
def test_what_is_missing_is_named(tmp_path, capsys, arguments, message):
    assert run(tmp_path, tmp_path / "floor.csv", *arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("rt-plugin glue-baselines: error: ") and message in error
