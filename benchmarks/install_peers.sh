#!/usr/bin/env bash
# Installs the MPI libraries that `dcomm bench all_reduce --compare mpi` measures beside dcomm: Open MPI and MPICH from
# Debian or Ubuntu (needs root), and Intel MPI from PyPI into build/peers of this checkout, where the benchmark looks.
# Any other MPI is used where its mpicc and mpirun are on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v apt-get >/dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    openmpi-bin libopenmpi-dev mpich libmpich-dev
else
  echo "no apt-get here: install Open MPI and MPICH with this system's package manager" >&2
fi

python3 -m venv build/peers/impi
build/peers/impi/bin/python -m pip install --quiet impi-rt impi-devel

echo "found by the benchmark:"
python3 -c '
from dcomm.bench.mpi import find_libraries
for library in find_libraries():
    print(f"  {library.name} {library.version}: {library.launcher}")
' || echo "  (dcomm itself is not installed in this Python)"
