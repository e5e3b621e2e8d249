"""Once it is warm a call neither allocates nor waits: what CUPTI saw the CUDA runtime and driver being asked for.

tests/test_cuda_hot_path.py counts the same of the host side alone, without a GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from torch_gpu import TorchGpu

import dcomm

pytestmark = pytest.mark.gpu

GPU = TorchGpu()
HARMFUL = re.compile(
    r"cu(da)?(Malloc|Free|HostAlloc|HostRegister|Mem(Alloc|Free|Create|Map|Release|AddressReserve)|EventCreate"
    r"|EventDestroy|StreamCreate|StreamDestroy|(Stream|Event|Device|Ctx)Synchronize|Module|Library)"
)
CALLS = 100


def calls_of(path: Path) -> Counter[str]:
    import json

    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver"))


@pytest.mark.parametrize("n", [1, 2])
def test_nothing_allocates_or_waits(tmp_path: Path, n: int) -> None:
    """One thread plays all ranks; the profile itself asks for a few things at its ends only."""
    import torch

    comms = dcomm.init_threads(n, device="cuda")
    side = torch.cuda.Stream()
    x = [torch.zeros(1 << 16, device="cuda") for _ in comms]

    def rounds(number: int) -> None:
        for _ in range(number):
            with dcomm.group(comms):
                for comm in comms:
                    comm.all_reduce(x[comm.rank])
            works = [comm.all_reduce(x[comm.rank], async_op=True) for comm in comms]
            for work in works:
                work.wait(stream=side)

    torch.cuda._sleep(200_000_000)  # so that as many operations are open at once as there can be below
    rounds(CALLS)
    torch.cuda.synchronize()
    rounds(1)
    torch.cuda.synchronize()
    seen = []
    for number in (0, CALLS):
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            rounds(number)
        profile.export_chrome_trace(str(tmp_path / "trace.json"))
        seen.append(calls_of(tmp_path / "trace.json"))
        torch.cuda.synchronize()
    of_profile, found = seen
    launches = sum(count for name, count in found.items() if "LaunchCooperativeKernel" in name)
    assert launches == 2 * CALLS, found
    harmful = {name: count for name, count in (found - of_profile).items() if HARMFUL.match(name)}
    assert not harmful, harmful
    for comm in comms:
        comm.close()
