"""What keeps processes from outliving those that started them."""

import multiprocessing
import os
import threading
import time


def end_with_parent() -> None:
    """End this process, with status 1 and at once, as soon as the one that started it is gone.

    For children of a process that may be killed (kill -9, no memory) before it can stop them: a worker would wait for
    work for ever, a training would write into the folder of the next attempt.
    """
    threading.Thread(target=_end_after_parent, args=(os.getppid(),), daemon=True).start()


def _end_after_parent(process: int) -> None:
    if parent := multiprocessing.parent_process():
        parent.join()  # with a fork server, the process above this one is the server
    while parent is None and os.getppid() == process:
        time.sleep(0.5)
    os._exit(1)
