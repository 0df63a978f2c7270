#!/usr/bin/env bash
# Sets up, checks the style, runs the tests. Arguments go to pytest: bash scripts/test.sh -k text
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
export PATH="${VIRTUAL_ENV:-$root/.venv}/bin:$PATH"
cd "$root"
ruff check .
ruff format --check .
if command -v clang-format >/dev/null; then
  git ls-files -z '*.cpp' '*.cu' '*.h' | xargs -0 clang-format --dry-run --Werror
fi
# One thread to each of the two processes: with two, they wait for each other on two cores (a quarter more time).
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Two processes, a file of tests to each at a time; -n 0 after the script's name runs all in one. Longer variants of
# some tests are left out; `-m slow` runs them.
exec python -m pytest -n 2 --dist loadfile -m "not slow" "$@"
