"""Every DCOMM_* variable that dcomm, its build or its tests read: the one list of them.

tests/test_environment.py compares it with what the sources read.
"""

from __future__ import annotations

PREFIX = "DCOMM_"

# What users set.
SETTINGS = {
    "DCOMM_ALGO": "algorithm of all_reduce where the call says 'auto'",
    "DCOMM_ASYNC": "0: the collectives of a torch process group run where they are called",
    "DCOMM_CALL_SITES": "1: errors of asynchronous operations too say where the program called them",
    "DCOMM_CUDA_CHANNELS": "blocks per rank on a GPU",
    "DCOMM_CUDA_SLOT_BYTES": "bytes of a slot on a GPU",
    "DCOMM_CUDA_WINDOWS": "vmm or ipc: how processes map each other's GPU memory",
    "DCOMM_DETERMINISTIC": "1: only algorithms that sum in canonical order",
    "DCOMM_FORCE_SHM": "1: windows are unnamed files in /dev/shm instead of memfds",
    "DCOMM_ISA": "instruction set of the CPU kernels: scalar, avx2, avx512 or neon",
    "DCOMM_JOB_ID": "tells jobs of one user apart that would meet at one point",
    "DCOMM_MAX_CTAS": "the most blocks per rank on a GPU that dcomm chooses by itself",
    "DCOMM_MIN_BW": "GB/s that dcomm bench must reach on average",
    "DCOMM_TENSOR_BYTES": "the most memory of a rank's tensors that a torch process group allocates; 0: none",
    "DCOMM_TIMEOUT_S": "seconds after which a wait for another rank raises",
    "DCOMM_WARN_S": "seconds after which a wait for another rank warns",
    "DCOMM_WINDOW_BYTES": "bytes of a rank's main slots",
}
# What `pip install` reads from a checkout.
BUILD = {
    "DCOMM_CUDA": "whether the CUDA part is built: AUTO, ON or OFF",
    "DCOMM_CUDA_ARCHS": "GPU architectures of the CUDA part",
}
# What only dcomm's own tests set; anywhere else they do harm.
TESTS = {
    "DCOMM_BENCH_CORRUPT": "flips a bit in a result of the benchmark",
    "DCOMM_DIFFERENTIAL_EXAMPLES": "how many random programs are compared",
    "DCOMM_DIFFERENTIAL_SEED": "repeats one of them",
    "DCOMM_FAILPOINT": "ends, stops or delays a rank at a named place, in test builds",
    "DCOMM_FAILPOINT_FD": "where it says so",
    "DCOMM_MUTATION": "breaks a rule of the protocol, in test builds",
    "DCOMM_RELIABILITY_JSON": "the file that keeps what the tests of reliability measure",
    "DCOMM_SOAK_JSON": "the file that gets the memory and descriptors of a soak over time",
    "DCOMM_SOAK_SECONDS": "how long the soak lasts",
    "DCOMM_TEST_FIRST_NUMBER": "numbers of operations and messages begin after it",
    "DCOMM_TEST_JITTER": "delays at random, in test builds",
    "DCOMM_TEST_PROTOCOL": "the protocol number that a rank claims to speak",
    "DCOMM_TEST_RELEASE": "a file that a waiting test process looks for",
    "DCOMM_TEST_VERSION": "the version that a rank claims to have",
}
KNOWN = {**SETTINGS, **BUILD, **TESTS}
