"""Names the state that two cores of a (virtual) machine are in to each other: smt, near or far.

A hypervisor moves virtual CPUs between physical ones within seconds, and every figure of a collective changes by
2 to 5 times with it. So each round of a benchmark is stamped with the state before and after it, and only rounds
in one state are compared. The probe takes about 60 ms: a flag goes back and forth between two pinned threads, then
one reads 256 KiB that the other has just written.

    python -m dcomm.bench.core_state [number of probes]

It is C, compiled when first used; without a compiler the state is "unknown", and the time of an 8-byte all-reduce
is the only fingerprint.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# Round trips of a flag: 60-130 ns within one L3, 490-580 ns across; dirty lines at 116 (smt), 66-93, 25-33 GB/s.
FAR_NS = 250
SMT_NS = 95
SMT_GBPS = 105

SOURCE = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { kTrips = 1000, kLines = 4096, kWords = 8 };
struct Shared {
  _Alignas(128) volatile uint64_t ping;
  _Alignas(128) volatile uint64_t pong;
  _Alignas(128) uint64_t data[kLines * kWords];
  int cpu, windows;
};
static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}
static void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}
static int await(volatile uint64_t* flag, uint64_t value, int64_t end) {
  for (uint32_t polls = 1; __atomic_load_n(flag, __ATOMIC_ACQUIRE) != value; ++polls)
    if ((polls & 0xfffff) == 0 && now_ns() > end) return 0;
  return 1;
}
static void* answer(void* argument) {
  struct Shared* s = argument;
  pin(s->cpu);
  const int64_t end = now_ns() + 2000000000ll;
  uint64_t n = 0;
  for (int w = 0; w < s->windows; ++w) {
    for (int i = 0; i < kTrips; ++i) {
      if (!await(&s->ping, ++n, end)) return 0;
      __atomic_store_n(&s->pong, n, __ATOMIC_RELEASE);
    }
    if (!await(&s->ping, ++n, end)) return 0;
    for (int i = 0; i < kLines * kWords; ++i) s->data[i] = n + i;
    __atomic_store_n(&s->pong, n, __ATOMIC_RELEASE);
  }
  return 0;
}
/* Fills trip_ns and read_gbps of each window; returns how many windows were measured. */
int probe(int cpu, int peer, int windows, double* trip_ns, double* read_gbps) {
  static struct Shared s;
  memset(&s, 0, sizeof s);
  s.cpu = peer;
  s.windows = windows;
  cpu_set_t before;
  sched_getaffinity(0, sizeof before, &before);
  pthread_t thread;
  if (pthread_create(&thread, 0, answer, &s) != 0) return 0;
  pin(cpu);
  const int64_t end = now_ns() + 2000000000ll;
  uint64_t n = 0, sum = 0;
  int done = 0;
  for (; done < windows; ++done) {
    const int64_t start = now_ns();
    int ok = 1;
    for (int i = 0; i < kTrips && ok; ++i) {
      __atomic_store_n(&s.ping, ++n, __ATOMIC_RELEASE);
      ok = await(&s.pong, n, end);
    }
    if (!ok) break;
    trip_ns[done] = (double)(now_ns() - start) / kTrips;
    __atomic_store_n(&s.ping, ++n, __ATOMIC_RELEASE);
    if (!await(&s.pong, n, end)) break;
    const int64_t begin = now_ns();
    for (int i = 0; i < kLines * kWords; ++i) sum += s.data[i];
    __asm__ volatile("" : : "r"(sum) : "memory");
    read_gbps[done] = (double)sizeof s.data / (double)(now_ns() - begin);
  }
  pthread_join(thread, 0);
  sched_setaffinity(0, sizeof before, &before);
  return done;
}
"""


class CoreState(NamedTuple):
    """What a probe found; zeros and "unknown" where it could not run."""

    name: str
    flag_ns: float  # round trip
    read_gbps: float  # of lines that are dirty in the other core's cache


def name_state(flag_ns: float, read_gbps: float) -> str:
    """The state whose figures these are: smt, near or far."""
    if flag_ns >= FAR_NS:
        return "far"
    return "smt" if flag_ns < SMT_NS or read_gbps > SMT_GBPS else "near"


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    folder = tempfile.mkdtemp(prefix="core-state-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = str(Path(folder) / "probe.so")
    flags = ["-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-w"]
    command = [compiler, *flags, "-x", "c", "-", "-o", target]
    done = subprocess.run(command, input=SOURCE, capture_output=True, text=True, check=False, timeout=60)
    return ctypes.CDLL(target) if done.returncode == 0 else None


def probe(windows: int = 100) -> CoreState:
    """Probe the first two CPUs that this process may use; the median window counts."""
    cpus = sorted(os.sched_getaffinity(0))
    library = _library()
    if library is None or len(cpus) < 2:
        return CoreState("unknown", 0.0, 0.0)
    values = ctypes.c_double * windows
    trips, reads = values(), values()
    measured = library.probe(cpus[0], cpus[1], windows, trips, reads)
    if measured == 0:
        return CoreState("unknown", 0.0, 0.0)
    flag_ns = statistics.median(trips[:measured])
    read_gbps = statistics.median(reads[:measured])
    return CoreState(name_state(flag_ns, read_gbps), round(flag_ns, 1), round(read_gbps, 1))


def main() -> None:
    """Probe as often as asked."""
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        state = probe()
        print(f"{state.name}: flag round trip {state.flag_ns} ns, dirty lines read at {state.read_gbps} GB/s")


if __name__ == "__main__":
    main()
