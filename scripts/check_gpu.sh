#!/usr/bin/env bash
# Builds, tests and measures the CUDA op on a machine with an NVIDIA GPU, and prints one report.
#
#   bash scripts/check_gpu.sh [folder for the report, default outputs/check_gpu [part ...]]
#
# The parts, all of them by default: build tests memcheck initcheck benchmark_op benchmark_block.
# Needs nvcc (CUDA_HOME or PATH) and, in the active environment or .venv, a torch with CUDA, numpy, pytest, hypothesis and
# setuptools; nothing is fetched. fairseq is needed for the training step alone. Exits with 1 where a part failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-outputs/check_gpu}
mkdir -p "$out"
parts=" ${*:2} "
report=$out/report.txt
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && [ -z "${VIRTUAL_ENV:-}" ] && python=.venv/bin/python; } || python=python3
export PATH=$PATH:${CUDA_HOME:+$CUDA_HOME/bin:}/usr/local/cuda/bin
export RT_REQUIRE_GPU=1 # a test that finds no device fails
failed=()

part() { # $1: its name; the rest: the command
  local name=$1 start=$SECONDS
  shift
  [[ $parts == "  " || $parts == *" $name "* ]] || return
  echo "== $name"
  if "$@" >"$out/$name.log" 2>&1; then
    echo "$name: passed in $((SECONDS - start)) s"
  else
    echo "$name: FAILED in $((SECONDS - start)) s; the end of $out/$name.log:"
    tail -n 25 "$out/$name.log"
    failed+=("$name")
  fi
}

build() {
  local capability
  capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return 1
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} RT_BUILD_CPU=1 RT_BUILD_CUDA=1 \
    "$python" setup.py build_ext --inplace
}

# Few cases: under the checker each takes a thousand times as long. torch's own allocator would hide an access that is out
# of bounds, and pass memory on that counts as written.
memory_check() { # $1: a tool of compute-sanitizer
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 "$python" -m pytest -q -m gpu \
    tests/test_ops.py -k "parameters_may_stay or strided or large_arguments or (wide_tensors and not float64)"
}

memory_checks() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "memcheck, initcheck: skipped, no compute-sanitizer on PATH; NVIDIA's installers of the CUDA toolkit bring it"
    return
  fi
  part memcheck memory_check memcheck
  part initcheck memory_check initcheck
}

run() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || true
  nvcc --version | tail -n 2
  part build build
  part backends "$python" -m rt_plugin backends --require cpu --require cuda
  cat "$out/backends.log" 2>/dev/null
  part tests "$python" -m pytest -q -m gpu tests/test_ops.py
  memory_checks
  part benchmark_op "$python" scripts/benchmark_op.py --device cuda --shapes 512x64x2048,512x64x344,128x32x2048 \
    --dtypes float32,bfloat16 --out "$out"
  cat "$out/benchmark_op.log" 2>/dev/null
  part benchmark_block "$python" scripts/benchmark_block.py --device cuda --dtypes float32,bfloat16 --out "$out"
  cat "$out/benchmark_block.log" 2>/dev/null
  echo "== summary: ${#failed[@]} parts failed ${failed[*]-}"
  [ ${#failed[@]} -eq 0 ]
}

run 2>&1 | tee "$report"
status=${PIPESTATUS[0]}
echo "report: $report"
exit "$status"
