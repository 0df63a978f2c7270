#!/usr/bin/env bash
# Sets up, checks the style, runs the tests. Arguments go to pytest: bash scripts/test.sh -k text
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
export PATH="${VIRTUAL_ENV:-$root/.venv}/bin:$PATH"
cd "$root"
ruff check .
ruff format --check .
exec python -m pytest "$@"
