"""tools/gpu/trace_reader: what a profile says of dcomm's kernels beside backward's; made up, and as torch writes it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"

sys.path.insert(0, str(TOOLS))
try:
    reader = importlib.import_module("gpu.trace_reader")
finally:
    sys.path.remove(str(TOOLS))

Event = dict[str, Any]
OURS = "void dcomm::k_two_shot<dcomm::CudaF32>(dcomm::CudaJob)"


def event(cat: str, name: str, begin: float, end: float, tid: int = 1, number: int = 0) -> Event:
    return {
        "ph": "X", "cat": cat, "name": name, "pid": 9, "tid": tid, "ts": begin, "dur": end - begin,
        "args": {"correlation": number},
    }  # fmt: skip


def node(begin: float, end: float, tid: int = 1) -> Event:
    return event("cpu_op", "autograd::engine::evaluate_function: MmBackward0", begin, end, tid)


def launch(at: float, number: int, tid: int = 1) -> Event:
    return event("cuda_runtime", "cudaLaunchKernel", at, at + 1, tid, number)


def kernel(name: str, begin: float, end: float, number: int = 0) -> Event:
    return event("kernel", name, begin, end, 7, number)


def test_spans() -> None:
    merged = reader.merge([(5, 6), (0, 2), (1, 3), (3, 4)])
    assert merged == [(0, 4), (5, 6)]
    assert reader.common(merged, [(-1, 1), (2, 5.5), (5.75, 9)]) == 1 + 2 + 0.5 + 0.25
    assert reader.common(merged, []) == 0


def test_kernels_beside_backward_s() -> None:
    nodes = [node(100, 120), node(110, 115), node(130, 140), node(0, 1000, tid=2)]
    launches = [launch(105, 1), launch(125, 2), launch(139, 3), launch(112, 4), launch(200, 5)]
    kernels = [
        kernel("gemm of backward", 1000, 1010, 1),
        kernel("gemm of the forward pass of another rank", 1010, 1030, 2),
        kernel("gemm of backward", 1030, 1040, 3),
        kernel("of a thread that was not recorded", 1900, 2000, 6),
        kernel(OURS, 1005, 1025, 4),  # launched in a hook of backward
        kernel(OURS, 1035, 1055, 5),
    ]
    assert reader.summarize([*nodes, *launches, *kernels]) == {
        "num_kernels": 2,
        "kernels_us": 40,
        "backward_us": 20,
        "percent_beside": 25.0,
        "percent_beside_any": 62.5,
    }


def test_what_cannot_be_said() -> None:
    gemm = kernel("gemm", 0, 100)
    assert reader.summarize([gemm, node(0, 1)])["percent_beside"] is None
    assert reader.summarize([gemm])["percent_beside_any"] is None
    alone = reader.summarize([kernel(OURS, 0, 10), node(0, 1)])
    assert (alone["percent_beside"], alone["percent_beside_any"]) == (0.0, 0.0)
    unknown = reader.summarize([kernel(OURS, 0, 10), kernel("gemm", 5, 20)])
    assert (unknown["percent_beside"], unknown["percent_beside_any"]) == (None, 50.0)


@pytest.mark.long
def test_what_torch_writes(tmp_path: Path) -> None:
    """A profile of backward in another thread, to which kernels are added that its calls could have launched."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, experimental_config=config) as profile:
        thread = threading.Thread(target=lambda: model(torch.ones(2, 8)).sum().backward())
        thread.start()
        thread.join()
    path = tmp_path / "trace.json"
    profile.export_chrome_trace(str(path))
    found = json.loads(path.read_text(encoding="utf-8"))
    events = found["traceEvents"]
    spans = reader.backward_spans(events)
    assert len(spans) == 1
    forward = next(e for e in events if e.get("name") == "aten::linear")
    backward = next(e for e in events if e.get("name") == "autograd::engine::evaluate_function: AddmmBackward0")
    for number, (during, begin) in enumerate(((forward, 0.0), (backward, 10.0))):
        at = {"pid": during["pid"], "tid": during["tid"], "ts": during["ts"] + during["dur"] / 2}
        events.append({**launch(0, number), **at})
        events.append(kernel("gemm", begin, begin + 10, number))
    events.append(kernel(OURS, 0, 40))
    path.write_text(json.dumps(found), encoding="utf-8")
    told = subprocess.run(
        [sys.executable, str(TOOLS / "gpu" / "trace_reader.py"), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    summary = json.loads(told.stdout.removeprefix(f"{path} "))
    assert summary == reader.read(path)
    assert summary["percent_beside"] == 25.0
    assert summary["percent_beside_any"] == 50.0
