"""The CUDA part of this installation: whether it is there, what it was built with, which GPUs it has code for."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from dcomm.doctor.finding import Finding, fail, ok, skip

NAME = "cuda_part"
_FILE = Path(__file__).resolve().parents[1] / "_cuda.so"
_AGAIN = "install dcomm again where nvcc is: DCOMM_CUDA=ON pip install ."


@dataclass(frozen=True)
class Build:
    """What csrc/launch/cuda_build.cu says."""

    cuda: tuple[int, int]  # of the runtime that it holds
    archs: tuple[int, ...]  # 80, 90; the last one has PTX too

    def has_code_for(self, capability: tuple[int, int]) -> bool:
        """Machine code of the same major version and not a later minor one, or PTX that is not newer."""
        wanted = 10 * capability[0] + capability[1]
        return any(arch // 10 == capability[0] and arch <= wanted for arch in self.archs) or self.archs[-1] <= wanted

    @property
    def archs_text(self) -> str:
        """As compilers name them."""
        return ", ".join(f"sm_{arch}" for arch in self.archs)


def parse(text: str) -> Build:
    """What `dcomm_cuda_build` returned: cudart=13000 archs=800,900.

    Raises:
        ValueError: Something else.
    """
    words = dict(word.split("=", 1) for word in text.split())
    version, archs = int(words.get("cudart", "")), [int(arch) // 10 for arch in words.get("archs", "").split(",")]
    return Build((version // 1000, version % 1000 // 10), tuple(archs))


def cuda_part(file: Path = _FILE) -> tuple[Finding, Build | None]:
    """Load the CUDA part without touching a GPU."""
    if not file.exists():
        return skip(NAME, "this build has none: it serves CPU arrays", f"for GPUs, {_AGAIN}", build=None), None
    try:
        function = ctypes.CDLL(str(file)).dcomm_cuda_build
        function.restype = ctypes.c_char_p
        build = parse(function().decode("ascii"))
    except (OSError, AttributeError, ValueError) as error:
        return fail(NAME, f"{file} cannot be used: {error}", f"both parts in one step: {_AGAIN}", build=None), None
    details = {"cuda": list(build.cuda), "archs": list(build.archs)}
    major, minor = build.cuda
    return ok(NAME, f"built with CUDA {major}.{minor} for {build.archs_text} and later", build=details), build
