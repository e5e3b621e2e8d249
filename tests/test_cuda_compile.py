"""The CUDA part as far as a machine without a GPU can tell: it compiles, its kernels keep to their registers, the
machine code holds no instruction that would give other bits or read stale data, and a missing GPU is said clearly.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import dcomm
from dcomm import _core

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "launch").glob("*.cu"))
# The flags of CMakeLists.txt that decide over the machine code.
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-arch=sm_90", "-Xptxas", "-v", "-Werror", "all-warnings"]
# two_shot and packets: 5 pairs of types x 2, 4, 8 or any ranks; ring, tree, one_shot: 5; reduce_scatter: 3 x 4;
# reduce: 3; two_shot, ring, reduce_scatter, reduce of integers: 3 widths and bool; five collectives that move bytes,
# send, and the barrier; direct for 2, 8 or any, pulled for 2 or any ranks, of 3 types. Lists of arrays: 7 pairs of
# types, and bytes; two_shot of fp8 wires.
NUM_KERNELS = 2 * 5 * 4 + 3 * 5 + 3 * 4 + 3 + 4 * 4 + 7 + 3 * 5 + 8 + 1
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    candidates = [os.environ.get("CUDACXX"), f"{home}/bin/nvcc" if home else None, "/usr/local/cuda/bin/nvcc", "nvcc"]
    for candidate in candidates:
        if candidate and (found := shutil.which(candidate)):
            return found
    return None


def instructions(sass: str) -> dict[str, Counter[str]]:
    """How often each instruction stands in each function of the text of nvdisasm or cuobjdump."""
    functions: dict[str, Counter[str]] = {}
    current: Counter[str] | None = None
    for line in sass.splitlines():
        if match := re.match(r"\s*(?:\.text\.(\S+):|Function : (\S+))", line):
            current = functions.setdefault(match[1] or match[2], Counter())
        elif current is not None and (match := INSTRUCTION.search(line)):
            current[match[1]] += 1
    return {name: counts for name, counts in functions.items() if counts}


def sass_problems(name: str, counts: Counter[str]) -> list[str]:
    """What must not be in a kernel that communicates."""
    problems = [
        f"{name}: {instruction}"
        for instruction in counts
        if re.match(r"(LDL|STL)\b", instruction) or (instruction.startswith("LDG") and ".CONSTANT" in instruction)
    ]
    # Fused multiply-adds belong to the correctly rounded division only, which kernels for 2, 4 or 8 ranks replace
    # by an exact multiplication: they hold none, and neither do those that only move bytes.
    divides = (
        re.search(r"(TwoShot|Packets|ReduceScatter)Body\w*Li0E|\d(Ring|Tree|OneShot|Reduce)Body", name) is not None
    )
    if not divides and any(re.match(r"[FDH]FMA\b(?!2)", instruction) for instruction in counts):
        problems.append(f"{name}: fused multiply-add")
    scope = ".STRONG.SYS" if "PacketsBody" in name else ""  # a packet is one access, seen by all
    if "BarrierBody" not in name and (counts[f"LDG.E.128{scope}"] == 0 or counts[f"STG.E.128{scope}"] == 0):
        problems.append(f"{name}: no 16-byte accesses")
    return problems


def test_sass_problems_are_found() -> None:
    good = Counter({"LDG.E.128": 4, "STG.E.128": 4, "FADD": 8})
    names = {
        body: f"_ZN5dcomm12k_collectiveINS_{len(body)}{body}INS_7CudaF32E{rest}EEEEvNS_7CudaJobE"
        for body, rest in (("TwoShotBody", "S2_Li8E"), ("RingBody", "S2_E"), ("PacketsBody", "S2_Li2E"))
    } | {
        body: f"_ZN5dcomm12k_collectiveINS_{len(body)}{body}EEEvNS_7CudaJobE" for body in ("GatherBody", "BarrierBody")
    }
    for body in ("TwoShotBody", "GatherBody"):
        assert sass_problems(names[body], good) == []
        for bad in ("LDL.64", "STL", "LDG.E.128.CONSTANT", "FFMA", "FFMA.RZ"):
            assert sass_problems(names[body], good + Counter([bad])) != [], bad
        assert sass_problems(names[body], Counter({"LDG.E": 4})) != []
    assert sass_problems(names["RingBody"], good + Counter(["FFMA"])) == []  # divides by any world size
    integer_ring = "_ZN5dcomm12k_collectiveINS_15IntegerRingBodyINS_6CudaI8EEEEEvNS_7CudaJobE"
    assert sass_problems(integer_ring, good) == []
    assert sass_problems(integer_ring, good + Counter(["FFMA"])) != []
    assert sass_problems(names["PacketsBody"], good) != []  # a packet must not be torn, nor kept in a cache
    assert sass_problems(names["PacketsBody"], Counter({"LDG.E.128.STRONG.SYS": 1, "STG.E.128.STRONG.SYS": 1})) == []
    assert sass_problems(names["BarrierBody"], Counter({"LDG.E.64.STRONG.SYS": 1})) == []
    text = ".text.k:\n        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;\n"
    assert instructions(text) == {"k": Counter({"LDG.E.128": 1})}


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sm_90 cubins with ptxas' reports."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    folder = tmp_path_factory.mktemp("cubins")
    for source in SOURCES:
        target = folder / f"{source.stem}.cubin"
        command = [nvcc, *FLAGS, f"-I{ROOT / 'csrc'}", "-cubin", "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        (folder / f"{target.name}.ptxas.log").write_text(done.stdout + done.stderr)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kernels_keep_to_their_registers(cubins: Path) -> None:
    script = ROOT / "tools" / "check_cuda_resources.py"
    done = subprocess.run([sys.executable, str(script), str(cubins)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_machine_code(cubins: Path) -> None:
    nvdisasm = shutil.which("nvdisasm")
    if nvdisasm is None:
        pytest.skip("no nvdisasm on this machine (pip install nvidia-cuda-nvdisasm)")
    functions: dict[str, Counter[str]] = {}
    for cubin in sorted(cubins.glob("cuda_kernels_*.cubin")):
        done = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True)
        functions |= instructions(done.stdout)
    assert len(functions) == NUM_KERNELS
    problems = [problem for name, counts in functions.items() for problem in sass_problems(name, counts)]
    assert problems == []
    # What measures the floor exchanges flags as the collectives do.
    done = subprocess.run(
        [nvdisasm, "-c", str(cubins / "cuda_launch_floor.cubin")], capture_output=True, text=True, check=True
    )
    (ping_pong,) = (counts for name, counts in instructions(done.stdout).items() if "k_ping_pong" in name)
    assert {"LDG.E.64.STRONG.SYS", "STG.E.64.STRONG.SYS"} <= set(ping_pong)
    assert not any(re.match(r"(LDL|STL)\b", instruction) for instruction in ping_pong)


def test_missing_gpu_is_one_clear_sentence() -> None:
    try:
        count = _core.cuda_device_count()
    except dcomm.CudaError as error:
        text = str(error)
        assert "\n" not in text
        assert "CPU arrays" in text  # what to do instead
        assert any(word in text for word in ("no CUDA part", "no NVIDIA driver", "NVIDIA driver supports", "no GPU"))
    else:
        assert count >= 1
        pytest.skip(f"this machine has {count} GPUs")
