"""All checks, in the order in which they are shown."""

from __future__ import annotations

from dcomm.doctor import cpus, gpu, gpu_process, installation, kernel, memory, ranks, settings
from dcomm.doctor.finding import Part, single


def all_parts(core_error: ImportError | None) -> list[Part]:
    """Every part; `core_error`: why the compiled core could not be imported."""
    return [
        single("installation", "python", installation.python),
        single("installation", "core", lambda: installation.core(core_error)),
        Part("installation", installation.PACKAGES, lambda _: installation.packages()),
        single("installation", "settings", settings.settings),
        single("cpu", "cpus", cpus.cpus),
        single("cpu", "cores", cpus.cores),
        single("cpu", "caches", cpus.caches),
        single("memory", "memfd", memory.memfd),
        single("memory", "shm", memory.shm),
        single("memory", "memory", memory.memory_limit),
        single("memory", "descriptors", memory.descriptors),
        single("kernel", "sockets", kernel.sockets),
        single("kernel", "pidfd", kernel.pidfd),
        single("kernel", "seccomp", kernel.seccomp),
        ranks.part(core_error),
        Part("gpu", gpu.NAMES, gpu_process.gpu_side),
    ]
