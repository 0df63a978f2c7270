"""The rooms of rt_plugin, which of them may import which, and what the code imports, read from its syntax trees."""

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "rt_plugin"
FOLDERS = {PACKAGE: Path(PACKAGE), f"{PACKAGE}.tasks": Path("tasks"), f"{PACKAGE}.criterions": Path("criterions")}

_GROUND = ("errors", "_after_import", "_version", "_location", "trust")  # need nothing
_FILES = (*_GROUND, "console", "model_folder")
_TEXT = (*_FILES, "text")
# room, or file at the top of the package -> what else of the package it may import
MAY_IMPORT = {
    "errors": (),
    "_after_import": (),
    "_version": (),
    "_location": (),
    "trust": (),
    "reference": ("errors",),
    "ops": ("errors", "reference"),
    "documents": ("errors",),
    "encoder": (),
    "modules": ("errors", "reference", "ops", "documents"),
    "console": _GROUND,
    "backends": (*_GROUND, "console", "ops"),
    "model_folder": (*_GROUND, "console"),
    "blocks": (*_GROUND, "console"),
    "repairs": (*_FILES, "encoder"),  # what a training starts from is the model folder's knowledge
    "text": _FILES,
    "inference": _TEXT,
    "hub": ("inference",),
    "model": ("reference", "ops", "documents", "encoder", "modules", *_FILES, "hub"),
    "export": (*_TEXT, "inference", "evaluation", "huggingface"),
    "huggingface": ("ops", "modules", "model", *_TEXT),
    "corpus": _TEXT,
    "pretrain": (*_TEXT, "ops"),  # whether a GPU has the compiled operation
    "glue": (*_TEXT, "inference", "hub"),
    "evaluation": ("reference", "modules", *_TEXT, "inference", "hub"),  # it looks into the blocks of a loaded model
    "replicate": (*_TEXT, "pretrain", "glue"),
    "tasks": (*_TEXT, "blocks", "glue"),
    "criterions": (*_TEXT, "glue"),
}
COMPOSITION_ROOTS = ("__init__", "__main__")  # may import everything
STANDARD_LIBRARY_ONLY = "rt_plugin.glue.specs"  # the GLUE table


@dataclass(frozen=True)
class Import:
    """One import, or one use of an imported name.

    Attributes:
        source: the module that imports.
        target: the module that is imported.
        name: what is taken from it; "" for the module itself.
        place: file and line.
    """

    source: str
    target: str
    name: str
    place: str


def modules(repository: Path = REPOSITORY) -> dict[str, Path]:
    """Module name -> file, of the whole package; a package goes by its name without `__init__`."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((repository / folder).rglob("*.py")):
            parts = path.relative_to(repository / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def room_of(module: str) -> str:
    """The room, or the file at the top of the package, that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def read_imports(files: dict[str, Path], known: dict[str, Path] | None = None) -> list[Import]:
    """Every import in the files, those within functions too.

    Args:
        files: module name -> file.
        known: the package's own modules (default: `files`); `from PACKAGE import NAME` is an import of the module
            PACKAGE.NAME where there is one.
    """
    known = files if known is None else known
    found = []
    for module, path in files.items():
        is_package = path.name == "__init__.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.parent.name}/{path.name}:{getattr(node, 'lineno', 0)}"
            for target, name in _imported(node, module, is_package):
                whole = f"{target}.{name}"
                found.append(Import(module, *((whole, "") if whole in known else (target, name)), place))
    return found


def _imported(node: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, str]]:
    """(module, name) pairs of an import statement, or of a call of `import_module` with a constant."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
            base = ".".join([*parents, *([base] if base else [])])
        yield from ((base, alias.name) for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from ((arg.value, "") for arg in node.args[:1] if isinstance(arg, ast.Constant))


def read_private_uses(files: dict[str, Path], known: dict[str, Path]) -> list[Import]:
    """Names of the package's own modules with a leading underscore that another file imports or uses.

    A module whose name begins so is open to its own package. Methods of objects are not seen.
    """
    found = []
    for item in read_imports(files, known):
        parent, _, last = item.target.rpartition(".")
        of_own = item.target.split(".")[0] == PACKAGE
        foreign_module = item.target in known and not f"{item.source}.".startswith(f"{parent}.")
        if (of_own and _is_private(item.name)) or (foreign_module and _is_private(last)):
            found.append(item)
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = _own_names(tree, module, path.name == "__init__.py")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and _is_private(node.attr):
                target = own.get(node.value.id)
                if target is not None and target != module:
                    found.append(Import(module, target, node.attr, f"{path.parent.name}/{path.name}:{node.lineno}"))
    return found


def _own_names(tree: ast.AST, module: str, is_package: bool) -> dict[str, str]:
    """What the package's own imports are called in a file -> where they are from."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            pairs = _imported(node, module, is_package)
            for alias, (target, name) in zip(node.names, pairs, strict=True):
                if target.split(".")[0] == PACKAGE:
                    names[alias.asname or alias.name] = f"{target}.{name}" if name else target
    return names


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def arrows(imports: list[Import]) -> dict[tuple[str, str], list[Import]]:
    """(room, room) -> the imports from one into the other, of the package's own modules."""
    found: dict[tuple[str, str], list[Import]] = {}
    for item in imports:
        pair = room_of(item.source), room_of(item.target)
        if item.target.split(".")[0] == PACKAGE and pair[0] != pair[1]:
            found.setdefault(pair, []).append(item)
    return found


def forbidden(imports: list[Import]) -> list[Import]:
    """The imports that the table does not allow."""
    return [
        item
        for (source, target), items in arrows(imports).items()
        if source not in COMPOSITION_ROOTS and target not in MAY_IMPORT.get(source, ())
        for item in items
    ]


def needed_from_outside(module: str, imports: list[Import]) -> set[str]:
    """The top-level names of what a module imports from outside the package, itself or through the package."""
    seen, waiting, outside = set(), [module], set()
    while waiting:
        source = waiting.pop()
        seen.add(source)
        for target in {item.target for item in imports if item.source == source} - seen:
            top = target.split(".")[0]
            if top == PACKAGE:
                waiting.append(target)
            else:
                outside.add(top)
    return outside


def circle(imports: list[Import]) -> list[str]:
    """Modules that import each other in a circle, the first such; empty where there is none."""
    graph: dict[str, set[str]] = {}
    for item in imports:
        if item.source != item.target and item.target.split(".")[0] == PACKAGE:
            graph.setdefault(item.source, set()).add(item.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []
