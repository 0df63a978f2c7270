#!/usr/bin/env python
"""Write the tables of repairs in docs/fairseq.md, from what rt_plugin/repairs declares."""

import re
import sys
from pathlib import Path

import checkout
from rt_plugin.repairs.registry import Repair, all_repairs

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENT = REPOSITORY / "docs" / "fairseq.md"
HEADINGS = {
    "repair": "Repairs: what breaks without them",
    "changed behaviour": "Changed behaviour: what fairseq does otherwise",
    "refusal": "Refusals: what would go wrong silently",
}
BEGIN = "<!-- From here to the end mark: written by scripts/repairs_table.py -->\n"
END = "<!-- end of the tables -->"


def tables() -> str:
    """Markdown: a table for each kind of repair, its lines as long as their text."""
    parts = []
    for kind, heading in HEADINGS.items():
        rows = [_row(one) for one in all_repairs() if one.kind == kind]
        # not console.tables, which pads every line to the longest text
        lines = [("name", "without it", "replaces", "upstream", "may go when"), ("---",) * 5, *rows]
        parts.append("\n".join([f"## {heading}", "", *(f"| {' | '.join(cells)} |" for cells in lines)]))
    return "\n\n".join(parts)


def _row(one: Repair) -> tuple[str, ...]:
    threads = [f"[{thread}](https://github.com/{thread.replace('#', '/issues/')})" for thread in one.threads]
    replaced = ", ".join(f"`{name}`" for name in one.patches)
    return f"`{one.name}` ({one.topic})", one.without, replaced, ", ".join(threads) or "none found", one.until


def with_tables(text: str) -> str:
    """The document with today's tables between its two marks."""
    between = re.compile(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", re.DOTALL)
    if len(between.findall(text)) != 1:
        sys.exit(f"repairs_table.py: {DOCUMENT.name} needs one line {BEGIN.strip()!r} and below it {END!r}")
    return between.sub(lambda _: f"\n{tables()}\n\n", text)


def main() -> None:
    parser = checkout.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the tables are others")
    check = parser.parse_args().check
    text = DOCUMENT.read_text(encoding="utf-8")
    if not check:
        DOCUMENT.write_text(with_tables(text), encoding="utf-8")
        print(DOCUMENT.relative_to(REPOSITORY))
    elif with_tables(text) != text:
        sys.exit(f"repairs_table.py: {DOCUMENT.relative_to(REPOSITORY)} is not up to date; run the script")


if __name__ == "__main__":
    main()
