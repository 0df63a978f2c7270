"""What a repair of fairseq is, and the list of them, which can be taken back one by one.

A repair is a function that replaces attributes of fairseq, numpy or torch through the `Patches` it is given. Its
decorator declares what it is, its docstring says what goes wrong without it; docs/fairseq.md is made from both.
"""

import contextlib
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rt_plugin.console.requirements import FAIRSEQ_VERSION

logger = logging.getLogger(__name__)

# Modules of this package, in the order in which their repairs are made: of two that wrap the same function, the later
# one is called first. Refusals come before anything is done.
TOPICS = (
    "libraries",
    "precision",
    "memory",
    "distributed",
    "data",
    "checkpoint_files",
    "stopping",
    "resuming",
    "behaviour",
    "refusals",
)


class Patches:
    """Replaces attributes and remembers how to take that back; `names` are those replaced, dotted."""

    def __init__(self):
        self.names: list[str] = []
        self._undo: list[Callable[[], None]] = []

    def set(self, owner, name: str, value) -> None:
        """Replace the attribute `name` of a module or a class."""
        if hasattr(owner, name):
            undo = functools.partial(setattr, owner, name, owner.__dict__[name])
        else:
            undo = functools.partial(delattr, owner, name)
        place = owner.__name__ if inspect.ismodule(owner) else f"{owner.__module__}.{owner.__qualname__}"
        setattr(owner, name, value)
        self.note(f"{place}.{name}", undo)

    def note(self, name: str, undo: Callable[[], None]) -> None:
        """Remember a replacement that was made otherwise."""
        self.names.append(name)
        self._undo.append(undo)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


@dataclass(frozen=True)
class Repair:
    """One repair.

    Args:
        name: of the function.
        topic: the module that it stands in, one of `TOPICS`.
        kind: "repair", "changed behaviour" or "refusal".
        without: what goes wrong without it (the docstring's first paragraph).
        patches: the dotted names that it replaces.
        threads: where that is talked about upstream, as "owner/repository#number"; none where none was found.
        until: when it may go.
        apply: makes it.
    """

    name: str
    topic: str
    kind: str
    without: str
    patches: tuple[str, ...]
    threads: tuple[str, ...]
    until: str
    apply: Callable[[Patches], None]


_declared: dict[str, Repair] = {}
_made: dict[str, Patches] = {}


def _declare(kind: str, *, patches: Iterable[str], threads: Iterable[str] = (), until: str):
    def add(function: Callable[[Patches], None]) -> Callable[[Patches], None]:
        without = " ".join(inspect.getdoc(function).split("\n\n")[0].split())
        topic = function.__module__.rpartition(".")[2]
        _declared[function.__name__] = Repair(
            function.__name__, topic, kind, without, tuple(patches), tuple(threads), until, function
        )
        return function

    return add


# Decorators, by kind; all take patches, threads and until as `Repair` has them.
repair = functools.partial(_declare, "repair")
changed_behaviour = functools.partial(_declare, "changed behaviour")
refusal = functools.partial(_declare, "refusal")


def all_repairs() -> list[Repair]:
    """Every repair, in the order in which they are made. Imports fairseq."""
    for topic in TOPICS:
        importlib.import_module(f"{__package__}.{topic}")
    return sorted(_declared.values(), key=lambda one: TOPICS.index(one.topic))


def make_all(fairseq_version: str) -> None:
    """Make every repair that is not made yet.

    Args:
        fairseq_version: of the fairseq that was imported; a warning says so where it is another than they are for.
    """
    if fairseq_version != FAIRSEQ_VERSION:
        logger.warning(
            "fairseq is %s here, and the plugin's repairs are written for %s (pip install fairseq-fixed==%s); what "
            "they replace may be something else by now",
            *(fairseq_version, FAIRSEQ_VERSION, FAIRSEQ_VERSION),
        )
    for one in all_repairs():
        if one.name not in _made:
            _make(one)


def _make(one: Repair) -> None:
    patches = Patches()
    one.apply(patches)
    _made[one.name] = patches


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Take one repair back for the length of a block (for tests, and to see whether a newer fairseq still needs it)."""
    _make_just([one for one in all_repairs() if one.name != name])
    try:
        yield
    finally:
        _make_just(all_repairs())


def _make_just(repairs: Iterable[Repair]) -> None:
    """Two repairs may wrap one function; taken back in the reverse order, neither brings the other's wrapper back."""
    for name in reversed(list(_made)):
        _made.pop(name).undo()
    for one in repairs:
        _make(one)


def patched_names(name: str) -> list[str]:
    """The dotted names that a repair has replaced in this process."""
    return _made[name].names
