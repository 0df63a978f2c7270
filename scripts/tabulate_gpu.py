"""The tables of docs/op.md that were measured on a GPU, made from the CSV files that scripts/check_gpu.sh writes.

    python scripts/tabulate_gpu.py [FOLDER]      # prints them; FOLDER: outputs/check_gpu
    python scripts/tabulate_gpu.py FOLDER --keep # takes the files to docs/figures, and the tables into docs/op.md
    python scripts/tabulate_gpu.py --check       # exit code 1 where docs/op.md is not what docs/figures gives

Without measurements the page says that there are none.
"""

import csv
import shutil
import sys
from pathlib import Path

import checkout

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rt_plugin.console.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "op.md"
FIGURES = ROOT / "docs" / "figures"
BEGIN, END = "<!-- by scripts/tabulate_gpu.py -->", "<!-- end -->"
OP, STEPS, PADDED_STEPS, TUNE = "benchmark_op.csv", "steps.csv", "steps_padded.csv", "tune_cuda.csv"
KEPT = {name: f"gpu_{name}" for name in (OP, STEPS, PADDED_STEPS, TUNE)}
NOTHING = (
    "Not measured yet: the CUDA op has run on no GPU. `bash scripts/check_gpu.sh` builds, tests and measures it and\n"
    "prints one report; `python scripts/tabulate_gpu.py outputs/check_gpu --keep` brings its tables here."
)


def read(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def machines(rows: list[dict]) -> str:
    """Who measured, one line a machine and day."""
    return "; ".join(dict.fromkeys(row["machine"] for row in rows))


def op_table(rows: list[dict]) -> str:
    """The op beside the copy of its bytes, a row per shape, k, type and pass."""
    keys = ("shape", "step_size", "dtype", "pass")
    of = {(*(row[key] for key in keys), row["candidate"]): row for row in rows}
    lines = []
    for *case, candidate in of:
        if candidate != "op":
            continue
        row, copy, loop = (of.get((*case, name)) for name in ("op", "copy", "reference loop"))
        times = f"{float(loop['median_ms']) / float(row['median_ms']):.1f}" if loop else ""
        share = f"{float(row['share_of_copy_bandwidth']):.0%}"
        shape = row["shape"].replace("x", " x ")
        lines.append((shape, *case[1:], copy["median_ms"], row["median_ms"], row["gb_per_s"], share, times))
    headings = (
        "L x B x d'",
        "k",
        "type",
        "pass",
        "copy, ms",
        "op, ms",
        "GB/s",
        "share of the copy's bandwidth",
        "loop / op",
    )
    return f"{machines(rows)}.\n\n{markdown_table(headings, lines, left=(0, 2, 3))}"


def step_table(rows: list[dict]) -> str:
    """Training steps, a row per model; the ratio is to the first model of the same measurement."""
    lines = []
    for row in rows:
        size = f"{row['layers']} layers, d={row['width']}, {row['batch']} x {row['length']}"
        what = "padded" if "padded" in row["what"] else "full"
        tokens = f"{int(row['tokens_per_s']):,}"
        lines.append(
            (row["candidate"], size, what, row["dtype"], row["median_ms"], row["ratio"], tokens, row["peak_mib"])
        )
    headings = ("model", "size", "rows", "type", "step, ms", "ratio", "tokens/s", "peak, MiB")
    return f"{machines(rows)}.\n\n{markdown_table(headings, lines, left=(0, 1, 2, 3))}"


def tune_table(rows: list[dict]) -> str:
    """The fastest shape of a kernel beside what the operation takes, a row per problem, type and pass."""
    lines = []
    for key in dict.fromkeys((row["problem"], row["dtype"], row["pass"]) for row in rows):
        own, *others = (row for row in rows if (row["problem"], row["dtype"], row["pass"]) == key)
        best = min(others, key=lambda row: float(row["median_us"]))
        shape = "V={channels}, U={ahead}, {threads} threads".format(**best)
        share = f"{float(best['share_of_copy_bandwidth']):.0%}"
        lines.append((key[0].replace("x", " x "), *key[1:], own["median_us"], best["median_us"], share, shape))
    headings = ("L x B x d' x k", "type", "pass", "op, µs", "fastest kernel, µs", "share of the copy's", "which")
    return markdown_table(headings, lines, left=(0, 1, 2, 6))


def section(folder: Path, prefix: str = "") -> str:
    """What the page says of the CSV files in a folder."""
    op, tune = read(folder / (prefix + OP)), read(folder / (prefix + TUNE))
    steps = [*read(folder / (prefix + STEPS)), *read(folder / (prefix + PADDED_STEPS))]
    parts = [op_table(op)] if op else []
    parts += [f"Training steps (forward, backward, AdamW): {step_table(steps)}"] if steps else []
    parts += [f"Each kernel cut up in other ways, by `scripts/tune_cuda.py`:\n\n{tune_table(tune)}"] if tune else []
    return "\n\n".join(parts) or NOTHING


def page_with(text: str) -> str:
    """docs/op.md with this section between its marks."""
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not found or not ends:
        raise SystemExit(f"tabulate_gpu: error: {PAGE} has no lines {BEGIN} and {END}; put them back")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def keep(folder: Path) -> None:
    for name, kept in KEPT.items():
        if (folder / name).is_file():
            shutil.copyfile(folder / name, FIGURES / kept)


def main(arguments=None) -> int:
    parser = checkout.parser(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/check_gpu"))
    parser.add_argument("--keep", action="store_true", help="copy the files into docs/figures, renew docs/op.md")
    parser.add_argument("--check", action="store_true", help="compare docs/op.md with docs/figures")
    args = parser.parse_args(arguments)
    if args.keep:
        keep(args.folder)
    if not args.keep and not args.check:
        print(section(args.folder))
        return 0
    page = page_with(section(FIGURES, "gpu_"))
    if args.check:
        return int(page != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
