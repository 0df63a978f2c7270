"""Recurrent RoBERTa for fairseq: `--user-dir rt_plugin`, or `import rt_plugin` before loading a checkpoint.

The composition root. As soon as fairseq is imported, before this package or after it, what fairseq needs on today's
Python and torch is repaired (`repairs`), and the models, tasks and criterions are registered. Until then importing this
package changes nothing, and `rt_plugin.reference`, `rt_plugin.ops` and `rt_plugin.modules` work with torch alone.
"""

import contextlib
import importlib.util
import logging
import sys
from pathlib import Path

from ._after_import import AfterImport, as_soon_as_executed, deferred
from ._version import __version__
from .errors import UserError, show_user_errors_in_one_line
from .trust import allow

__all__ = ["UserError", "__version__", "allow"]


class _CheckoutFinder:
    """Finds `rt_plugin.tasks` and `rt_plugin.criterions`, which lie beside this folder in an uninstalled checkout."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        parent, _, part = fullname.rpartition(".")
        folder = Path(__file__).parent.parent / part
        if parent != __name__ or part not in ("tasks", "criterions") or not (folder / "__init__.py").is_file():
            return None
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


@contextlib.contextmanager
def _root_logger_kept():
    """A module of fairseq sets the root logger to DEBUG when it is imported: every library would log every detail."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextlib.contextmanager
def _fairseq_importable():
    """What its import itself needs: from Python 3.14 on it reads its own options wrongly while it is imported; and
    what makes it faster."""

    def repair(module):
        from rt_plugin.repairs.libraries import read_optional_types

        read_optional_types(module)

    with _root_logger_kept(), _without_scikit_learn(), as_soon_as_executed("fairseq.dataclass.utils", repair):
        yield


def _without_scikit_learn():
    """Two modules of fairseq take functions of it and of scipy, whose import is a third of the whole."""
    within = ("fairseq.criterions.sentence_prediction", "fairseq.tasks.audio_classification")
    return deferred("sklearn.metrics", "scipy.stats", within=within)


@_root_logger_kept()
def _register_with_fairseq() -> None:
    show_user_errors_in_one_line()
    import fairseq

    from rt_plugin.repairs import registry

    registry.make_all(getattr(fairseq, "__version__", "of an unknown version"))
    from rt_plugin import criterions, model, tasks  # noqa: F401  (importing them registers their names)
    from rt_plugin.pretrain import fused_adam  # noqa: F401


if not (Path(__file__).parent / "tasks").is_dir():
    # first, so that another checkout's editable install does not mix its own with this one's
    sys.meta_path.insert(0, _CheckoutFinder)
AfterImport("fairseq", __name__, _register_with_fairseq, around=_fairseq_importable).start()
