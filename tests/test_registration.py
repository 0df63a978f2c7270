"""When fairseq gets the plugin's repairs and names: in every order of imports, and nothing before fairseq is there."""

import os
import subprocess
import sys

import pytest

from conftest import ENVIRONMENT, REPOSITORY

MODEL_FOLDER = REPOSITORY / "examples" / "checkpoints" / "recurrent_roberta_mini"
WITHOUT_FAIRSEQ = ("rt_plugin", "rt_plugin.errors", "rt_plugin.reference", "rt_plugin.ops", "rt_plugin.modules")


def run_python(code, *arguments, path=()):
    """Run code in a process of its own; returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, (*path, REPOSITORY)))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# Everything that repairs and registration change in a process.
STATE = """
import argparse, logging, os, sys, warnings
import numpy, torch

def state():
    root = logging.getLogger()
    return [
        sys.excepthook, dict(os.environ), list(warnings.filters), root.level, root.handlers[:],
        hasattr(numpy, "compat"), torch.serialization.get_safe_globals(),
    ]
"""

REGISTERED = """
import sys
def check():
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.models import ARCH_MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY
    from fairseq.trainer import Trainer
    assert {"rt_masked_lm", "rt_glue"} <= set(TASK_REGISTRY) & set(CRITERION_REGISTRY)
    assert {"recurrent_roberta_base", "roberta_mini"} <= set(ARCH_MODEL_REGISTRY)
    assert hasattr(Trainer.__init__, "__wrapped__"), "not repaired"
    if "fairseq_cli.train" in sys.modules:  # which takes this function by name
        assert sys.modules["fairseq_cli.train"].fsdp_enable_wrap.__code__.co_filename.endswith("refusals.py")
    import rt_plugin.model
    assert rt_plugin.model.RecurrentRobertaModel is ARCH_MODEL_REGISTRY["recurrent_roberta_base"]
    return True
"""


FAIRSEQ_FIRST = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="Python 3.14: fairseq 0.12.3.1 cannot be imported before the plugin"
)


@pytest.mark.parametrize(
    "code",
    [
        "import rt_plugin, fairseq",
        pytest.param("import fairseq, rt_plugin", marks=FAIRSEQ_FIRST),
        pytest.param("import rt_plugin.glue.run, fairseq_cli.train", marks=pytest.mark.slow),
        pytest.param("import fairseq_cli.train, rt_plugin.model", marks=[FAIRSEQ_FIRST, pytest.mark.slow]),
        "from rt_plugin.model import RecurrentRobertaModel",
        "import rt_plugin.tasks.masking",
        pytest.param("import rt_plugin.repairs.refusals", marks=pytest.mark.slow),
        pytest.param(
            "import rt_plugin.modules; from fairseq.models.roberta import RobertaModel", marks=pytest.mark.slow
        ),
    ],
)
def test_repaired_and_registered_in_every_order(code):
    run_python(f"{code}\n{REGISTERED}\nassert check()")


def test_fairseqs_own_loading_function_finds_the_model():
    code = f"""
import rt_plugin
from fairseq import hub_utils
loaded = hub_utils.from_pretrained({str(MODEL_FOLDER)!r}, "checkpoint_best.pt", {str(MODEL_FOLDER)!r})
print(type(loaded["models"][0]).__name__, type(loaded["task"]).__module__)
"""
    assert run_python(code).split() == ["RecurrentRobertaModel", "rt_plugin.tasks.rt_masked_lm"]


@FAIRSEQ_FIRST
def test_user_dir():
    """As every command of fairseq does it; a second time, and with the package already imported, nothing happens."""
    code = f"""
import argparse, sys
from fairseq import utils
if len(sys.argv) > 1:
    import rt_plugin
for _ in range(2):
    utils.import_user_module(argparse.Namespace(user_dir={str(REPOSITORY / "rt_plugin")!r}))
{REGISTERED}
assert check()
"""
    run_python(code)
    run_python(code, "imported")


@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_workers_that_start_from_nothing(method, tmp_path):
    """A worker gets its dataset by name, as a data loader's does, and has everything with it."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing
{REGISTERED}
def worker(kind):
    assert kind.__module__ == "rt_plugin.tasks.masking"
    return check()

if __name__ == "__main__":
    from rt_plugin.tasks.masking import MaskedDataset
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        assert pool.apply(worker, (MaskedDataset,))
""")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, script], env=environment, check=True, timeout=120)


def test_import_alone_changes_nothing_and_loads_no_fairseq():
    run_python(f"""
{STATE}
before, finders = state(), sys.meta_path[:]
for name in {WITHOUT_FAIRSEQ}:
    __import__(name)
assert state() == before
assert [type(f).__name__ for f in sys.meta_path if f not in finders] in (["AfterImport"], ["AfterImport", "type"])
assert not [name for name in sys.modules if name.split(".")[0] in ("fairseq", "omegaconf", "hydra")]
""")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise RuntimeError('libcudart.so.99 is missing')", "RuntimeError: libcudart.so.99 is missing"),
        ("def broken(:\n    pass", "SyntaxError: "),
        (None, "ModuleNotFoundError: No module named 'fairseq'"),
    ],
    ids=["RuntimeError", "SyntaxError", "none"],
)
def test_fairseq_that_fails(source, error, tmp_path):
    """What needs no fairseq works; fairseq's own error comes through, every time, and leaves nothing behind."""
    if source is not None:
        (tmp_path / "fairseq").mkdir()
        (tmp_path / "fairseq" / "__init__.py").write_text(source)
    run_python(
        f"""
{STATE}
class NoFairseq:
    def find_spec(name, path=None, target=None):
        if name == "fairseq" and {source is None}:
            raise ModuleNotFoundError("No module named 'fairseq'", name=name)

sys.meta_path.insert(0, NoFairseq)
before = state()
for attempt in range(2):
    for name in {WITHOUT_FAIRSEQ}:
        __import__(name)
    for name in ("fairseq", "rt_plugin.model", "fairseq.utils"):
        try:
            __import__(name)
        except BaseException as error:
            message = f"{{type(error).__name__}}: {{error}}"
        assert message.startswith({error!r}), message
import torch
from rt_plugin.modules import RecurrentFFN
assert RecurrentFFN(8)(torch.zeros(3, 2, 8)).shape == (3, 2, 8)
assert state() == before
""",
        path=[tmp_path],
    )


# From here: two small packages in the place of fairseq and of ours, which show the order of things.
SMALL = {
    "host/__init__.py": "import log; import host.part; log.lines.append('host')",
    "host/part.py": "import log; log.lines.append('part')",
    "guest/__init__.py": "",
    "guest/needs.py": "import host; import log; from guest import low; WHOLE = True; log.lines.append('needs')",
    "guest/low.py": "from host import part; WHOLE = True",
    "guest/alone.py": "",
    "log.py": "lines = []",
}
WATCH = """
import log, sys
from rt_plugin._after_import import AfterImport
def act():
    import host.part
    from guest.needs import WHOLE
    from guest.low import WHOLE
    log.lines.append("act")
watch = AfterImport("host", "guest", act)
"""


@pytest.fixture
def small(tmp_path):
    for name, source in SMALL.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    return lambda code: run_python(f"{WATCH}\n{code}", path=[tmp_path])


@pytest.mark.parametrize(
    ("code", "order"),
    [
        ("watch.start(); import host", "part host needs act"),
        ("import host; watch.start()", "part host needs act"),
        ("watch.start(); import host.part", "part host needs act"),
        ("watch.start(); import guest.alone", ""),
        ("watch.start(); import guest.alone, host", "part host needs act"),
        ("watch.start(); import guest.needs", "part host needs act"),
        ("watch.start(); import guest.low", "part host needs act"),
        ("watch.start(); import guest.low, guest.needs, host, importlib; importlib.reload(host)",
         "part host needs act host"),
        ("sys.modules['host'] = None; watch.start(); import guest.alone", ""),
    ],
)  # fmt: skip
def test_action_comes_once_when_all_is_whole(small, code, order):
    """`needs` and `low` import the host, and the action needs them whole."""
    assert small(f"{code}\nprint(*log.lines)").strip() == order


def test_import_of_the_watched_package_from_another_thread(small):
    code = """
import threading
watch.start()
threads = [threading.Thread(target=__import__, args=(name,)) for name in ("host", "guest.alone", "host.part")]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*log.lines)
"""
    assert small(code).strip() == "part host needs act"


def test_modules_keep_their_own_loader_and_resources(small):
    small("""
import importlib.resources, importlib.util, inspect
watch.start()
assert importlib.util.find_spec("host").origin.endswith("__init__.py")
assert importlib.util.find_spec("host").loader.get_source("host") and not log.lines
import host, guest.low
for module in (host, guest.low):
    assert type(module.__loader__) is type(module.__spec__.loader) is type(log.__loader__)
    assert inspect.getsource(module)
assert (importlib.resources.files("host") / "part.py").is_file()
""")


def test_action_that_fails_is_told_and_tried_again_and_blocks_nothing_else(small):
    code = """
failures = ["once"]
def act():
    log.lines.append("act")
    if failures:
        raise RuntimeError(failures.pop())
watch = AfterImport("host", "guest", act)
watch.start()
try:
    import host
except RuntimeError as error:
    assert str(error) == "once"
import guest.alone
import host
import guest.low
print(*log.lines)
"""
    assert small(code).strip() == "part host act host act"


SCIKIT_LEARN = """
import sys
import rt_plugin.model
assert "rt_plugin.tasks.rt_glue" in sys.modules
print([name for name in ("sklearn", "scipy") if name in sys.modules])
from fairseq.criterions.sentence_prediction import acc_and_f1, pearson_and_spearman
from fairseq.tasks.audio_classification import sklearn_metrics
import numpy
print(acc_and_f1(numpy.array([1, 0, 1]), numpy.array([1, 1, 1]))["f1"])
print(pearson_and_spearman([1, 2, 4], [1, 2, 4])["pearson"] > 0.999)
print(sklearn_metrics.roc_curve([0, 1], [0.1, 0.9])[0].tolist()[0])
"""


def test_scikit_learn_is_imported_when_it_is_used():
    """It and scipy are a third of what loading a model takes."""
    assert run_python(SCIKIT_LEARN).splitlines() == ["[]", "0.8", "True", "0.0"]
