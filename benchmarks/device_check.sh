#!/usr/bin/env bash
# What a GPU has to show, in one call under ten minutes: the build, the tests, compute-sanitizer on a small matrix, and
# times against each of torch's attention backends, whose samples go to a results file.
#
#     benchmarks/device_check.sh [folder for results]
set -euo pipefail
cd "$(dirname "$0")/.."

results="${1:-benchmarks/results}"
arch="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)"
[[ "$arch" == 90 ]] && arch=90a
[[ "$arch" == 8? ]] && arch=80

step() {  # step "heading" command...
  local heading="$1" start=$SECONDS
  shift
  printf '\n==== %s\n' "$heading"
  "$@"
  printf -- '---- %s: %d s\n' "$heading" $((SECONDS - start))
}

build() {
  CROSSMODAL_CUDA=1 CROSSMODAL_CUDA_ARCHS="$arch" python setup.py build_ext --inplace >/dev/null
}

sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo 'no compute-sanitizer here: skipped'
    return
  fi
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 5 \
      python -m pytest -q -p no:cacheprovider tests/cuda/test_kernels.py -k 'PLAIN and bfloat16 or TRIO and bfloat16'
  done
}

step 'build' build
step 'tests' python -m pytest -q -m cuda tests/cuda
step 'sanitizer' sanitize
step 'benchmark' python benchmarks/cuda_attention.py --json "$results/$(date -u +%F)-sm_$arch.json"
