#!/usr/bin/env bash
# Installs what the project needs, then the project itself, into the active virtual environment, or into .venv beside
# this checkout where none is active. Quick when there is nothing to do.
#
#   PYTHON          interpreter that makes .venv (default: python3); 3.10 to 3.14
#   RT_TORCH        what pip installs where no torch is found (default: torch==2.13.0)
#   RT_TORCH_INDEX  package index for that torch alone (default: pip's own), for example one with CPU builds
#
# A torch that is already there stays as it is; the rest is chosen to fit it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VIRTUAL_ENV:-$root/.venv}
python=$venv/bin/python
stamp=$venv/rt_plugin_setup.stamp
log=$venv/rt_plugin_setup.log
fairseq=fairseq-fixed==0.12.3.1
started=$SECONDS

say() { echo "setup.sh: $*"; }
fail() { echo "setup.sh: error: $*" >&2; exit 1; }

check_python() { # $1: an interpreter
  command -v "$1" >/dev/null || fail "no $1 here; install Python 3.10 to 3.14, or name one with PYTHON=..."
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' ||
    fail "$1 is $("$1" -V 2>&1); expected Python 3.10 to 3.14; name another with PYTHON=... (and remove $venv if it was made with it)"
}

installed_version() { # $1: a distribution; prints nothing where it is missing
  "$python" -c 'import sys; from importlib import metadata; print(metadata.version(sys.argv[1]))' "$1" 2>/dev/null || true
}

make_environment() {
  local interpreter=${PYTHON:-python3} options=()
  check_python "$interpreter"
  # An interpreter that brings its own torch (a container image, a cluster module) must not get a second one.
  if "$interpreter" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    options=(--system-site-packages)
  fi
  say "making $venv with $("$interpreter" -V)"
  "$interpreter" -m venv ${options[@]+"${options[@]}"} "$venv" ||
    fail "$interpreter cannot make a virtual environment in $venv; install its venv module (on Debian: python3-venv)"
}

pip_install() { # $1: what to say; the rest goes to pip
  local what=$1
  shift
  say "installing $what"
  "$python" -m pip install --disable-pip-version-check "$@" >>"$log" 2>&1 ||
    fail "pip could not install $what: $(grep -i 'error' "$log" | tail -n 1); all it said is in $log"
}

require_compiler() {
  local compiler
  for compiler in "${CXX:-c++}" g++ clang++; do
    command -v "${compiler%% *}" >/dev/null && return
  done
  fail "no C++ compiler (c++, g++ or clang++), which building $fairseq needs; install one, on Debian: apt-get install g++"
}

install_torch() {
  if [ -z "$(installed_version torch)" ]; then
    pip_install "${RT_TORCH:-torch==2.13.0}" ${RT_TORCH_INDEX:+--index-url "$RT_TORCH_INDEX"} "${RT_TORCH:-torch==2.13.0}"
  else
    say "keeping torch $(installed_version torch)"
  fi
  "$python" -c 'import sys; from importlib import metadata
sys.exit(tuple(map(int, metadata.version("torch").split(".")[:2])) < (2, 10))' ||
    fail "torch $(installed_version torch) is installed, expected 2.10 or newer; upgrade it, or use another environment"
}

install_the_rest() {
  local constraints=$venv/rt_plugin_constraints.txt
  # Packages that depend on torch (torchaudio comes with fairseq) must fit the torch that is there.
  echo "torch==$(installed_version torch)" >"$constraints"
  pip_install "build tools" --constraint "$constraints" 'numpy>=2' 'setuptools>=77' wheel cython
  if [ -z "$(installed_version fairseq-fixed)" ]; then
    require_compiler
    # An isolated build would download a torch of its own.
    pip_install "$fairseq (built from source, about two minutes)" --constraint "$constraints" --no-build-isolation "$fairseq"
  fi
  pip_install "rt-plugin from $root" --constraint "$constraints" --no-build-isolation --editable "$root[test]"
  remove_broken_torchaudio
}

# fairseq asks for a torchaudio, and the index may have none for the torch that is here. One that cannot be loaded takes
# others with it that look for it, transformers among them. fairseq imports it for text to speech alone.
remove_broken_torchaudio() {
  local version
  version=$(installed_version torchaudio)
  [ -n "$version" ] && ! "$python" -c 'import torchaudio' >>"$log" 2>&1 || return 0
  say "removing torchaudio $version, which torch $(installed_version torch) cannot load"
  "$python" -m pip uninstall --disable-pip-version-check --yes torchaudio >>"$log" 2>&1 || true
}

# Changes when the environment has to be set up again: another checkout, dependencies, set-up, compiled sources, or what
# they are compiled with and for; and when what was compiled is gone.
fingerprint() {
  {
    echo "$root"
    "$python" -V
    cat "$root/pyproject.toml" "$root/setup.py" "${BASH_SOURCE[0]}"
    find "$root/rt_plugin" -path '*/csrc/*' -type f -exec cksum {} + | sort
    installed_version torch
    command -v c++ g++ clang++ nvcc || true
    echo "${CUDA_HOME-} ${TORCH_CUDA_ARCH_LIST-} ${RT_BUILD_CPU-} ${RT_BUILD_CUDA-}"
    find "$root/rt_plugin" -maxdepth 1 -name '*.so' | sort
  } | cksum
}

is_complete() {
  [ -f "$stamp" ] && [ "$(fingerprint)" = "$(cat "$stamp")" ] &&
    "$python" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ["torch", "fairseq"])))'
}

[ $# -eq 0 ] || fail "found $1, expected no argument but --help or --version; it is told by environment variables"
[ -x "$python" ] || make_environment
if is_complete; then
  say "$venv is up to date"
  exit
fi
check_python "$python"
: >"$log"
install_torch
install_the_rest
fingerprint >"$stamp"
say "$venv is ready after $((SECONDS - started)) s (torch $(installed_version torch)); to use it: source $venv/bin/activate"
