#!/usr/bin/env bash
# What a GPU has to show, in one call under ten minutes: the build, the tests, times against what torch offers, whose
# samples go to a results file, and compute-sanitizer on a small matrix.
#
#     benchmarks/device_check.sh [folder for results]
#
# Each step has a limit of its own and ends alone: what comes after a step that failed still runs, and the last lines
# say how each went. A library that is there already, built elsewhere for this GPU and this source, is used as it is
# with CROSSMODAL_PREBUILT=1. PYTHON names the interpreter that has torch (python3).
set -uo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
results="${1:-benchmarks/results/cuda}"
mkdir -p "$results"

capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)"
case "$capability" in
  90) arch=90a ;;
  *) arch="$capability" ;; # machine code of exactly this GPU; kernels of sm_80 run on 86 and 89 as well
esac

outcomes=()
step() { # step "heading" seconds command...
  local heading="$1" limit="$2" start=$SECONDS code=0
  shift 2
  printf '\n==== %s\n' "$heading"
  timeout --kill-after=5 "$limit" "$@" || code=$?
  local outcome="passed"
  ((code == 0)) || outcome="FAILED with $code"
  ((code == 124 || code == 137)) && outcome="ran out of its $limit s"
  outcomes+=("$(printf '%-12s %s, %d s' "$heading" "$outcome" $((SECONDS - start)))")
  return "$code"
}

say_what_is_here() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -2 | head -1
  "$python" - <<'PY'
import setuptools, torch
print("setuptools", setuptools.__version__)
print("torch", torch.__version__, "GPU", torch.cuda.get_device_name(), torch.cuda.get_device_properties(0))
PY
}

build() {
  if [[ "${CROSSMODAL_PREBUILT:-0}" == 1 ]]; then
    echo 'using the library that is there'
  else
    mkdir -p build
    CROSSMODAL_CUDA=1 CROSSMODAL_CUDA_ARCHS="80;$arch" "$python" setup.py build_ext --inplace >build/device_check.log 2>&1 ||
      { tail -40 build/device_check.log; return 1; }
  fi
  "$python" - "$arch" <<'PY'
import sys
from crossmodal import _library
cuda = _library.build_info()["cuda"]
print("library", _library.path, "cuda", cuda)
family = sys.argv[1][0]  # kernels of 8.0 run on 8.6 and 8.9
if cuda is None or not any(arch == sys.argv[1] or (family == "8" and arch == "80") for arch in cuda["archs"]):
    sys.exit(f"the library has no kernels for sm_{sys.argv[1]}")
PY
}

run_tests() { # run_tests files-and-options...
  local several=()
  "$python" -c 'import xdist' 2>/dev/null && several=(-n "$(($(nproc) < 14 ? $(nproc) : 14))")
  # One BLAS thread for each process: references run on the CPU.
  OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider -m cuda "${several[@]}" "$@"
}

suite() { # the CPU's tests that run on a GPU too
  "$python" -c 'from tests.devices import SUITE; print(*(name.replace(".", "/") + ".py" for name in sorted(SUITE)))'
}

sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo 'no compute-sanitizer here'
    return 0
  fi
  local code=0 problems='PLAIN or TRIO or FEW_OPTIONS or QUEUED_PACKED or LINKS_WITH_OPTIONS or WEIGHTED_BY_KEY'
  for tool in memcheck racecheck; do
    echo "-- $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 5 \
      "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_kernels.py \
      -k "bfloat16 and ($problems) and not long and not random" || code=1
  done
  return $code
}

export -f build run_tests suite sanitize say_what_is_here
export python arch

step 'machine' 60 bash -c say_what_is_here
if step 'build' 110 bash -c build; then
  step 'smoke' 40 bash -c 'run_tests tests/cuda -x -k "PLAIN or ONE or SHARED"'
  step 'benchmark' 140 "$python" -m benchmarks.cuda_attention --seconds 110 \
    --json "$results/$(date -u +%F)-sm_$arch.json"
  step 'tests' 110 bash -c 'run_tests tests/cuda $(suite) --maxfail=20'
  step 'sanitizer' 120 bash -c sanitize
fi

printf '\n==== outcome\n'
printf '%s\n' "${outcomes[@]}"
printf '%d s in all\n' "$SECONDS"
[[ "${outcomes[*]}" != *FAILED* && "${outcomes[*]}" != *'ran out'* ]]
