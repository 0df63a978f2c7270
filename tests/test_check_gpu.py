"""scripts/check_gpu.sh on a CPU: everything that a GPU machine will run works, down to the tables of docs/op.md."""

import csv
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ENVIRONMENT, REPOSITORY
from rt_plugin import ops

sys.path.insert(0, str(REPOSITORY / "scripts"))
import tabulate_gpu


def check_gpu(folder, *parts, checkout=REPOSITORY, **environment):
    return subprocess.run(
        ["bash", "scripts/check_gpu.sh", "--dry", str(folder), *parts],
        cwd=checkout,
        env={**ENVIRONMENT, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


def rows_of(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    if ops.native_backends()["cpu"]:
        pytest.skip(f"no compiled op for cpu: {ops.native_backends()['cpu']}")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler: install g++, or name it in CXX")
    folder = tmp_path_factory.mktemp("check_gpu")
    result = check_gpu(folder, "backends", "benchmark_op", "tune", "steps", "tables")
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    return folder, result.stdout


def test_every_part_passes(report):
    _, said = report
    assert "== summary: 0 parts failed" in said
    for part in ("backends", "benchmark_op", "tune", "steps", "tables"):
        assert f"{part}: passed in" in said
    assert "benchmark_block:" not in said  # not asked for
    assert "left out: transformers" in said or "transformers  " in said


def test_the_op_is_measured_in_every_type_pass_and_step_size(report):
    folder, _ = report
    rows = [row for row in rows_of(folder / "benchmark_op.csv") if row["candidate"] == "op"]
    measured = {(row["dtype"], row["step_size"], row["pass"]) for row in rows}
    passes = ("forward", "backward", "forward+backward")
    assert measured == {(t, k, p) for t in ("float16", "bfloat16") for k in ("1", "2") for p in passes}
    assert all(float(row["median_ms"]) > 0 and row["share_of_copy_bandwidth"] and row["machine"] for row in rows)


def test_all_shapes_of_the_kernels_give_the_same_bits(report):
    folder, _ = report
    rows = rows_of(folder / "tune_cuda.csv")
    shapes = {(row["pass"], row["channels"], row["ahead"], row["threads"]) for row in rows}
    assert len(rows) == len(shapes) >= 50
    assert {row["bits"] for row in rows} == {"same"}


def test_tables(report):
    folder, said = report
    text = tabulate_gpu.section(folder)
    assert text in said
    assert "| 9 x 2 x 64   |   2 | bfloat16 | backward " in text
    assert text.count("recurrent-k1") == 4  # two types, rows full and padded
    assert "Not measured yet" not in text


def test_what_needs_fairseq_is_left_out_without_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['fairseq'] = None\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), ENVIRONMENT.get("PYTHONPATH")]))
    result = check_gpu(tmp_path, "tests", "benchmark_update", "steps", PYTHONPATH=path)
    assert result.returncode == 0, result.stdout
    assert "== tests\ntests: passed in" in result.stdout and "== steps" not in result.stdout
    for what in ("tests/inference/test_interface.py", "benchmark_update", "steps"):
        assert f"left out: {what}, which needs fairseq: not installed for {sys.executable}" in result.stdout


def test_a_copy_without_models_is_checked(tmp_path):
    """What is packed for another machine may lack the models of examples/, whose weights are large."""
    for name in ("rt_plugin", "scripts", "tasks", "criterions", "tests", "docs", "pyproject.toml"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    result = check_gpu(tmp_path / "out", "tests", checkout=tmp_path)
    assert result.returncode == 0, result.stdout
    left_out = "left out: tests/inference/test_interface.py, which needs examples/checkpoints: not there"
    assert left_out in result.stdout and "tests: passed in" in result.stdout


def test_failure_is_told(tmp_path):
    result = subprocess.run(
        ["bash", "scripts/check_gpu.sh", "--dry", str(tmp_path), "backends", "tables"],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "PYTHON": "false"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "== summary: 2 parts failed backends tables" in result.stdout


def test_the_page_is_what_the_files_give(tmp_path):
    assert tabulate_gpu.main(["--check"]) == 0
    assert tabulate_gpu.section(tmp_path) == tabulate_gpu.NOTHING
    kept = [tabulate_gpu.FIGURES / name for name in tabulate_gpu.KEPT.values()]
    page = tabulate_gpu.PAGE.read_text(encoding="utf-8")
    assert (tabulate_gpu.NOTHING in page) == (not any(path.is_file() for path in kept))


def test_programs_name_unknown_choices():
    for script, wrong, message in (
        ("benchmark_op.py", ("--passes", "sideways"), "--passes sideways: expected some of forward, backward"),
        ("benchmark_block.py", ("--models", "bert"), "--models bert: expected some of roberta"),
        ("tune_cuda.py", ("--dtypes", "int8"), "--dtypes int8: expected names of float16"),
    ):
        result = subprocess.run(
            [sys.executable, f"scripts/{script}", *wrong], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert result.returncode == 2 and message in result.stderr, result.stderr[-2000:]
