#!/usr/bin/env bash
# Builds, tests and measures the CUDA op on a machine with an NVIDIA GPU, and prints one report.
#
#   bash scripts/check_gpu.sh [--dry] [folder for the report, default outputs/check_gpu [part ...]]
#
# The parts, all of them by default: build tests memcheck initcheck benchmark_op tune benchmark_block benchmark_update
#                                         steps tables.
# Needs nvcc (CUDA_HOME or PATH) and, in the active environment or .venv, a torch with CUDA, numpy, pytest, hypothesis and
# setuptools; nothing is fetched. benchmark_update and steps need fairseq, and steps transformers where it is to be compared;
# the tests of a whole model need fairseq and examples/checkpoints. What cannot run is said to be left out. Exits with 1
# where a part failed. --dry does all of it on a CPU with small shapes: it shows that the script works, and nothing else.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry=
[ "${1:-}" = --dry ] && dry=1 && shift
out=${1:-outputs/check_gpu}
mkdir -p "$out"
parts=" ${*:2} "
report=$out/report.txt
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && [ -z "${VIRTUAL_ENV:-}" ] && python=.venv/bin/python; } || python=python3
export PATH=$PATH:${CUDA_HOME:+$CUDA_HOME/bin:}/usr/local/cuda/bin PYTHONUNBUFFERED=1
failed=()

if [ -n "$dry" ]; then
  tests=(-m "not gpu" -k saves_what)
  required=(--require cpu)
  op=(--device cpu --threads 1 --shapes 9x2x64 --rounds 3 --seconds 0.1)
  tune=(--emulate --problems 9x2x64x1 --dtypes float16 --rounds 1)
  block=(--device cpu --threads 1 --widths 64 --length 16 --batch 2 --rounds 3 --seconds 0.1)
  update=(--device cpu --threads 1 --sizes tiny --vocabulary 200 --rounds 3 --seconds 0.1)
  steps=("${block[@]}" --layers 1 --vocabulary 200 --models roberta,recurrent-k1,transformers)
else
  export RT_REQUIRE_GPU=1 # a test that finds no device fails
  tests=(-m gpu)
  required=(--require cpu --require cuda)
  op=(--device cuda --shapes 512x32x2048,128x256x2048,512x8x680,512x4x344 --seconds 2)
  tune=()
  block=(--device cuda --seconds 5)
  update=(--device cuda --sizes tiny,base)
  steps=(--device cuda --seconds 8 --widths 768 --layers 12 --length 512 --batch 32 --vocabulary 50265
    --models "roberta,roberta-same-gelu,roberta-compiled,recurrent-k1,recurrent-k1-compiled,recurrent-k2,recurrent-none\
,transformers,transformers-compiled")
fi

asked() { # $1: a part
  [[ $parts == "  " || $parts == *" $1 "* ]]
}

part() { # $1: its name; the rest: the command
  local name=$1 start=$SECONDS
  shift
  asked "$name" || return
  echo "== $name"
  if "$@" >"$out/$name.log" 2>&1; then
    echo "$name: passed in $((SECONDS - start)) s"
  else
    echo "$name: FAILED in $((SECONDS - start)) s; the end of $out/$name.log:"
    tail -n 25 "$out/$name.log"
    failed+=("$name")
    return 1
  fi
}

shown() { # a part whose output belongs in the report
  part "$@" && cat "$out/$1.log"
}

has_fairseq() {
  "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("fairseq") is None)' 2>/dev/null
}

shown_with_fairseq() { # a part whose output belongs in the report, where fairseq is
  if has_fairseq; then
    shown "$@"
  elif asked "$1"; then
    echo "left out: $1, which needs fairseq: not installed for $python"
  fi
}

build() {
  local capability
  if [ -n "$dry" ]; then
    echo "build: skipped in a dry run"
    return
  fi
  capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return 1
  TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} RT_BUILD_CPU=1 RT_BUILD_CUDA=1 \
    "$python" setup.py build_ext --inplace
}

run_tests() {
  local files=(tests/test_ops.py) whole_model=tests/inference/test_interface.py
  asked tests || return
  if ! has_fairseq; then
    echo "left out: $whole_model, which needs fairseq: not installed for $python"
  elif [ ! -d examples/checkpoints ]; then
    echo "left out: $whole_model, which needs examples/checkpoints: not there"
  else
    files+=("$whole_model")
  fi
  part tests "$python" -m pytest -q "${files[@]}" "${tests[@]}"
}

# Few cases: under the checker each takes a thousand times as long. torch's own allocator would hide an access that is out
# of bounds, and pass memory on that counts as written.
memory_check() { # $1: a tool of compute-sanitizer
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 1 \
    "$python" -m pytest -q -m gpu tests/test_ops.py \
    -k "parameters_may_stay or strided or large_arguments or (wide_tensors and not float64)"
}

memory_checks() {
  if [ -n "$dry" ] || ! command -v compute-sanitizer >/dev/null; then
    echo "memcheck, initcheck: skipped, no compute-sanitizer on PATH; NVIDIA's installers of the CUDA toolkit bring it"
    return
  fi
  part memcheck memory_check memcheck
  part initcheck memory_check initcheck
}

measure_op() {
  "$python" scripts/benchmark_op.py "${op[@]}" --dtypes float16,bfloat16 --step-sizes 1,2 \
    --passes forward,backward,forward+backward --out "$out"
}

measure_block() {
  "$python" scripts/benchmark_block.py "${block[@]}" --dtypes float16,bfloat16 --out "$out"
}

measure_update() {
  "$python" scripts/benchmark_update.py "${update[@]}" --out "$out"
}

measure_steps() { # full rows, then rows that end in padding
  local rows name
  for rows in "" --padded; do
    name=steps${rows:+_padded}
    "$python" scripts/benchmark_block.py --steps --no-blocks $rows "${steps[@]}" --dtypes float16,bfloat16 \
      --out "$out/$name" || return 1
    cp "$out/$name/benchmark_block.csv" "$out/$name.csv"
  done
}

run() {
  [ -n "$dry" ] || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || true
  [ -n "$dry" ] || nvcc --version | tail -n 2
  part build build
  shown backends "$python" -m rt_plugin backends "${required[@]}"
  run_tests
  memory_checks
  shown benchmark_op measure_op
  shown tune "$python" scripts/tune_cuda.py "${tune[@]}" --out "$out"
  shown benchmark_block measure_block
  shown_with_fairseq benchmark_update measure_update
  shown_with_fairseq steps measure_steps
  shown tables "$python" scripts/tabulate_gpu.py "$out"
  echo "== summary: ${#failed[@]} parts failed ${failed[*]-}"
  [ ${#failed[@]} -eq 0 ]
}

run 2>&1 | tee "$report"
status=${PIPESTATUS[0]}
echo "report: $report"
exit "$status"
