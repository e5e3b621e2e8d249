#!/usr/bin/env bash
# Everything that only a GPU can show: builds with CUDA, then correctness, compute-sanitizer, tests and timings.
#
#   bash tools/gpu_check.sh            results in benchmarks/results, or in $OUT
#   PARTS="build graphs" bash tools/gpu_check.sh
#
# Needs python with torch (CUDA), NumPy, pybind11, setuptools, cmake, ninja, pytest; nvcc; no network. Parts, each under
# 8 minutes: build doctor correct sanitize tests compile expandable timing graphs processes hooks overlap registered
# lists crossovers bench.
# Where a command has 10 minutes at most: "build doctor graphs lists", then "timing", "correct", "processes", "hooks",
# "overlap", "registered", "sanitize", "tests", "compile", "expandable crossovers", "bench".
# A failed part does not stop the later ones; at the end all figures that were measured so far are told. The exit status
# is that of the parts: a missed figure is no failure. COMMIT: what the reports name where there is no repository.
set -uo pipefail
cd "$(dirname "$0")/.."
ALL="build doctor correct sanitize tests compile expandable timing graphs processes hooks overlap registered lists crossovers bench"
PARTS=${PARTS:-$ALL}
PYTHON=${PYTHON:-python}
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT DCOMM_CUDA=ON
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
COMPILED=tests/gpu/test_operators_on_gpu.py # torch.compile takes its time
checkout=$PWD
failed=0

for name in $PARTS; do
  case " $ALL " in *" $name "*) ;; *)
    echo "PARTS: no part '$name'; there are: $ALL" >&2
    exit 2
    ;;
  esac
done

part() { # part NAME COMMAND...
  local name=$1 start=$SECONDS status=0
  shift
  case " $PARTS " in *" $name "*) ;; *) return ;; esac
  printf '\n=== %s: %s\n' "$name" "$*"
  "$@" || status=$?
  [ "$status" -eq 0 ] || failed=1
  printf '=== %s: exit %d, %d s\n' "$name" "$status" $((SECONDS - start))
}

build() {
  local arch
  arch=$(timeout -k 10 60 "$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || return
  DCOMM_CUDA_ARCHS=${DCOMM_CUDA_ARCHS:-$arch} timeout -k 10 410 "$PYTHON" -m pip install --no-build-isolation --no-deps .
}

# check SECONDS COMMAND...: from an empty folder: the checkout's dcomm/ holds no extension after a plain install.
check() {
  local seconds=$1 folder status=0
  shift
  folder=$(mktemp -d) || return
  (cd "$folder" && timeout -k 10 "$seconds" "$@") || status=$?
  rm -rf "$folder"
  return "$status"
}

# What there is no time for is left out before the hard end: the report names it.
measure() {
  check 460 "$PYTHON" "$checkout/tools/gpu_check.py" "$1" --max-seconds 400 --json "$OUT/gpu_$1.json"
}

doctor() {
  check 90 "$PYTHON" -m dcomm doctor --seconds 60
}

# dcomm as threads and as processes, beside the rivals that are here; a picture where there is matplotlib.
bench() {
  local plot=()
  ! "$PYTHON" -c 'import matplotlib' 2>/dev/null || plot=(--plot "$OUT/gpu_bench.png")
  check 460 "$PYTHON" "$checkout/benchmarks/all_reduce.py" --device cuda -n 4 -b 1K -e 64M -f 16 --iters 60 --compare all \
    --timeout 60 --max-seconds 300 --json "$OUT/gpu_bench.json" "${plot[@]}"
}

# Under the allocator of which cudaIpcGetMemHandle serves no segment: dcomm's windows are memory of its own.
expandable() {
  PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True timeout -k 10 300 "$PYTHON" -m pytest -q -p no:cacheprovider \
    tests/gpu/test_window_arrays.py tests/gpu/test_hooks_on_gpu.py tests/gpu/test_backend_on_gpu.py
}

sanitize() {
  local tool status=0
  if ! command -v compute-sanitizer >/dev/null; then
    echo "no compute-sanitizer on PATH"
    return 1
  fi
  for tool in memcheck synccheck initcheck; do
    echo "--- $tool"
    DCOMM_CUDA_CHANNELS=2 check 150 compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file \
      "$OUT/sanitizer_$tool.log" "$PYTHON" "$checkout/tools/gpu_check.py" correct --small --max-seconds 90 \
      --json "$OUT/gpu_sanitized_$tool.json" || status=1
    tail -n 3 "$OUT/sanitizer_$tool.log"
  done
  return "$status"
}

part build build
part doctor doctor
part correct measure correct
part sanitize sanitize
part tests timeout -k 10 450 "$PYTHON" -m pytest -q -p no:cacheprovider --ignore "$COMPILED" tests/gpu
part compile timeout -k 10 400 "$PYTHON" -m pytest -q -p no:cacheprovider "$COMPILED"
part expandable expandable
part timing measure timing
part graphs measure graphs
part processes measure processes
part hooks measure hooks
part overlap measure overlap
part registered measure registered
part lists measure lists
part crossovers measure crossovers
part bench bench
printf '\n=== figures\n'
"$PYTHON" "$checkout/tools/gpu_check.py" figures "$OUT" --json "$OUT/gpu_figures.json" || failed=1
exit "$failed"
