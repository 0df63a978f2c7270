"""Files that are damaged, or others, beside a checkpoint or in the data: found by the SHA-256 that was written down."""

import hashlib
import json
import logging
import os
import shutil
import subprocess

import pytest
import torch
from fairseq import checkpoint_utils, hub_utils

from conftest import REPOSITORY, run_command, user_error
from rt_plugin.blocks import verified
from rt_plugin.corpus import prepare as prepare_corpus
from rt_plugin.errors import UserError
from rt_plugin.export import command as export
from rt_plugin.model import RecurrentRobertaModel
from rt_plugin.model_folder import companions
from rt_plugin.model_folder.checkpoint import read_checkpoint

EXAMPLES = sorted(path for path in (REPOSITORY / "examples" / "checkpoints").iterdir() if path.is_dir())
NAMES = ("checkpoint_best.pt", "dict.txt", "sentencepiece.bpe.model", "text_normalization.json")


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stored(path) -> str:
    """What a checkpoint keeps of a file: of dictionaries, the symbols count."""
    if not path.name.endswith("dict.txt"):
        return sha256(path)
    symbols = [line.rpartition(" ")[0] + "\n" for line in path.read_text(encoding="utf-8").splitlines()]
    return hashlib.sha256("".join(symbols).encode()).hexdigest()


def swap_lines(path):
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[5], lines[6] = lines[6], lines[5]
    path.write_text("".join(lines), encoding="utf-8")


def flip(path):
    """One bit, in the middle; neither length nor time of the last change tell."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def other_tokenizer(path):
    shutil.copyfile(EXAMPLES[0] / "sentencepiece.bpe.model", path)


def other_normalization(path):
    path.write_text(path.read_text().replace('"moses"', '"none"'))


CHANGES = [
    ("dict.txt", swap_lines),
    ("sentencepiece.bpe.model", other_tokenizer),
    ("sentencepiece.bpe.model", flip),
    ("text_normalization.json", other_normalization),
    ("text_normalization.json", lambda path: path.unlink()),
]


@pytest.fixture
def changed(pretrained, tmp_path):
    """Copies of the trained folder with one file changed, with the name and the two digests of it."""

    def make():
        for number, (name, change) in enumerate(CHANGES):
            folder = shutil.copytree(pretrained, tmp_path / f"changed{number}")
            change(folder / name)
            found = f"{stored(folder / name)[:16]}" if (folder / name).is_file() else "no such file"
            yield folder, name, found, stored(pretrained / name)[:16]

    return make


def assert_names_all(line, folder, name, found, expected):
    assert str(folder / name) in line and found in line and expected in line, line
    assert "\n" not in line


def test_training_writes_the_digests_of_its_files_into_checkpoints(pretrained, data_bin):
    state = torch.load(pretrained / "checkpoint_last.pt", weights_only=True)
    expected = {name: stored(data_bin / name) for name in NAMES[1:]}
    assert state["task_state"]["sha256"] == expected


@pytest.mark.parametrize(
    "load",
    [
        lambda folder, _: RecurrentRobertaModel.from_pretrained(str(folder)),
        lambda folder, _: hub_utils.from_pretrained(str(folder), "checkpoint_best.pt", str(folder)),
        lambda folder, _: checkpoint_utils.load_model_ensemble_and_task([str(folder / "checkpoint_best.pt")]),
        lambda folder, _: read_checkpoint(folder / "checkpoint_best.pt"),
    ],
    ids=["from_pretrained", "hub_utils", "checkpoint_utils", "our own"],
)
def test_other_files_beside_a_checkpoint_are_refused(load, changed, tmp_path):
    for folder, *about in changed():
        with pytest.raises(UserError) as caught:
            load(folder, tmp_path)
        assert_names_all(str(caught.value), folder, *about)


def test_other_files_in_the_data_are_refused(pretrained, data_bin, tmp_path, train_here):
    """Resuming, fine-tuning and validating look at the data folder's own files; nothing is written before."""
    data = shutil.copytree(data_bin, tmp_path / "data")
    swap_lines(data / "dict.txt")
    before = {path.name: path.read_bytes() for path in pretrained.iterdir() if path.is_file()}
    for options in (
        ("--restore-file", pretrained / "checkpoint_last.pt"),
        ("--finetune-from-model", pretrained / "checkpoint_last.pt"),
    ):
        with pytest.raises(UserError) as caught:
            train_here(*options, data=data)
        about = ("dict.txt", stored(data / "dict.txt")[:16], stored(data_bin / "dict.txt")[:16])
        assert_names_all(str(caught.value), data, *about)
    copy = shutil.copytree(pretrained, tmp_path / "copy")
    with pytest.raises(UserError, match=r"dict\.txt: SHA-256 of"):
        train_here("--max-update", "9", data=data, save_dir=copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()} == before
    with pytest.raises(UserError, match=r"data/dict\.txt: SHA-256"):
        checkpoint_utils.load_model_ensemble_and_task([str(pretrained / "checkpoint_best.pt")], {"data": str(data)})
    words = ("--user-dir", "rt_plugin", "--task", "rt_masked_lm", "--path", pretrained / "checkpoint_best.pt", "--cpu")
    line = user_error(run_command("fairseq-validate", data, *words, "--batch-size", "8", ok=False))
    assert "data/dict.txt: SHA-256" in line


def test_fine_tuned_models_keep_the_digests_too(glue_dir, pretrained, tmp_path, fairseq_train):
    from rt_plugin.glue.predict import main as predict

    data = glue_dir / "out" / "QNLI"
    fairseq_train(
        *(data, "--task", "rt_glue", "--criterion", "rt_glue", "--arch", "recurrent_roberta_tiny"),
        *("--finetune-from-model", pretrained / "checkpoint_last.pt", "--save-dir", tmp_path / "tuned", "--cpu"),
        *("--optimizer", "adam", "--lr", "1e-4", "--batch-size", "8", "--max-update", "1", "--no-epoch-checkpoints"),
        *("--num-workers", "0", "--best-checkpoint-metric", "score", "--maximize-best-checkpoint-metric"),
    )
    state = torch.load(tmp_path / "tuned" / "checkpoint_last.pt", weights_only=True)
    expected = {name: stored(tmp_path / "tuned" / name) for name in (*NAMES[1:], "label_dict.txt")}
    assert state["task_state"]["sha256"] == expected
    (tmp_path / "texts").write_text("a\tb\n")
    lines = (tmp_path / "tuned" / "label_dict.txt").read_text().splitlines()
    for name, change in (
        ("dict.txt", swap_lines),
        ("label_dict.txt", lambda path: path.write_text("\n".join(lines[::-1]) + "\n")),
        ("text_normalization.json", lambda path: path.unlink()),
    ):
        folder = shutil.copytree(tmp_path / "tuned", tmp_path / name.partition(".")[0])
        change(folder / name)
        with pytest.raises(UserError, match=rf"{name}: "):
            RecurrentRobertaModel.from_pretrained(str(folder))
        assert predict(["rows", str(folder), str(tmp_path / "texts"), str(tmp_path / "predictions")]) == 1
        assert export.main([str(folder), str(tmp_path / "exported")]) == 1
    assert not (tmp_path / "predictions").exists() and not (tmp_path / "exported").exists()


def test_another_tokenizer_is_refused_when_a_fine_tuning_starts(pretrained, train_here, tmp_path, data_bin):
    data = shutil.copytree(data_bin, tmp_path / "data")
    (data / "text_normalization.json").unlink()
    with pytest.raises(UserError, match=r"data/text_normalization\.json: no such file"):
        train_here("--finetune-from-model", pretrained / "checkpoint_last.pt", data=data)


def test_counts_in_a_dictionary_do_not_matter(pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "model")
    lines = (folder / "dict.txt").read_text(encoding="utf-8").splitlines()
    text = "".join(f"{line.rpartition(' ')[0]} 7\n" for line in lines)
    (folder / "dict.txt").write_text(text, encoding="utf-8")
    read_checkpoint(folder / "checkpoint_best.pt")


def test_a_file_that_says_none_is_no_normalization(tmp_path):
    """A tokenizer from elsewhere has no such file; whoever copies it may write one that says so."""
    file = tmp_path / "text_normalization.json"
    assert companions.digests({file.name: file}) == {file.name: None}
    file.write_text(json.dumps({"version": 1, "normalization": "none", "language": "en"}))
    assert companions.digests({file.name: file}) == {file.name: None}
    file.write_text(json.dumps({"version": 1, "normalization": "moses", "language": "en"}))
    assert companions.digests({file.name: file}) == {file.name: sha256(file)}


@pytest.mark.parametrize("state", [[], {"sha256": []}, {"sha256": {"dict.txt": 7}}, {"sha256": {"dict.txt": "x" * 64}}])
def test_digests_that_are_none_are_refused(state, pretrained, tmp_path):
    checkpoint = torch.load(pretrained / "checkpoint_best.pt", weights_only=True)
    torch.save({**checkpoint, "task_state": state}, tmp_path / "checkpoint_best.pt")
    with pytest.raises(UserError, match=r"checkpoint_best\.pt: its checksums"):
        read_checkpoint(tmp_path / "checkpoint_best.pt")


def without_digests(pretrained, folder):
    """A checkpoint of before."""
    shutil.copytree(pretrained, folder)
    state = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    (folder / "checkpoint_best.pt").unlink()  # a hard link
    torch.save({**state, "task_state": {}}, folder / "checkpoint_best.pt")
    return folder


def test_one_warning_where_there_are_none(pretrained, tmp_path, monkeypatch, caplog):
    folder = without_digests(pretrained, tmp_path / "old")
    monkeypatch.setattr(companions, "_warned", False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with caplog.at_level(logging.WARNING, "rt_plugin"):
        RecurrentRobertaModel.from_pretrained(str(folder))
        assert "checksums" not in caplog.text  # the first process of the machine says it
        monkeypatch.setenv("LOCAL_RANK", "0")
        for _ in range(2):
            RecurrentRobertaModel.from_pretrained(str(folder))
        read_checkpoint(folder / "checkpoint_best.pt")
    (record,) = [record for record in caplog.records if "checksums" in record.message]
    assert str(folder / "checkpoint_best.pt") in record.message and "sha256sum" in record.message


def test_no_warning_where_there_are_some(pretrained, monkeypatch, caplog):
    monkeypatch.setattr(companions, "_warned", False)
    for folder in (pretrained, EXAMPLES[0]):
        RecurrentRobertaModel.from_pretrained(str(folder))
    assert "checksums" not in caplog.text


def test_an_exported_folder_has_a_list_that_sha256sum_reads(pretrained, tmp_path):
    out = tmp_path / "exported"
    assert export.main([str(pretrained), str(out)]) == 0
    result = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert result.returncode == 0 and {line.split(":")[0] for line in result.stdout.splitlines()} == {*NAMES}
    assert f"| SHA-256 | `{sha256(out / 'checkpoint_best.pt')}` |" in (out / "README.md").read_text()
    for name in NAMES:
        copy = shutil.copytree(out, tmp_path / name.partition(".")[0])
        flip(copy / name)
        with pytest.raises(UserError, match=rf"{name}: SHA-256 .* SHA256SUMS|{name} is damaged"):
            RecurrentRobertaModel.from_pretrained(str(copy))
        (copy / name).unlink()
        with pytest.raises(UserError, match=name):
            RecurrentRobertaModel.from_pretrained(str(copy))


def test_the_list_finds_damage_in_torchs_old_format(pretrained, tmp_path):
    """Which has no checksums of its own."""
    folder = shutil.copytree(pretrained, tmp_path / "old")
    path = folder / "checkpoint_best.pt"
    state = torch.load(path, weights_only=True)
    path.unlink()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    (folder / "SHA256SUMS").write_text(f"{sha256(path)}  {path.name}\n")
    read_checkpoint(path)
    flip(path)
    with pytest.raises(UserError, match=r"checkpoint_best\.pt: SHA-256 .* SHA256SUMS"):
        read_checkpoint(path)


@pytest.mark.parametrize("text", ["no list\n", "0" * 64 + "  ../dict.txt\n", "\x00" * 100, "x" * (1 << 21)])
def test_a_list_that_is_none_is_named(text, pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "model")
    (folder / "SHA256SUMS").write_text(text)
    with pytest.raises(UserError, match=r"SHA256SUMS, line 1|SHA256SUMS: "):
        read_checkpoint(folder / "checkpoint_best.pt")


def test_a_training_goes_on_in_an_exported_folder(pretrained, tmp_path, train_here):
    """What it writes there is listed no more."""
    out = tmp_path / "exported"
    assert export.main([str(pretrained), str(out)]) == 0
    train_here("--max-update", "1", "--finetune-from-model", out / "checkpoint_best.pt", save_dir=out)
    train_here("--max-update", "2", save_dir=out)
    read_checkpoint(out / "checkpoint_last.pt")
    assert not (out / "SHA256SUMS").exists()


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)
def test_the_committed_models_are_listed(folder):
    lines = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert lines == {name: sha256(folder / name) for name in NAMES}
    assert f"| SHA-256 | `{lines['checkpoint_best.pt']}` |" in (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def corpus(tokenizer_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "out"
    words = [tokenizer_folder / "train.txt", "--valid", tokenizer_folder / "valid.txt", "--tokenizer"]
    words += [tokenizer_folder, "--shards", "2", "--out", out, "--workers", "1"]
    assert prepare_corpus.main([str(word) for word in words]) == 0
    return out, [str(word) for word in words]


def test_the_manifest_has_the_digests_of_what_was_written(corpus):
    out, _ = corpus
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sha256"] == {name: sha256(out / name) for name in manifest["files"]}
    assert {"shard0/train.bin", "shard1/train.idx", "dict.txt", "shard0/valid.bin"} < manifest["sha256"].keys()
    for folder in (out, out / "shard0", out / "shard1"):
        result = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True)
        assert result.returncode == 0


def test_a_flipped_byte_is_made_again(corpus, tmp_path, capsys):
    out, words = corpus
    copy = shutil.copytree(out, tmp_path / "out")
    words = [str(copy) if word == str(out) else word for word in words]
    flip(copy / "shard1" / "train.bin")
    assert prepare_corpus.main(words) == 0
    assert "shard1/train.bin: missing or not as it was written" in capsys.readouterr().err
    assert (copy / "shard1" / "train.bin").read_bytes() == (out / "shard1" / "train.bin").read_bytes()


def test_a_flipped_byte_is_found_when_training_starts(corpus, tmp_path, train_here):
    out, _ = corpus
    for name in ("shard0/train.bin", "shard0/train.idx", "shard0/dict.txt"):
        copy = shutil.copytree(out, tmp_path / name.replace("/", "-"))
        train_here("--max-update", "1", data=f"{copy / 'shard0'}:{copy / 'shard1'}")
        (swap_lines if name.endswith("txt") else flip)(copy / name)
        with pytest.raises(UserError, match=rf"{name}: SHA-256 is {sha256(copy / name)[:16]}.* SHA256SUMS"):
            train_here("--max-update", "1", data=f"{copy / 'shard0'}:{copy / 'shard1'}")


def test_data_are_read_for_their_digests_once(corpus, tmp_path, monkeypatch):
    """Once a machine, for as long as the files are the same ones; the other processes leave it to the first."""
    out, _ = corpus
    data = shutil.copytree(out, tmp_path / "data") / "shard0"
    read = []
    monkeypatch.setattr(verified, "check_digest", lambda path, _: read.append(path.name))
    monkeypatch.setenv("LOCAL_RANK", "1")
    verified.check_split(data / "train", data / "blocks")
    assert read == []
    monkeypatch.setenv("LOCAL_RANK", "0")
    for _ in range(2):
        verified.check_split(data / "train", data / "blocks")
    assert sorted(read) == ["train.bin", "train.idx"]
    shutil.copytree(data, tmp_path / "other", dirs_exist_ok=True)  # with the note that the first ones were looked at
    verified.check_split(tmp_path / "other" / "train", tmp_path / "other" / "blocks")
    assert len(read) == 4


def test_data_without_a_list_are_as_before(data_bin, tmp_path):
    verified.check_split(data_bin / "train", tmp_path / "blocks")
    assert not (tmp_path / "blocks").exists()


def test_a_fine_tuning_of_a_listed_model_wants_its_files(pretrained, train_here, tmp_path, data_bin):
    """Whose checkpoint has no checksums: the list beside it says what it was trained with."""
    model = without_digests(pretrained, tmp_path / "listed")
    (model / "SHA256SUMS").write_text("".join(f"{sha256(model / name)}  {name}\n" for name in NAMES))
    data = shutil.copytree(data_bin, tmp_path / "data")
    (data / "text_normalization.json").unlink()
    with pytest.raises(UserError, match=r"data/text_normalization\.json: no such file"):
        train_here("--finetune-from-model", model / "checkpoint_best.pt", data=data)
