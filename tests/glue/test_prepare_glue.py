"""Official GLUE and SuperGLUE files become fairseq's binarised layout, or one line says what is wrong with them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fairseq.data import Dictionary, data_utils

from rt_plugin.errors import UserError
from rt_plugin.glue.prepare import main
from rt_plugin.glue.readers import read_examples
from rt_plugin.glue.specs import BY_NAME
from rt_plugin.text.tokenizer import Tokenizer

BYTE_ORDER_MARK = "\ufeff"


def tsv(*rows: tuple[str, ...]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def json_lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def examples(task: str, split: str, tmp_path: Path, text: str) -> list:
    path = write(tmp_path, {"file": text}) / "file"
    return [(e.texts, e.label, e.group) for e in read_examples(BY_NAME[task], split, path)]


class TestOfficialLayouts:
    def test_cola_has_no_header_except_in_test(self, tmp_path):
        rows = tsv(("gj04", "1", "", "The ship sank."), ("bc01", "0", "*", 'They said "sank it.'))
        assert examples("CoLA", "train", tmp_path, rows) == [
            (("The ship sank.",), 1, None),
            (('They said "sank it.',), 0, None),
        ]
        test = tsv(("index", "sentence"), ("0", "Bill left."))
        assert examples("CoLA", "test", tmp_path, test) == [(("Bill left.",), None, None)]

    def test_sst_2(self, tmp_path):
        rows = tsv(("sentence", "label"), ("a charming journey . ", "1"))
        assert examples("SST-2", "train", tmp_path, rows) == [(("a charming journey . ",), 1, None)]

    def test_mrpc_starts_with_a_byte_order_mark_and_is_unquoted(self, tmp_path):
        header = (BYTE_ORDER_MARK + "Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
        rows = tsv(header, ("1", "11", "12", '"The pie does not fit.', "The pie doesn't fit"))
        assert examples("MRPC", "valid", tmp_path, rows) == [
            (('"The pie does not fit.', "The pie doesn't fit"), 1, None)
        ]

    def test_sts_b_scores(self, tmp_path):
        columns = ("index", "genre", "filename", "year", "sentence1", "sentence2", "score")
        row = ("0", "news", "f", "2012", "A plane.", "An air plane.", "3.800")
        assert examples("STS-B", "train", tmp_path, tsv(columns, row)) == [(("A plane.", "An air plane."), 3.8, None)]

    def test_qqp(self, tmp_path):
        rows = tsv(
            ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"], ("9", "1", "2", "Why?", "How?", "0")
        )
        assert examples("QQP", "train", tmp_path, rows) == [(("Why?", "How?"), 0, None)]

    def test_mnli_mismatched(self, tmp_path):
        middle = "promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
        columns = ["index", *middle.split(), "sentence1", "sentence2", "label1", "gold_label"]
        row = ("0", *"1234567", "New rights.", "Old rights.", "neutral", "contradiction")
        assert examples("MNLI", "valid_mismatched", tmp_path, tsv(columns, row)) == [
            (("New rights.", "Old rights."), 2, None)
        ]

    def test_ax(self, tmp_path):
        rows = tsv(("index", "sentence1", "sentence2"), ("0", "The cat sat.", "The cat did not sit."))
        assert examples("AX", "test", tmp_path, rows) == [(("The cat sat.", "The cat did not sit."), None, None)]

    @pytest.mark.parametrize(
        ("task", "columns", "row", "label"),
        [
            ("QNLI", "index question sentence label", ("0", "Who?", "He did.", "not_entailment"), 1),
            ("RTE", "index sentence1 sentence2 label", ("0", "He left.", "He went.", "entailment"), 0),
            ("WNLI", "index sentence1 sentence2 label", ("0", "It is full.", "The box is full.", "1"), 1),
        ],
    )
    def test_inference_pairs(self, task, columns, row, label, tmp_path):
        assert examples(task, "train", tmp_path, tsv(columns.split(), row)) == [(row[1:3], label, None)]

    def test_boolq(self, tmp_path):
        rows = json_lines(
            {"question": "is it", "passage": "It is.", "idx": 0, "label": True},
            {"question": "was it", "passage": "It is.", "idx": 1, "label": False},
        )
        assert [label for _, label, _ in examples("BoolQ", "train", tmp_path, rows)] == [1, 0]
        assert examples("BoolQ", "test", tmp_path, json_lines({"question": "q", "passage": "p", "idx": 0})) == [
            (("q", "p"), None, None)
        ]

    def test_cb(self, tmp_path):
        rows = json_lines({"premise": "He may go.", "hypothesis": "He goes.", "label": "contradiction", "idx": 0})
        assert examples("CB", "train", tmp_path, rows) == [(("He may go.", "He goes."), 2, None)]

    def test_multirc_gives_one_example_an_answer(self, tmp_path):
        def question(text, *answers):
            return {
                "question": text,
                "answers": [{"text": answer, "idx": i, "label": label} for i, (answer, label) in enumerate(answers)],
                "idx": 0,
            }

        passage = {
            "text": "A force moved it.",
            "questions": [question("What?", ("A force", 1), ("Nothing", 0)), question("When?", ("Now", 0))],
        }
        found = examples("MultiRC", "valid", tmp_path, json_lines({"idx": 0, "passage": passage}))
        assert [(texts[1], label) for texts, label, _ in found] == [
            ("What? A force", 1),
            ("What? Nothing", 0),
            ("When? Now", 0),
        ]
        first, second, third = (group for _, _, group in found)
        assert first == second != third

    def test_copa_gives_one_example_a_choice(self, tmp_path):
        row = {
            "premise": "It rained.",
            "choice1": "Wet.",
            "choice2": "Dry.",
            "question": "effect",
            "label": 0,
            "idx": 4,
        }
        found = examples("COPA", "train", tmp_path, json_lines(row))
        assert found == [
            (("It rained. What happened as a result?", "Wet."), 1, 1),
            (("It rained. What happened as a result?", "Dry."), 0, 1),
        ]

    def test_wic_marks_the_word(self, tmp_path):
        row = {
            **{"word": "place", "sentence1": "Do you come to my place?", "sentence2": "A place on earth.", "idx": 0},
            **{"start1": 18, "end1": 23, "start2": 2, "end2": 7, "label": False},
        }
        assert examples("WiC", "valid", tmp_path, json_lines(row)) == [
            (('Do you come to my "place"?', 'A "place" on earth.'), 0, None)
        ]


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tentailment\n", ["line 2", "3 tab-separated", "4 (index"]),
        ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n", ["line 2", "'yes'", "entailment, not_entail"]),
        ("RTE", "index\tsentence1\tlabel\n0\ta\tentailment\n", ["line 1", "sentence1, label", "sentence2"]),
        ("CoLA", "gj04\t1\tno sentence\n", ["line 1", "3 tab-separated", "4 (source"]),
        ("STS-B", "sentence1\tsentence2\tscore\na\tb\t5.5\n", ["line 2", "'5.5'", "from 0 to 5"]),
        ("BoolQ", '{"question": "q", "label": true}\n', ["line 1", "question, label", "'passage'"]),
        ("BoolQ", '{"question": "q", "passage": 3, "label": true}\n', ["line 1", "passage: 3", "type str"]),
        ("BoolQ", "question\tpassage\n", ["line 1", "one JSON object"]),
        ("COPA", '{"premise": "p", "question": "why"}\n', ["line 1", "'why'", "cause or effect"]),
        ("WiC", '{"sentence1": "a", "start1": 0, "end1": 9}\n', ["line 1", "end1 9", "1 characters"]),
        ("RTE", "", ["empty"]),
    ],
)
def test_broken_rows_are_named(task, text, expected, tmp_path):
    with pytest.raises(UserError) as error:
        examples(task, "train", tmp_path, text)
    for part in (str(tmp_path / "file"), *expected):
        assert part in str(error.value)


def test_not_utf_8(tmp_path):
    (tmp_path / "file").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(UserError, match=r"line 2.*UTF-8"):
        list(read_examples(BY_NAME["SST-2"], "train", tmp_path / "file"))


RTE_FILES = {
    "train.tsv": tsv(
        ("index", "sentence1", "sentence2", "label"),
        ("0", "No weapons were found in the country yet.", "Weapons were found.", "not_entailment"),
        ("1", "The king died in the city.", "The king died.", "entailment"),
        ("2", "He wrote the book.", "The book was written.", "entailment"),
    ),
    "dev.tsv": tsv(("index", "sentence1", "sentence2", "label"), ("0", "It is cold.", "It is warm.", "not_entailment")),
    "test.tsv": tsv(("index", "sentence1", "sentence2"), ("0", "It is cold.", "It is warm.")),
}


def prepare(glue_dir, out, model, *options):
    return main([str(glue_dir), str(out), "--model", str(model), *options])


def rows_of(folder: Path, split: str, dictionary: Dictionary) -> list[list[str]]:
    dataset = data_utils.load_indexed_dataset(str(folder / split), dictionary)
    return [[dictionary[i] for i in dataset[row].tolist()] for row in range(len(dataset))]


class TestPreparedFolder:
    def test_round_trip(self, tokenizer_folder, tmp_path, capsys):
        write(tmp_path / "glue" / "RTE", RTE_FILES)
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder) == 0
        folder = tmp_path / "out" / "RTE"

        dictionary = Dictionary.load(str(folder / "input0" / "dict.txt"))
        encoder = Tokenizer.load(folder)
        texts = [encoder.decode(row[:-1]) for row in rows_of(folder / "input0", "train", dictionary)]
        assert texts == [line.split("\t")[1] for line in RTE_FILES["train.tsv"].splitlines()[1:]]
        assert rows_of(folder / "input1", "valid", dictionary)[0][-1] == "</s>"

        labels = Dictionary.load(str(folder / "label" / "dict.txt"))
        # by the table: the first label of the file is the table's second
        assert labels.symbols[labels.nspecial :] == ["entailment", "not_entailment"]
        assert [row[0] for row in rows_of(folder / "label", "train", labels)] == [
            "not_entailment",
            "entailment",
            "entailment",
        ]
        assert not (folder / "label" / "test.idx").exists()
        assert (folder / "input0" / "test.idx").exists()

        splits = json.loads((folder / "glue.json").read_text())["splits"]
        labels = {"entailment": 2, "not_entailment": 1}
        assert splits["train"] == {"file": "train.tsv", "rows": 3, "left_out": 0, "labels": labels}
        assert splits["test"] == {"file": "test.tsv", "rows": 1, "left_out": 0, "labels": {}}
        table = capsys.readouterr().out.splitlines()
        assert len(table) == 4 and table[1].split()[:4] == ["RTE", "train", "train.tsv", "3"]

    def test_scores_are_scaled_to_one(self, tokenizer_folder, tmp_path):
        columns = ("sentence1", "sentence2", "score")
        files = {
            "train.tsv": tsv(columns, ("a", "b", "3.800"), ("c", "d", "5")),
            "dev.tsv": tsv(columns, ("e", "f", "0")),
        }
        write(tmp_path / "glue" / "STS-B", files)
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder) == 0
        lines = (tmp_path / "out" / "STS-B" / "label" / "train.label").read_text().split()
        assert [5 * float(line) for line in lines] == [3.8, 5.0]

    def test_groups(self, tokenizer_folder, tmp_path):
        row = {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "cause", "label": 1}
        write(tmp_path / "COPA", {"train.jsonl": json_lines(row, row), "val.jsonl": json_lines(row)})
        assert prepare(tmp_path, tmp_path / "out", tokenizer_folder, "--tasks", "COPA") == 0
        assert (tmp_path / "out" / "COPA" / "group" / "train.txt").read_text().split() == ["1", "1", "2", "2"]

    def test_superglue_folder_and_subsets(self, tokenizer_folder, tmp_path, capsys):
        row = json_lines({"question": "is it", "passage": "It is.", "label": True})
        write(tmp_path / "glue" / "SuperGLUE" / "BoolQ", {"train_subset.jsonl": row, "val.jsonl": row})
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder) == 1
        assert "--subsets" in capsys.readouterr().err
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder, "--subsets") == 0

    def test_broken_row_leaves_the_older_data_whole(self, tokenizer_folder, tmp_path, capsys):
        folder = write(tmp_path / "glue" / "RTE", RTE_FILES)
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder) == 0
        before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
        broken = RTE_FILES["dev.tsv"] + "1\tonly one sentence\n"
        write(folder, {"dev.tsv": broken})
        capsys.readouterr()
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("rt-plugin prepare-glue: error: ") and "dev.tsv, line 3" in last
        assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["RTE"]

        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder, "--skip-broken-rows") == 0
        assert "left out" in capsys.readouterr().err
        assert json.loads((tmp_path / "out" / "RTE" / "glue.json").read_text())["splits"]["valid"]["left_out"] == 1

    def test_foreign_folder_is_not_replaced(self, tokenizer_folder, tmp_path, capsys):
        write(tmp_path / "glue" / "RTE", RTE_FILES)
        write(tmp_path / "out" / "RTE", {"notes.txt": "mine"})
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder) == 1
        assert "not prepared data" in capsys.readouterr().err
        assert (tmp_path / "out" / "RTE" / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--tasks", "SQuAD"], "'SQuAD' is unknown"),
            (["--tasks", "MRPC"], "no folder for MRPC"),
            (["--tasks", "CoLA"], "no .*train.tsv"),
            (["--model", "nowhere"], "--model nowhere: no such folder"),
        ],
    )
    def test_wrong_options(self, options, expected, tokenizer_folder, tmp_path, capsys):
        write(tmp_path / "glue" / "RTE", RTE_FILES)
        (tmp_path / "glue" / "CoLA").mkdir()
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder, *options) == 1
        error = capsys.readouterr().err
        assert re.search(expected, error) and len(error.splitlines()) == 1
        assert not (tmp_path / "out").exists()

    def test_dictionary_of_another_tokenizer(self, tokenizer_folder, tmp_path, capsys):
        model = tmp_path / "model"
        model.mkdir()
        for path in tokenizer_folder.iterdir():
            shutil.copy(path, model)
        (model / "dict.txt").write_text("strange 1\nwords 1\n")
        write(tmp_path / "glue" / "RTE", RTE_FILES)
        assert prepare(tmp_path / "glue", tmp_path / "out", model) == 1
        assert "dict.txt" in capsys.readouterr().err


class TestHoldOut:
    """--hold-out: a dev set out of the train rows."""

    def texts(self, folder: Path, split: str) -> list[tuple[str, ...]]:
        dictionary = Dictionary.load(str(folder / "input0" / "dict.txt"))
        decode = Tokenizer.load(folder).decode
        columns = [[decode(row[:-1]) for row in rows_of(folder / f"input{i}", split, dictionary)] for i in (0, 1)]
        return list(zip(*columns, strict=True))

    def test_every_train_row_is_on_one_side_with_all_others_of_its_first_text(self, tokenizer_folder, tmp_path):
        rows = [(str(i), f"premise {i // 3}", f"hypothesis {i}", "entailment") for i in range(300)]
        header = ("index", "sentence1", "sentence2", "label")
        glue = tmp_path / "glue"
        write(glue / "RTE", {"train.tsv": tsv(header, *rows), "dev.tsv": "broken, and never read\n"})
        assert prepare(glue, tmp_path / "out", tokenizer_folder, "--hold-out", "0.2") == 0
        train, valid = (self.texts(tmp_path / "out" / "RTE", split) for split in ("train", "valid"))
        assert sorted(train + valid) == sorted(row[1:3] for row in rows)
        assert not {first for first, _ in train} & {first for first, _ in valid}
        assert 30 <= len(valid) <= 90
        splits = json.loads((tmp_path / "out" / "RTE" / "glue.json").read_text())["splits"]
        assert {name: (entry["file"], entry["rows"]) for name, entry in splits.items()} == {
            "train": ("0.8 of train.tsv", len(train)),
            "valid": ("0.2 of train.tsv", len(valid)),
        }

        write(glue / "RTE", {"train.tsv": tsv(header, *reversed(rows))})  # a function of the text, not of the place
        assert prepare(glue, tmp_path / "again", tokenizer_folder, "--hold-out", "0.2") == 0
        assert sorted(self.texts(tmp_path / "again" / "RTE", "valid")) == sorted(valid)

    def test_half_a_surrogate_pair_in_json(self, tokenizer_folder, tmp_path):
        rows = [{"question": f"q{i} \ud83d", "passage": "\udc00", "label": True} for i in range(40)]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        write(tmp_path / "glue" / "BoolQ", {"train.jsonl": lines})  # and no dev file, which is not read
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder, "--hold-out", "0.3") == 0
        train, valid = (self.texts(tmp_path / "out" / "BoolQ", split) for split in ("train", "valid"))
        assert len(train) + len(valid) == 40

    def test_nothing_held_out(self, tokenizer_folder, tmp_path, capsys):
        write(tmp_path / "glue" / "RTE", RTE_FILES)
        assert prepare(tmp_path / "glue", tmp_path / "out", tokenizer_folder, "--hold-out", "1e-9") == 1
        assert "train.tsv: no rows; expected some for valid, with --hold-out 1e-09" in capsys.readouterr().err
        assert not (tmp_path / "out" / "RTE").exists()

    def test_a_task_without_a_train_set(self, tokenizer_folder, tmp_path, capsys):
        """AX, GLUE's diagnostic set, has a test file alone: it is passed over, unless it is named."""
        glue, words = tmp_path / "glue", (tmp_path / "out", tokenizer_folder, "--hold-out", "0.2")
        write(glue / "AX", {"diagnostic.tsv": tsv(("index", "sentence1", "sentence2"), ("0", "a", "b"))})
        assert prepare(glue, *words) == 1
        assert "--hold-out: AX has no train set" in capsys.readouterr().err.splitlines()[-1]
        rows = [(str(i), f"premise {i}", f"hypothesis {i}", "entailment") for i in range(30)]
        header = ("index", "sentence1", "sentence2", "label")
        write(glue / "RTE", {"train.tsv": tsv(header, *rows), "dev.tsv": "broken, and never read\n"})
        assert prepare(glue, *words, "--tasks", "RTE", "AX") == 1
        assert "--hold-out: AX has no train set" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        assert prepare(glue, *words) == 0
        assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["RTE"]

    @pytest.mark.parametrize("share", ["0", "1", "nan", "-0.1", "10 %"])
    def test_no_share(self, share, tmp_path, capsys):
        with pytest.raises(SystemExit):
            prepare(tmp_path, tmp_path / "out", "nowhere", f"--hold-out={share}")
        assert "--hold-out: " in capsys.readouterr().err


def test_the_script_from_another_folder(tokenizer_folder, tmp_path):
    write(tmp_path / "glue" / "RTE", RTE_FILES)
    result = subprocess.run(
        [sys.executable, "-m", "rt_plugin", "prepare-glue", "glue", "out", "--model", tokenizer_folder],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "RTE" / "glue.json").is_file()
    assert result.stdout.splitlines()[1].split()[:4] == ["RTE", "train", "train.tsv", "3"]
