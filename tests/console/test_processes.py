"""A process ends with the one that started it, however that ends and however it was started."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rt_plugin.console.processes import usable_cores

CHILD = "import os, time; from rt_plugin.console.processes import end_with_parent\n" + (
    "def child():\n    end_with_parent()\n    print(os.getpid(), flush=True)\n    time.sleep(120)\n"
)
STARTS = {
    "subprocess": "import subprocess, sys\n"
    "subprocess.run([sys.executable, '-c', open(sys.argv[1]).read() + 'child()'])",
    **{
        method: f"if __name__ == '__main__':\n    import multiprocessing as m; c = m.get_context('{method}')\n"
        "    p = c.Process(target=child); p.start(); p.join()"
        for method in ("fork", "spawn", "forkserver")
    },
}


@pytest.mark.parametrize("start", STARTS)
def test_child_of_a_killed_process_ends(start, tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(f"{CHILD}\n{STARTS[start]}\n")
    command = [sys.executable, tmp_path / "parent.py", tmp_path / "child.py"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    child = int(parent.stdout.readline())
    time.sleep(0.7)
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(child, 0)
            time.sleep(0.05)


def test_cores_where_a_process_cannot_ask_which_it_may_use(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS has none
    assert usable_cores() == os.cpu_count()
