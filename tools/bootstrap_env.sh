#!/bin/sh
# Prints the Python that `make` should use, and nothing else, on standard output.
#
# It is the active environment's when that imports torch, else .venv in the checkout, made here on first use with
# the CPU pin of torch. A bare machine needs Python, g++ and make only: cmake and ninja come from pip.
# With --venv the active environment is left alone in any case.
set -eu
cd "$(dirname "$0")/.."

say() { echo "$*" >&2; }
run() {
  say "+ $*"
  "$@" >&2
}

if [ "${1:-}" != "--venv" ]; then
  for candidate in "${PYTHON:-python}" python3; do
    "$candidate" -c 'import sys, torch; print(sys.executable)' 2>/dev/null && exit 0
  done
fi

venv=.venv
stamp=$venv/requirements.stamp
python=$(pwd)/$venv/bin/python
if [ ! -f "$stamp" ] || ! cmp -s requirements-dev.txt "$stamp"; then
  base=${PYTHON:-python3}
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    say "dcomm needs Python 3.10 or later; name one with PYTHON=/path/to/python3"
    exit 1
  }
  # Without ensurepip (Debian's python3 without python3-venv) venv fails half-way; say what helps.
  run "$base" -m venv "$venv" || {
    say "$base cannot make a virtual environment; install its venv package, or name another with PYTHON="
    exit 1
  }
  # Alone and first, see requirements-dev.txt.
  run "$python" -m pip install --quiet "$(grep '^torch==' requirements-dev.txt)"
  run "$python" -m pip install --quiet -r requirements-dev.txt
  cp requirements-dev.txt "$stamp"
fi
echo "$python"
