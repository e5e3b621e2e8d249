"""The checks of the GPU side, in a process of their own: a driver may hang, and its start-up cannot be undone.

No GPU has run what comes after "no GPU" here; the tests do, with a driver of their own making.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dcomm.doctor import cuda_driver, cuda_part, gpu_ranks, peer_access
from dcomm.doctor.cuda_driver import Driver, DriverError, Gpu
from dcomm.doctor.cuda_part import Build
from dcomm.doctor.finding import Finding, fail, ok, skip, warn
from dcomm.doctor.installation import torch_cuda, version_of

NAMES = (cuda_part.NAME, "driver", "gpus", "torch_gpu", peer_access.NAME, "mps", gpu_ranks.NAME)
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_MPS_FOLDER = "/tmp/nvidia-mps"  # where the daemon's pipe is unless CUDA_MPS_PIPE_DIRECTORY says otherwise


def _hardware(root: Path = Path("/")) -> str:
    """What tells of an NVIDIA GPU although there is no libcuda; "": nothing does."""
    if (root / "proc/driver/nvidia/version").exists():
        return "its kernel module is loaded"
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        try:
            kind = [(device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class")]
        except OSError:
            continue
        if kind[0] == _NVIDIA and kind[1].startswith(_DISPLAY):
            return f"an NVIDIA GPU is at PCI {device.name}"
    return ""


def _no_driver(error: OSError, root: Path) -> Finding:
    signs = _hardware(root)
    if not signs:
        return skip(
            "driver",
            "no NVIDIA driver and no NVIDIA GPU",
            "nothing to do for CPU ranks; on a GPU machine install it",
            cuda=None,
        )
    fix = (
        "in a container: start it with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility; else install the "
        "NVIDIA driver"
    )
    return fail("driver", f"{signs}, but {cuda_driver.LIBRARY} does not load ({error})", fix, cuda=None)


def _release(root: Path) -> str:
    """580.65.06, as the kernel module gives it; "" where it does not."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return match[1] if match else ""


def _driver(driver: Driver, build: Build | None, root: Path) -> Finding:
    try:
        driver.initialise()
        served = driver.cuda_version()
    except DriverError as error:
        return fail("driver", str(error), error.fix, cuda=None)
    release = _release(root)
    text = f"driver {release or '(release unknown)'} serves CUDA {served[0]}.{served[1]}"
    if build is not None and served[0] < build.cuda[0]:
        needed = f"{build.cuda[0]}.{build.cuda[1]}"
        return fail(
            "driver",
            f"{text}, which is too old for dcomm's CUDA part, built with CUDA {needed}",
            f"update the driver to one for CUDA {needed}, or install dcomm again with an nvcc of CUDA {served[0]}",
            cuda=list(served),
            release=release,
        )
    return ok("driver", text, cuda=list(served), release=release)


def _gpus(found: list[Gpu], build: Build | None) -> Finding:
    texts = [f"{g.number}: {g.name}, {g.nbytes / 2**30:.0f} GiB, sm_{g.capability[0]}{g.capability[1]}" for g in found]
    details = {"gpus": [{**g._asdict(), "capability": list(g.capability)} for g in found]}
    text = "; ".join(texts)
    without = [str(g.number) for g in found if build is not None and not build.has_code_for(g.capability)]
    if build is not None and without:
        archs = ";".join(sorted({"{}{}".format(*g.capability) for g in found}))
        return fail(
            "gpus",
            f"{text}. dcomm's CUDA part has no code for GPU {', '.join(without)}: it has {build.archs_text} and later",
            f"install dcomm again with DCOMM_CUDA=ON DCOMM_CUDA_ARCHS='{archs}'",
            **details,
        )
    return ok("gpus", text, **details)


def _torch(served: tuple[int, int]) -> Finding:
    installed = version_of("torch")
    if installed is None:
        return skip("torch_gpu", "torch is not installed", "pip install torch, if GPUs are to be used from it")
    built = torch_cuda()
    if built is None:
        return warn(
            "torch_gpu",
            f"torch {installed[1]} is a CPU build: it does not use these GPUs",
            f"pip install a torch for CUDA {served[0]} (pytorch.org/get-started)",
            cuda=None,
        )
    if int(built.split(".")[0]) > served[0]:
        return fail(
            "torch_gpu",
            f"torch {installed[1]} was built for CUDA {built}, and the driver serves {served[0]}.{served[1]}",
            f"update the driver, or pip install a torch for CUDA {served[0]}",
            cuda=built,
        )
    return ok("torch_gpu", f"torch {installed[1]} for CUDA {built}", cuda=built)


def _mps() -> Finding:
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", _MPS_FOLDER)
    if (Path(folder) / "control").exists():
        return ok("mps", f"the MPS daemon's pipe is in {folder}", folder=folder)
    return skip(
        "mps",
        "no MPS daemon: processes take turns on a GPU (ranks that are threads do not)",
        "nvidia-cuda-mps-control -d, if several processes are to share a GPU",
        folder=None,
    )


def _skipped(names: tuple[str, ...], why: str, fix: str) -> Iterator[Finding]:
    for name in names:
        yield skip(name, why, fix)


def look(
    load: Callable[[], Any] = cuda_driver.load, root: Path = Path("/"), part: Path | None = None
) -> Iterator[Finding]:
    """A finding for each of NAMES, each given as soon as it is known; the arguments are for tests."""
    finding, build = cuda_part.cuda_part() if part is None else cuda_part.cuda_part(part)
    yield finding
    try:
        driver = Driver(load())
    except OSError as error:
        missing = _no_driver(error, root)
        yield missing
        yield from _skipped(NAMES[2:], "no driver", missing.fix)
        return
    finding = _driver(driver, build, root)
    yield finding
    if finding.details["cuda"] is None:
        yield from _skipped(NAMES[2:], "the driver does not start", finding.fix)
        return
    try:
        gpus = driver.gpus()
    except DriverError as error:
        yield fail("gpus", str(error), error.fix, gpus=[])
        yield from _skipped(NAMES[3:], "the GPUs do not answer", error.fix)
        return
    if not gpus:
        fix = cuda_driver.INIT_FIXES[100]
        yield fail("gpus", "the driver works, but this process sees no GPU", fix, gpus=[])
        yield from _skipped(NAMES[3:], "no GPU is visible", fix)
        return
    yield _gpus(gpus, build)
    yield _torch(driver.cuda_version())
    yield peer_access.peer_access(driver, len(gpus))
    yield _mps()
    if build is None:
        yield skip(gpu_ranks.NAME, "this build has no CUDA part", "as for cuda_part above")
    elif "dcomm._core" not in sys.modules:
        yield skip(gpu_ranks.NAME, "the core does not load", "as for core above")
    else:
        yield gpu_ranks.two_gpu_ranks(driver)
