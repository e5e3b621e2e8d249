#!/usr/bin/env bash
# Everything that only a GPU can show: builds with CUDA, then correctness, compute-sanitizer, tests and timings.
#
#   bash tools/gpu_check.sh            results in benchmarks/results, or in $OUT
#   PARTS="build correct" bash tools/gpu_check.sh
#
# Needs python with torch (CUDA), NumPy, pybind11, setuptools, cmake, ninja; nvcc; no network. Parts: build doctor
# correct sanitize tests timing lists. A failed part does not stop the later ones; the exit status is that of the whole.
set -uo pipefail
cd "$(dirname "$0")/.."
PARTS=${PARTS:-build doctor correct sanitize tests timing lists}
PYTHON=${PYTHON:-python}
OUT=${OUT:-benchmarks/results}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT DCOMM_CUDA=ON
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
checkout=$PWD
failed=0

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
  arch=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || return
  DCOMM_CUDA_ARCHS=${DCOMM_CUDA_ARCHS:-$arch} "$PYTHON" -m pip install --no-build-isolation --no-deps .
}

# From an empty folder: the checkout's dcomm/ holds no extension after a plain install.
check() {
  local folder status=0
  folder=$(mktemp -d) || return
  (cd "$folder" && "$PYTHON" "$checkout/tools/gpu_check.py" "$@") || status=$?
  rm -rf "$folder"
  return "$status"
}

doctor() {
  (cd / && "$PYTHON" -m dcomm doctor --seconds 60)
}

sanitize() {
  local tool folder status=0
  if ! command -v compute-sanitizer >/dev/null; then
    echo "no compute-sanitizer on PATH"
    return 1
  fi
  folder=$(mktemp -d) || return
  for tool in memcheck synccheck initcheck; do
    echo "--- $tool"
    (cd "$folder" && DCOMM_CUDA_CHANNELS=2 compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file \
      "$OUT/sanitizer_$tool.log" "$PYTHON" "$checkout/tools/gpu_check.py" correct --small) || status=1
    tail -n 3 "$OUT/sanitizer_$tool.log"
  done
  rm -rf "$folder"
  return "$status"
}

part build build
part doctor doctor
part correct check correct --json "$OUT/gpu_correct.json"
part sanitize sanitize
part tests "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu
part timing check timing --json "$OUT/gpu_timing.json"
part lists check lists --json "$OUT/gpu_lists.json"
exit "$failed"
