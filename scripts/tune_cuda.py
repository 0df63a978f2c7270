"""Measure the CUDA kernels cut up in many ways: which shape is fastest, and do all give the same bits?

    python scripts/tune_cuda.py [--problems 512x32x2048x1,128x256x2048x1] [--dtypes float16,bfloat16]

Compiles scripts/tune_cuda.cu with nvcc, runs it for every problem (L x B x d' x k) and type, and prints the fastest
shapes beside what the operation chooses (the tables of rt_plugin/csrc/cuda.cu; its backward includes the sums of the
parameters' gradients, about 3 microseconds). Exits with 1 where a shape gave other bits than the operation.

--emulate runs the same program on a CPU, compiled with c++ and the header of tests/native: it shows that everything
works, its times mean nothing. Writes tune_cuda.csv to --out.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import checkout

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "rt_plugin" / "csrc"
TYPES = {"float16": "Half", "bfloat16": "BFloat16", "float32": "float", "float64": "double"}
PRINTED = ("pass", "channels", "ahead", "threads", "registers", "median_us", "copy_us", "bits")
COLUMNS = ("problem", "dtype", *PRINTED, "share_of_copy_bandwidth")


def find_nvcc() -> str:
    folders = (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
    found = shutil.which("nvcc") or next(
        (str(Path(f, "bin", "nvcc")) for f in folders if f and Path(f, "bin", "nvcc").is_file()), None
    )
    if found is None:
        raise SystemExit("tune_cuda: error: no nvcc on PATH, in CUDA_HOME or /usr/local/cuda; install a CUDA toolkit")
    return found


def build(folder: Path, dtype: str, emulate: bool) -> Path:
    """The program for one type."""
    program = folder / f"tune_{dtype}"
    sources = [ROOT / "scripts" / "tune_cuda.cu", CSRC / "cuda.cu"]
    options = ["-std=c++17", f"-DRT_TYPE={TYPES[dtype]}", "-I", CSRC, "-o", program]
    if emulate:
        command = [os.environ.get("CXX", "c++"), "-O1", "-w", "-x", "c++", "-I", ROOT / "tests/native/emulation"]
    else:
        command = [find_nvcc(), "-O3", "-arch=native"]
    subprocess.run([str(part) for part in (*command, *options, *sources)], check=True)
    return program


def measure(program: Path, problem: str, dtype: str, rounds: int) -> list[dict]:
    printed = subprocess.run([program, *problem.split("x"), str(rounds)], check=True, stdout=subprocess.PIPE, text=True)
    rows = []
    for row in csv.DictReader(printed.stdout.splitlines(), PRINTED):
        share = round(float(row["copy_us"]) / max(float(row["median_us"]), 0.01), 3)
        rows.append({"problem": problem, "dtype": dtype, **row, "share_of_copy_bandwidth": share})
    return rows


def print_fastest(rows: list[dict], count: int) -> None:
    """For each pass the operation's own choice and the fastest shapes."""
    for label in ("forward", "backward"):
        own, *others = (row for row in rows if row["pass"] == label)
        others.sort(key=lambda row: float(row["median_us"]))
        print(f"{own['problem']} {own['dtype']} {label}: copy {own['copy_us']} us")
        for row in (own, *others[:count]):
            name = "the operation" if row is own else "V={channels} U={ahead} {threads} threads".format(**row)
            print(
                f"  {name:26} {row['median_us']:>9} us  {float(row['share_of_copy_bandwidth']):4.0%} of the copy  "
                f"{row['registers']:>3} registers  bits {row['bits']}"
            )


def parse(arguments=None) -> argparse.Namespace:
    parser = checkout.parser(__doc__)
    default = "512x32x2048x1,512x32x2048x2,128x256x2048x1,512x8x680x1,512x4x344x1"
    parser.add_argument("--problems", default=default, help=f"LxBxd'xk, comma-separated (default: {default})")
    parser.add_argument("--dtypes", default="float16,bfloat16", help="comma-separated (default: float16,bfloat16)")
    parser.add_argument("--rounds", type=int, default=21, help="measurements of each; the median is told (default: 21)")
    parser.add_argument("--fastest", type=int, default=4, help="how many shapes to print (default: 4; the CSV has all)")
    parser.add_argument("--emulate", action="store_true", help="on a CPU, to try the program without a GPU")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the CSV (default: outputs)")
    args = parser.parse_args(arguments)
    if unknown := set(args.dtypes.split(",")) - set(TYPES):
        parser.error(f"--dtypes {','.join(sorted(unknown))}: expected names of {', '.join(TYPES)}")
    return args


def main(arguments=None) -> int:
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in args.dtypes.split(","):
            program = build(Path(folder), dtype, args.emulate)
            for problem in args.problems.split(","):
                part = measure(program, problem, dtype, args.rounds)
                print_fastest(part, args.fastest)
                rows += part
    with open(args.out / "tune_cuda.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {args.out}/tune_cuda.csv")
    other = [row for row in rows if row["bits"] != "same"]
    for row in other:
        print("other bits than the operation: " + ", ".join(f"{k} {row[k]}" for k in COLUMNS[:6]), file=sys.stderr)
    return bool(other)


if __name__ == "__main__":
    sys.exit(main())
