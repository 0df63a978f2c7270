#!/usr/bin/env python
"""Draw docs/figures/architecture.svg: the rooms, what each is for, its files, and who imports whom, all from the code.

An arrow that follows from others is left out, and so are those to the files that serve everybody.
"""

import argparse
import ast
import sys
import textwrap
from html import escape
from pathlib import Path

import checkout
from architecture import COMPOSITION_ROOTS, REPOSITORY, arrows, modules, read_imports, room_of

PICTURE = REPOSITORY / "docs" / "figures" / "architecture.svg"
# room -> column, row from below; the order of the rows is that of the imports
PLACES = {
    **{"reference": (0, 1), "csrc": (1, 1), "model_folder": (2, 1), "encoder": (3, 1)},
    **{"ops": (0, 2), "backends": (1, 2), "text": (2, 2), "repairs": (3, 2)},
    **{"modules": (0, 3), "inference": (1, 3), "corpus": (2, 3), "pretrain": (3, 3)},
    **{"documents": (0, 4), "hub": (1, 4), "blocks": (3, 4)},
    **{"model": (0, 5), "glue": (1, 5), "evaluation": (2, 5)},
    **{"huggingface": (0, 6), "tasks": (1, 6), "criterions": (2, 6), "replicate": (3, 6)},
    **{"export": (0, 7)},
}
GROUND = ("console", "errors", "trust", "_after_import", "_location", "_version")  # serve everybody
WIDTH, HEIGHT, GAP, MARGIN, BAND = 240, 152, 30, 20, 46
COLUMNS = 1 + max(column for column, _ in PLACES.values())
ROWS = max(row for _, row in PLACES.values())
OP_ROOMS = ("csrc", "reference", "ops", "modules", "model")
CSRC = "The operation in C++ and CUDA, compiled when the package is installed."
STYLE = (
    "text{font-family:Helvetica,Arial,DejaVu Sans,sans-serif;fill:#1a1a1a}.name{font-size:16px;font-weight:bold}"
    ".purpose{font-size:12px}.files{font-size:11px;fill:#5a5a5a}"
    "rect{stroke:#8a8a8a;rx:6}.room{fill:#eef3fa}.op{fill:#fdf1e3}.band{fill:#f2f2f2}"
    "path{stroke:#4a4a4a;stroke-width:1.5;fill:none}"
)


def parse_arguments() -> argparse.Namespace:
    parser = checkout.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the picture is another")
    return parser.parse_args()


def draw() -> str:
    """The picture as SVG."""
    files = modules()
    left, width = MARGIN, COLUMNS * (WIDTH + GAP) - GAP
    height = 2 * MARGIN + 2 * (BAND + GAP) + ROWS * (HEIGHT + GAP) - GAP
    top = " and ".join(_title(room, files) for room in COMPOSITION_ROOTS)
    ground = ", ".join(_title(room, files) for room in GROUND)
    shapes = [
        _box(left, MARGIN, width, BAND, "band", top, "registration with fairseq, and the command: import every room"),
        _box(left, height - MARGIN - BAND, width, BAND, "band", ground, "used everywhere: arrows to them are left out"),
    ]
    graph = _without_what_follows(_graph(files))
    shapes += [_arrow(source, target, height) for source in sorted(graph) for target in sorted(graph[source])]
    shapes += [_room(room, files, height) for room in PLACES]
    size = f'width="{width + 2 * MARGIN}" height="{height}" viewBox="0 0 {width + 2 * MARGIN} {height}"'
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            "<title>The rooms of rt_plugin; an arrow points to what is imported</title>",
            f"<style>{STYLE}</style>",
            f'<defs>{head}<path d="M0 0L8 4L0 8z" style="fill:#4a4a4a;stroke:none"/></marker></defs>',
            '<rect width="100%" height="100%" style="fill:#ffffff;stroke:none"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _graph(files: dict[str, Path]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {room: set() for room in PLACES}
    graph["ops"].add("csrc")  # loads the libraries
    missing = {room_of(module) for module in files} - {*PLACES, *GROUND, *COMPOSITION_ROOTS}
    if missing:
        sys.exit(
            f"draw_architecture.py: error: no place in the picture for {', '.join(sorted(missing))}; add to PLACES"
        )
    for source, target in arrows(read_imports(files)):
        if source in PLACES and target in PLACES:
            graph[source].add(target)
    return graph


def _without_what_follows(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    def reachable(room: str) -> set[str]:
        return graph[room].union(*map(reachable, graph[room]))

    return {room: others - set().union(*map(reachable, others)) for room, others in graph.items()}


def _corner(room: str, height: int) -> tuple[int, int]:
    """The upper left corner of a room."""
    column, row = PLACES[room]
    return MARGIN + column * (WIDTH + GAP), height - MARGIN - BAND - row * (HEIGHT + GAP)


def _room(room: str, files: dict[str, Path], height: int) -> str:
    if room == "csrc":
        sources = sorted(path.name for path in (REPOSITORY / "rt_plugin" / "csrc").glob("c*[!0-9es].c*"))
        return _box(*_corner(room, height), WIDTH, HEIGHT, "op", "csrc/", CSRC, ", ".join(sources))
    own = {module: path for module, path in files.items() if room_of(module) == room}
    name = f"rt_plugin.{room}"
    purpose = (ast.get_docstring(ast.parse(own[name].read_text(encoding="utf-8"))) or "").split("\n")[0]
    parts = sorted(module.removeprefix(f"{name}.") for module in own if module != name)
    kind = "op" if room in OP_ROOMS else "room"
    return _box(*_corner(room, height), WIDTH, HEIGHT, kind, _title(room, files), purpose, ", ".join(parts))


def _title(room: str, files: dict[str, Path]) -> str:
    """As the room is called on disk: `text/` or `ops.py`."""
    path = files.get(f"rt_plugin.{room}")
    return f"{room}/" if path is not None and path.name == "__init__.py" else f"{room}.py"


def _box(x: int, y: int, width: int, height: int, kind: str, name: str, purpose: str, files: str = "") -> str:
    lines = [f'<text class="name" x="{x + 10}" y="{y + 20}">{escape(name)}</text>']
    wrapped = [("purpose", line) for line in textwrap.wrap(purpose.replace("`", ""), width // 7)]
    lines_left = max(1, (height - 30) // 15 - len(wrapped))
    wrapped += [("files", line) for line in textwrap.wrap(files, width // 6, max_lines=lines_left, placeholder=" ...")]
    for number, (style, line) in enumerate(wrapped):
        lines.append(f'<text class="{style}" x="{x + 10}" y="{y + 37 + 15 * number}">{escape(line)}</text>')
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>' + "".join(lines)


def _arrow(source: str, target: str, height: int) -> str:
    """From the one that imports to what is imported: from edge to edge of neighbours, else from above to below."""
    (x1, y1), (x2, y2) = _corner(source, height), _corner(target, height)
    shift = (x1 < x2) - (x1 > x2)  # arrows from the side end beside those from above
    if y1 == y2:
        edges = (x1 + WIDTH, x2) if shift > 0 else (x1, x2 + WIDTH)
        return f'<path d="M{edges[0]} {y1 + HEIGHT // 2}H{edges[1]}" marker-end="url(#head)"/>'
    start, end = (x1 + WIDTH // 2 + 50 * shift, y1 + HEIGHT), (x2 + WIDTH // 2 - 60 * shift, y2)
    bend = (end[1] - start[1]) // 2
    curve = f"M{start[0]} {start[1]}C{start[0]} {start[1] + bend} {end[0]} {end[1] - bend} {end[0]} {end[1]}"
    return f'<path d="{curve}" marker-end="url(#head)"/>'


def main() -> None:
    args = parse_arguments()
    picture = draw()
    if not args.check:
        PICTURE.write_text(picture, encoding="utf-8")
        print(PICTURE.relative_to(REPOSITORY))
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != picture:
        sys.exit(f"draw_architecture.py: {PICTURE.relative_to(REPOSITORY)} is not that of the code; run the script")


if __name__ == "__main__":
    main()
