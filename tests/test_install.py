"""Installed, editable and uninstalled: the same names work, and nothing else is left in site-packages."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import warm
from conftest import REPOSITORY

USE = """
import pathlib, rt_plugin, rt_plugin.glue.specs, rt_plugin.criterions, rt_plugin.model, sys
assert not {"tasks", "criterions", "scripts"} & set(sys.modules)
from fairseq.tasks import TASK_REGISTRY
from fairseq.criterions import CRITERION_REGISTRY
assert {"rt_masked_lm", "rt_glue"} <= set(TASK_REGISTRY) & set(CRITERION_REGISTRY)
for missing in ("scripts", "rt_plugin", "tests"):
    try:
        __import__(f"rt_plugin.{missing}")
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"rt_plugin.{missing} can be imported")
print(pathlib.Path(rt_plugin.__file__).resolve().parent)
"""


def pip(*arguments, **changes):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--ignore-installed", *arguments]  # else the environment that runs the tests loses its own rt-plugin
    # the compiled op takes a minute to build and is not what these tests are about
    environment = {**os.environ, "RT_BUILD_CPU": "0", "RT_BUILD_CUDA": "0", **changes}
    subprocess.run([*map(str, command)], check=True, env=environment, cwd="/", timeout=600)


def use(cwd, site=None, python_path=""):
    code = f"import site; site.addsitedir({str(site)!r})\n{USE}" if site else USE
    environment = {**os.environ, "PYTHONPATH": str(python_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    environment = {**os.environ, "RT_BUILD_CPU": "0", "RT_BUILD_CUDA": "0"}
    subprocess.run([*map(str, command), REPOSITORY], check=True, env=environment, cwd="/", timeout=600)
    return next(folder.glob("*.whl"))


def test_checkout_that_is_not_installed(tmp_path):
    assert use(tmp_path, python_path=REPOSITORY) == str(REPOSITORY / "rt_plugin")


def test_nothing_in_a_plain_install_brings_a_torch_of_its_own(wheel):
    """Neither the build nor a dependency: fairseq's isolated build would, so it is an extra."""
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^requires = \["([a-z]+)[^",]*"\]$', project, re.MULTILINE) == ["setuptools"]
    metadata = zipfile.ZipFile(wheel).read(f"{wheel.name.split('-py3')[0]}.dist-info/METADATA").decode()
    requirements = [
        Requirement(line.split(": ")[1]) for line in metadata.splitlines() if line.startswith("Requires-Dist")
    ]
    plain = {r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}
    assert plain == {"torch", "numpy", "sentencepiece", "sacremoses", "tqdm", "tabulate"}


def test_there_is_one_command(wheel):
    text = zipfile.ZipFile(wheel).read(f"{wheel.name.split('-py3')[0]}.dist-info/entry_points.txt").decode()
    assert text.split() == ["[console_scripts]", "rt-plugin", "=", "rt_plugin.__main__:main"]


def test_wheel_holds_the_plans_of_the_replication(wheel):
    there = {path.name for path in (REPOSITORY / "rt_plugin" / "replicate" / "plans").glob("*.json")}
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "replicate/plans/" in name}
    assert names == there and "laptop.json" in there


def test_wheel_holds_one_top_level_package(wheel):
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"rt_plugin"}


def test_the_types_are_for_others_to_check(wheel):
    assert "rt_plugin/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_one_version_in_all_places(wheel):
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    assert wheel.name.startswith(f"rt_plugin-{version}-")
    newest = next(line for line in (REPOSITORY / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert newest.split()[1] == version


def test_one_range_of_pythons_in_all_places():
    def read(name):
        return (REPOSITORY / name).read_text(encoding="utf-8")

    first, beyond = re.findall(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', read("pyproject.toml"), re.MULTILINE)[0]
    versions = [f"3.{minor}" for minor in range(int(first), int(beyond))]
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read("pyproject.toml"))
    assert classifiers == sorted(set(re.findall(r"^\| (3\.\d+)\.\d+ ", read("docs/install.md"), re.MULTILINE)))
    assert {*classifiers} <= {*versions} and {versions[0], versions[-1]} <= {*classifiers}, "what was run, both ends"
    for name in ("scripts/setup.sh", "docs/install.md", "README.md"):
        ranges = re.findall(r"Python (3\.\d+)\s+to\s+(3\.\d+)", read(name))
        assert ranges and set(ranges) == {(versions[0], versions[-1])}, name
    bounds = f"(3, {first}) <= sys.version_info[:2] <= (3, {int(beyond) - 1})"
    assert bounds in read("scripts/setup.sh")


def test_installed_package_works_from_any_folder(wheel, tmp_path):
    site = tmp_path / "site"
    pip("--target", site, wheel)
    assert use(tmp_path, site) == str(site / "rt_plugin")


def test_editable_install_works_from_any_folder(tmp_path):
    pip("--prefix", tmp_path / "prefix", "-e", REPOSITORY)
    site = next((tmp_path / "prefix").rglob("site-packages"))
    assert use(tmp_path, site) == str(REPOSITORY / "rt_plugin")


@pytest.fixture
def sources(tmp_path):
    """The checkout without what was built in it."""
    folder = tmp_path / "sources"
    for name in ("rt_plugin", "tasks", "criterions"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def test_old_setuptools_gets_a_sentence(sources, tmp_path):
    (tmp_path / "old" / "setuptools").mkdir(parents=True)
    (tmp_path / "old" / "setuptools" / "__init__.py").write_text("__version__ = '65.5.0'\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "old")}
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=sources, env=environment, capture_output=True, text=True
    )
    sentence = "setuptools 65.5.0 is installed, expected 77 or later; run: pip install 'setuptools>=77'"
    assert result.returncode == 1 and result.stderr == f"setup.py: error: {sentence}\n"


@pytest.mark.slow
def test_sdist_holds_all_that_its_tests_need(tmp_path):
    """Everything of the checkout, by the names that git knows; in an unpacked sdist there is no git to ask."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git checkout, so nothing tells what belongs to it")
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    code = f"from setuptools import build_meta as b; b.build_sdist({str(tmp_path)!r})"
    clone = tmp_path / "clone"  # setuptools writes into the folder it builds from
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():  # not one that is deleted and not committed yet
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, clone / name)
    environment = {**os.environ, "RT_BUILD_CPU": "0", "RT_BUILD_CUDA": "0"}
    subprocess.run([sys.executable, "-c", code], cwd=clone, env=environment, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert {
        str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file() and "egg-info" not in str(path)
    } - held == set()
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    sample = ("tests/test_architecture.py", "tests/test_reference.py", "tests/text", "tests/repairs/test_registry.py")
    for arguments in (("--collect-only",), sample):
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=unpacked,
            env={**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]


def test_editable_install_without_a_compiler(sources, tmp_path):
    """The operation is left out, and nothing else fails for it."""
    pip("--prefix", tmp_path / "prefix", "-e", sources, RT_BUILD_CPU="auto", CXX="no-such-compiler")
    assert not list(sources.rglob("*.so"))
    assert use(sources) == str(sources / "rt_plugin")


AUTOMATIC = {"RT_BUILD_CPU": "auto", "RT_BUILD_CUDA": "auto"}


def _build(sources, torch, cuda_home):
    """Standard error of `setup.py build_ext` without a compiler, with a torch that has nothing but a version."""
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=sources,
        env={
            **os.environ,
            "PYTHONPATH": str(torch),
            "CUDA_HOME": str(cuda_home),
            **AUTOMATIC,
            "CXX": "no-such-compiler",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize("toolkit, message", ((13, "is CUDA 13, torch is built for CUDA 12; name"), (12, "compiler")))
def test_toolkit_that_is_newer_than_torch_is_not_used(toolkit, message, sources, tmp_path):
    """Its runtime would start no kernel where the driver is as old as torch's CUDA."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("cuda: str | None = '12.8'\n")
    for folder in ("bin", "include"):
        (tmp_path / "cuda" / folder).mkdir(parents=True)
    (tmp_path / "cuda" / "include" / "cuda_runtime.h").touch()
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {toolkit}.0, V{toolkit}.0.88'\n")
    nvcc.chmod(0o755)
    lines = [line for line in _build(sources, tmp_path, tmp_path / "cuda").splitlines() if "_C_cuda" in line]
    assert len(lines) == 1 and message in lines[0], lines


def test_torchaudio_loads_where_it_is_there():
    """setup.sh removes one that does not fit: fairseq asks for it and PyPI's is built for CUDA."""
    code = "import importlib.util as u; u.find_spec('torchaudio') and __import__('torchaudio')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_transformers_works_in_this_environment(tmp_path):
    """It imports the torchaudio that it finds, as soon as a model is asked for."""

    if importlib.util.find_spec("transformers") is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", tmp_path, "transformers"]
        subprocess.run([*map(str, command)], check=True, timeout=600)

    code = "import sys; sys.path.append(sys.argv[1]); from transformers import RobertaForMaskedLM"
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_installed_user_dir_is_found_by_name(wheel, tmp_path):
    """fairseq looks beside its own folder for `--user-dir rt_plugin`; a plain install puts it there."""
    site = tmp_path / "site"
    pip("--target", site, wheel)
    import fairseq

    shutil.copytree(Path(fairseq.__file__).parent, site / "fairseq", ignore=shutil.ignore_patterns("examples", "*.pyc"))
    start = "import sys; sys.argv[0] = 'fairseq-train'; {}from fairseq_cli.train import cli_main; cli_main()"
    options = ("--task", "rt_masked_lm", "--criterion", "rt_masked_lm", "--arch", "recurrent_roberta_tiny", "--cpu")
    for plugin in ["import rt_plugin; ", *([] if warm.PLUGIN_FIRST else [""])]:
        words = ["nowhere", "--user-dir", "rt_plugin", "--batch-size", "1", *options]
        result = subprocess.run(
            [sys.executable, "-c", start.format(plugin), *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "data folder nowhere: no such folder" in result.stderr, result.stderr
