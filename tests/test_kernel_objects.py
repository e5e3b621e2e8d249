"""The objects of the tile functions, looked at from outside.

Each kernels_<isa>.cc is compiled here with its own target flags, as the build does it. An inline function with
external linkage in one of them could become everybody's copy and crash on a lesser CPU, and a fused
multiply-add or a hardware bfloat16 rounding would give other bits than the other tables.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

COMMON_FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-DDCOMM_HAVE_X86_KERNELS=1"]
AVX2_FLAGS = ["-mavx2", "-mf16c"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2_FLAGS]
ISA_FLAGS = {"scalar": [], "avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}

# Fused multiply-adds of any operand order, and the conversion that flushes denormals.
FORBIDDEN = re.compile(r"\b(vfn?m(?:add|sub|addsub|subadd)\w*|vcvtne2?ps2?2?bf16\w*)", re.IGNORECASE)

pytestmark = [
    pytest.mark.long,  # each table is compiled once more
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 instruction sets"),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("c++", "nm", "objdump")), reason="needs c++, nm and objdump"
    ),
]


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


def compile_object(source: Path, target: Path, flags: list[str]) -> Path:
    run("c++", *flags, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(target))
    return target


def forbidden_instructions(disassembly: str) -> list[str]:
    """The instructions in the text of `objdump -d` that would give other bits."""
    return sorted({match.group(1).lower() for match in FORBIDDEN.finditer(disassembly)})


def symbol_problems(symbols: str, expected_function: str) -> list[str]:
    """What is wrong with the text of `nm -C`: weak symbols, and global ones besides the one function."""
    problems = []
    exported = []
    for line in symbols.splitlines():
        match = re.match(r"^[0-9a-fA-F]*\s+([A-Za-z])\s+(.*)$", line)
        if match is None:
            continue
        kind, name = match.groups()
        if kind in "WwVvu":
            problems.append(f"weak symbol {name}")
        elif kind.isupper() and kind != "U":
            exported.append(f"{kind} {name}")
    if exported != [f"T {expected_function}"]:
        problems.append(f"exported {exported}, expected only T {expected_function}")
    return problems


@pytest.fixture(scope="module", params=sorted(ISA_FLAGS))
def kernel_object(request, tmp_path_factory):
    isa = request.param
    source = ROOT / "csrc" / "exec" / f"kernels_{isa}.cc"
    target = tmp_path_factory.mktemp("kernels") / f"kernels_{isa}.o"
    return isa, compile_object(source, target, COMMON_FLAGS + ISA_FLAGS[isa])


def test_exports_one_function_and_nothing_weak(kernel_object):
    isa, path = kernel_object
    assert symbol_problems(run("nm", "-C", str(path)), f"dcomm::kernel_table_{isa}()") == []


def test_has_no_instruction_that_changes_bits(kernel_object):
    _, path = kernel_object
    disassembly = run("objdump", "-d", str(path))
    assert "ret" in disassembly
    assert forbidden_instructions(disassembly) == []


def test_takes_slot_lines_with_write_intent(kernel_object):
    """Without -mprfchw the compiler's own builtin would silently become a prefetch to read."""
    _, path = kernel_object
    assert "prefetchw" in run("objdump", "-d", str(path))


def test_the_installed_core_contracts_nothing():
    from dcomm import _core

    assert forbidden_instructions(run("objdump", "-d", "--no-show-raw-insn", _core.__file__)) == []


def test_a_contracted_build_would_be_caught(tmp_path):
    source = tmp_path / "contracted.cc"
    source.write_text(
        "void axpy(float* y, const float* x, float a, int n) {\n"
        "  for (int i = 0; i < n; ++i) y[i] = a * x[i] + y[i];\n"
        "}\n"
    )
    flags = ["-std=c++20", "-O3", "-mavx2", "-mfma"]
    contracted = compile_object(source, tmp_path / "fast.o", [*flags, "-ffp-contract=fast"])
    assert any("vfmadd" in name for name in forbidden_instructions(run("objdump", "-d", str(contracted))))
    plain = compile_object(source, tmp_path / "off.o", [*flags, "-ffp-contract=off"])
    assert forbidden_instructions(run("objdump", "-d", str(plain))) == []


def test_a_contracted_kernel_would_be_caught(tmp_path):
    """The kernels themselves multiply (by 1/n) and add: -ffp-contract=off is what keeps the two apart."""
    source = ROOT / "csrc" / "exec" / "kernels_avx2.cc"
    flags = [flag for flag in COMMON_FLAGS if not flag.startswith("-ffp-contract")]
    contracted = compile_object(source, tmp_path / "fast.o", [*flags, *AVX2_FLAGS, "-mfma", "-ffp-contract=fast"])
    assert any("vfmadd" in name for name in forbidden_instructions(run("objdump", "-d", str(contracted))))


@pytest.mark.parametrize(
    "line, caught",
    [
        ("  10: vfnmsub231ps %zmm1,%zmm2,%zmm3", True),
        ("  10: vfmaddsub132ps %ymm1,%ymm2,%ymm3", True),
        ("  10: vcvtneps2bf16 %zmm1,%ymm2", True),
        ("  10: vcvtne2ps2bf16 %zmm1,%zmm2,%zmm3", True),
        ("  10: vaddps %zmm1,%zmm2,%zmm3", False),
        ("  10: vcvtps2ph $0x0,%zmm1,%ymm2", False),
    ],
)
def test_forbidden_instructions(line, caught):
    assert bool(forbidden_instructions(line)) == caught


@pytest.mark.parametrize(
    "line",
    [
        "0000 W float std::bit_cast<float>(unsigned int)",
        "0000 V table",
        "0000 u unique",
        "0000 T other()",
        "0000 D data",
    ],
)
def test_symbol_problems(line):
    good = "0010 T dcomm::kernel_table_avx2()\n0000 t local\n                 U memcpy\n"
    assert symbol_problems(good, "dcomm::kernel_table_avx2()") == []
    assert symbol_problems(good + line, "dcomm::kernel_table_avx2()") != []
