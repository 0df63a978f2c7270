"""Does something when another package is imported, or as soon as it has been, without importing it."""

import builtins
import contextlib
import functools
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterator


class AfterImport:
    """A finder for `sys.meta_path` that finds nothing itself: it watches the imports of two packages.

    `action` is called once, when `host` has been imported whole. Where that happens while modules of `package` are
    being imported, because one of them imports the host, it is called when the outermost of them is whole, too: the
    action may import any module of the package. An exception of the host's import goes through, and the next import is
    watched again.

    Args:
        host: the package that is waited for; at most a name in `sys.modules` is looked at, nothing is imported.
        package: the package that this is for.
        action: what to do.
        around: a context for the import of the host.
    """

    def __init__(
        self,
        host: str,
        package: str,
        action: Callable[[], None],
        around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self._host, self._package = host, package
        self._action, self._around = action, around
        self._imported = False  # the host, whole
        self._done = False
        self._here = threading.local()  # .depth: how many modules of the package are being imported by this thread

    def start(self) -> None:
        """Watch from now on; where the host is imported already, act at once."""
        sys.meta_path.insert(0, self)
        if sys.modules.get(self._host) is not None:  # None: imports of it are forbidden
            importlib.import_module(self._host)  # waits where another thread is in the middle of it
            self._imported = True
            self._act()

    def find_spec(self, fullname, path=None, target=None):
        if self._done or not (fullname == self._host or fullname.startswith(f"{self._package}.")):
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:  # a folder without __init__.py has none
                    spec.loader = _WatchedLoader(spec.loader, self._import_host if path is None else self._import_own)
                return spec
        return None

    def _import_host(self, execute: Callable[[], None]) -> None:
        with self._around():
            execute()
        self._imported = True
        if not getattr(self._here, "depth", 0):
            self._act()

    def _import_own(self, execute: Callable[[], None]) -> None:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        try:
            execute()
        finally:
            self._here.depth -= 1
        if self._imported and not self._here.depth:
            self._act()

    def _act(self) -> None:
        if not self._done:
            self._done = True  # the action itself imports
            try:
                self._action()
            except BaseException:
                self._imported = self._done = False  # what does not need the host can still be imported
                raise


@contextlib.contextmanager
def as_soon_as_executed(name: str, action: Callable[[types.ModuleType], None]) -> Iterator[None]:
    """For the length of a block: hand one module to `action` when it is executed, before anything of it is used.

    Args:
        name: of a module that lies in a package.
        action: what to do with it.
    """

    def execute(module_body: Callable[[], None]) -> None:
        module_body()
        action(sys.modules[name])

    with _watched({name: execute}):
        yield


@contextlib.contextmanager
def deferred(*names: str, within: tuple[str, ...]) -> Iterator[None]:
    """For the length of a block: imports of some modules, where others import them, wait until a function is called.

    Args:
        names: of modules of which functions alone are taken, by `from NAME import function`, or that are themselves
            taken from their package, by `from PACKAGE import NAME`.
        within: the modules whose imports these are; no other import is touched.
    """
    stand_ins = {name: _StandIn(name) for name in names}

    def import_or_defer(name, globals=None, locals=None, fromlist=(), level=0):
        if not level and fromlist:
            if name in stand_ins:
                return stand_ins[name]
            parts = {part: stand_ins.get(f"{name}.{part}") for part in fromlist}
            if all(parts.values()):
                return types.SimpleNamespace(**parts)
        return builtins.__import__(name, globals, locals, fromlist, level)

    def execute(name: str, module_body: Callable[[], None]) -> None:
        sys.modules[name].__builtins__ = {**vars(builtins), "__import__": import_or_defer}
        module_body()

    with _watched({name: functools.partial(execute, name) for name in within}):
        yield


class _StandIn:
    """Has the functions of a module, which is imported when one of them is called."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            return getattr(importlib.import_module(self._module), name)(*args, **kwargs)

        call.__name__ = name
        return call


@contextlib.contextmanager
def _watched(arounds: dict[str, Callable[[Callable[[], None]], None]]) -> Iterator[None]:
    """For the length of a block: execute modules, by their names, through functions that are given their bodies."""

    class Finder:
        @staticmethod
        def find_spec(fullname, path=None, target=None):
            if fullname not in arounds:
                return None
            for finder in sys.meta_path[sys.meta_path.index(Finder) + 1 :]:
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    spec.loader = _WatchedLoader(spec.loader, arounds[fullname])
                    return spec
            return None

    sys.meta_path.insert(0, Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(Finder)


class _WatchedLoader:
    """Executes one module through `around`, and is the module's own loader in everything else."""

    def __init__(self, loader, around: Callable[[Callable[[], None]], None]):
        self._loader, self._around = loader, around

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def exec_module(self, module) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._around(lambda: self._loader.exec_module(module))
