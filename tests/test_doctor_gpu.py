"""The GPU checks of `dcomm doctor` against a driver that this file makes up: no GPU has run them."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from dcomm.doctor import cuda_part, gpu, gpu_ranks, installation, peer_access
from dcomm.doctor.cuda_driver import INIT_FIXES, Driver, DriverError
from dcomm.doctor.finding import Finding

ROOT = Path(__file__).resolve().parents[1]
H200 = ("NVIDIA H200", 141 << 30, (9, 0))


class FakeDriver:
    """libcuda as far as the doctor calls it. Memory is bytes; addresses are above 32 bits, as real ones are."""

    def __init__(self, gpus: list[tuple[str, int, tuple[int, int]]] | None = None, cuda: int = 13000) -> None:
        self.devices = [H200] if gpus is None else gpus
        self.cuda = cuda
        self.errors: dict[str, int] = {}  # call: result
        self.no_access: set[tuple[int, int]] = set()
        self.corrupt: set[tuple[int, int]] = set()  # copies that deliver other bytes, once access is enabled
        self.memory: dict[int, tuple[int, bytearray]] = {}  # address: device, bytes
        self.retained = [0] * len(self.devices)
        self.enabled: set[tuple[int, int]] = set()
        self.current = threading.local()
        self._next = itertools.count(1)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        body = getattr(self, f"do_{name}")

        def call(*arguments: Any) -> int:
            assert all(
                isinstance(argument, (ctypes._SimpleCData, ctypes.Array)) or hasattr(argument, "_obj")
                for argument in arguments
            ), (name, arguments)  # no int: C would take it for 32 bits
            return self.errors.get(name) or body(*arguments) or 0

        return call

    def do_cuInit(self, flags: Any) -> None:
        assert flags.value == 0

    def do_cuGetErrorName(self, code: Any, text: Any) -> int:
        text._obj.value = f"CUDA_ERROR_{code.value}".encode()
        return 0

    def do_cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = self.cuda

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.devices)

    def do_cuDeviceGet(self, device: Any, index: Any) -> None:
        device._obj.value = 100 + index.value  # handles are not indices

    def do_cuDeviceGetName(self, name: Any, length: Any, device: Any) -> None:
        assert length.value == len(name)
        name.value = self.devices[device.value - 100][0].encode()

    def do_cuDeviceTotalMem_v2(self, nbytes: Any, device: Any) -> None:
        nbytes._obj.value = self.devices[device.value - 100][1]

    def do_cuDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> None:
        value._obj.value = self.devices[device.value - 100][2][{75: 0, 76: 1}[attribute.value]]

    def do_cuDeviceCanAccessPeer(self, answer: Any, device: Any, peer: Any) -> None:
        answer._obj.value = (device.value - 100, peer.value - 100) not in self.no_access

    def do_cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        self.retained[device.value - 100] += 1
        context._obj.value = (1 << 40) + device.value

    def do_cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:
        self.retained[device.value - 100] -= 1

    def device_of(self, context: Any) -> int:
        return int(context.value) - (1 << 40) - 100

    def do_cuCtxSetCurrent(self, context: Any) -> None:
        self.current.device = self.device_of(context)

    def do_cuCtxSynchronize(self) -> None:
        pass

    def do_cuCtxEnablePeerAccess(self, context: Any, flags: Any) -> int:
        pair = (self.current.device, self.device_of(context))
        assert pair not in self.no_access
        if pair in self.enabled:
            return 704
        self.enabled.add(pair)
        return 0

    def do_cuMemAlloc_v2(self, address: Any, nbytes: Any) -> None:
        address._obj.value = (1 << 33) * next(self._next)
        self.memory[address._obj.value] = (self.current.device, bytearray(nbytes.value))

    def do_cuMemFree_v2(self, address: Any) -> None:
        del self.memory[address.value]

    def do_cuMemcpyHtoD_v2(self, address: Any, data: Any, nbytes: Any) -> None:
        device, memory = self.memory[address.value]
        assert device == self.current.device
        memory[: nbytes.value] = ctypes.string_at(data, nbytes.value)

    def do_cuMemcpyDtoH_v2(self, data: Any, address: Any, nbytes: Any) -> None:
        ctypes.memmove(data, bytes(self.memory[address.value][1][: nbytes.value]), nbytes.value)

    def do_cuMemcpyPeer(self, target: Any, there: Any, source: Any, here: Any, nbytes: Any) -> None:
        pair = (self.device_of(here), self.device_of(there))
        assert (self.memory[source.value][0], self.memory[target.value][0]) == pair
        data = self.memory[source.value][1][: nbytes.value]
        if pair in self.corrupt and pair in self.enabled:
            data[nbytes.value // 2] ^= 1
        self.memory[target.value][1][: nbytes.value] = data


def part(folder: Path, text: str | None) -> Path:
    """A library that says `text` of itself; None: no file."""
    file = folder / "_cuda.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if text is not None:
        assert compiler is not None
        code = f'const char* dcomm_cuda_build(void) {{ return "{text}"; }}'
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(file)]
        subprocess.run(command, input=code, text=True, check=True)
    return file


def findings(driver: FakeDriver, folder: Path, text: str | None = None) -> dict[str, Finding]:
    found = list(gpu.look(lambda: driver, folder, part(folder, text)))
    assert [one.name for one in found] == list(gpu.NAMES)
    assert driver.retained == [0] * len(driver.devices)
    assert driver.memory == {}
    return {one.name: one for one in found}


@pytest.fixture(autouse=True)
def gpu_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "version_of", lambda name: (name, "2.12.0+cu130"))
    monkeypatch.setattr(gpu, "torch_cuda", lambda: "13.0")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "mps"))


def test_a_machine_with_one_gpu(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    )
    found = findings(FakeDriver(), tmp_path)
    assert found["driver"].found == "driver 580.65.06 serves CUDA 13.0"
    assert found["gpus"].found == "0: NVIDIA H200, 141 GiB, sm_90"
    assert found["gpus"].details["gpus"] == [
        {"number": 0, "name": "NVIDIA H200", "nbytes": 141 << 30, "capability": [9, 0]}
    ]
    assert found["peer_access"].status == "ok"
    assert found["torch_gpu"].found == "torch 2.12.0+cu130 for CUDA 13.0"
    assert (found["mps"].status, found["two_gpu_ranks"].status) == ("skip", "skip")
    assert "nvidia-cuda-mps-control -d" in found["mps"].fix
    (tmp_path / "mps").mkdir()
    (tmp_path / "mps" / "control").touch()
    assert findings(FakeDriver(), tmp_path)["mps"].status == "ok"


@pytest.mark.parametrize("code", sorted(INIT_FIXES))
def test_a_driver_that_does_not_start(code: int, tmp_path: Path) -> None:
    driver = FakeDriver()
    driver.errors["cuInit"] = code
    found = findings(driver, tmp_path)
    assert found["driver"].status == "fail"
    assert found["driver"].found == f"cuInit: CUDA_ERROR_{code} ({code})"
    assert found["driver"].fix == INIT_FIXES[code]
    assert {found[name].status for name in gpu.NAMES[2:]} == {"skip"}


def test_gpus_that_do_not_answer_and_no_gpu(tmp_path: Path) -> None:
    driver = FakeDriver()
    driver.errors["cuDeviceGetName"] = 999
    assert findings(driver, tmp_path)["gpus"].status == "fail"
    found = findings(FakeDriver([]), tmp_path)
    assert found["gpus"].status == "fail"
    assert "CUDA_VISIBLE_DEVICES" in found["gpus"].fix


def test_no_memory_to_try_with(tmp_path: Path) -> None:
    driver = FakeDriver([H200, H200])
    driver.errors["cuMemAlloc_v2"] = 2
    assert findings(driver, tmp_path)["peer_access"].status == "fail"


def test_peer_access_is_found_by_moving_data(tmp_path: Path) -> None:
    driver = FakeDriver([H200] * 3)
    found = findings(driver, tmp_path)["peer_access"]
    assert found.found == "6 copies between 3 GPUs, all direct, gave the right bytes"
    d = "direct"
    assert found.details["matrix"] == [["-", d, d], [d, "-", d], [d, d, "-"]]
    assert len(driver.enabled) == 6

    driver = FakeDriver([H200] * 3)
    driver.no_access = {(0, 2), (2, 0)}
    found = findings(driver, tmp_path)["peer_access"]
    assert found.status == "warn"
    assert found.found == "6 copies between GPUs gave the right bytes, 2 (0->2, 2->0) of them through the host"

    driver.corrupt = {(1, 0)}  # the driver claims access, and the bytes are others
    found = findings(driver, tmp_path)["peer_access"]
    assert found.status == "fail"
    assert "1->0 wrong" in found.found
    assert found.details["matrix"][1][0] == "wrong"
    assert found.details["matrix"][0][1] == "direct"
    assert "iommu=pt" in found.fix

    driver.errors["cuMemcpyPeer"] = 700
    found = findings(driver, tmp_path)["peer_access"]
    assert "0->1 cuMemcpyPeer: CUDA_ERROR_700 (700)" in found.found


def test_patterns_differ_between_pairs() -> None:
    """A copy that did nothing, after the right one of another pair, must not pass."""

    class Lazy(FakeDriver):
        def do_cuMemcpyPeer(self, target: Any, there: Any, source: Any, here: Any, nbytes: Any) -> None:
            if self.device_of(here) == 0:
                super().do_cuMemcpyPeer(target, there, source, here, nbytes)

    rows = peer_access.matrix(Driver(Lazy([H200, H200])), 2)
    assert rows == [["-", "direct"], ["wrong", "-"]]


# ---- The CUDA part ----


@pytest.mark.parametrize(
    ("archs", "capability", "served"),
    [
        ((80, 90), (8, 0), True),
        ((80, 90), (8, 9), True),  # machine code of the same major version
        ((86, 90), (8, 0), False),
        ((80, 90), (10, 0), True),  # PTX of the last one
        ((80, 90), (7, 5), False),
        ((80, 100), (9, 0), False),
        ((80, 90, 100, 120), (12, 0), True),
    ],
)
def test_code_for_a_gpu(archs: tuple[int, ...], capability: tuple[int, int], served: bool) -> None:
    assert cuda_part.Build((13, 0), archs).has_code_for(capability) is served


def test_a_gpu_without_code_and_an_old_driver(tmp_path: Path) -> None:
    old = FakeDriver([("Tesla T4", 15 << 30, (7, 5))], cuda=12040)
    found = findings(old, tmp_path, "cudart=13000 archs=800,900")
    assert found["cuda_part"].found == "built with CUDA 13.0 for sm_80, sm_90 and later"
    assert found["driver"].status == "fail"
    assert "serves CUDA 12.4, which is too old for dcomm's CUDA part, built with CUDA 13.0" in found["driver"].found
    assert found["gpus"].status == "fail"
    assert "no code for GPU 0: it has sm_80, sm_90 and later" in found["gpus"].found
    assert "DCOMM_CUDA_ARCHS='75'" in found["gpus"].fix
    assert found["torch_gpu"].status == "fail"
    newer = findings(FakeDriver(cuda=13010), tmp_path, "cudart=13000 archs=800,900")
    assert [newer[name].status for name in ("driver", "gpus", "torch_gpu")] == ["ok"] * 3


def test_torch_on_a_gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "torch_cuda", lambda: None)
    assert findings(FakeDriver(), tmp_path)["torch_gpu"].status == "warn"
    monkeypatch.setattr(gpu, "version_of", lambda name: None)
    assert findings(FakeDriver(), tmp_path)["torch_gpu"].status == "skip"


@pytest.mark.parametrize("text", ["", "archs=900", "cudart=13000 archs="])
def test_a_cuda_part_of_another_version(text: str, tmp_path: Path) -> None:
    found, build = cuda_part.cuda_part(part(tmp_path, text))
    assert (found.status, build) == ("fail", None)


def test_a_cuda_part_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "_cuda.so").write_text("no library")
    assert cuda_part.cuda_part(tmp_path / "_cuda.so")[0].status == "fail"
    assert cuda_part.cuda_part(tmp_path / "none")[0].status == "skip"


@pytest.mark.slow
def test_what_nvcc_makes_of_the_real_source(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    options = [
        "-shared",
        "-std=c++20",
        "-Werror",
        "all-warnings",
        "-Xcompiler",
        "-fPIC,-Wall,-Wextra,-fvisibility=hidden",
    ]
    for arch in (80, 90):
        options += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    target = tmp_path / "_cuda.so"
    source = ROOT / "csrc" / "launch" / "cuda_build.cu"
    subprocess.run([nvcc, *options, "-o", str(target), str(source)], check=True, timeout=100)
    found, build = cuda_part.cuda_part(target)
    assert found.status == "ok"
    assert build is not None
    assert build.archs == (80, 90)
    assert f"release {build.cuda[0]}.{build.cuda[1]}" in subprocess.check_output([nvcc, "--version"], text=True)


# ---- No driver ----


def no_library() -> Any:
    raise OSError("libcuda.so.1: cannot open shared object file")


def test_no_driver_and_no_gpu(tmp_path: Path) -> None:
    found = list(gpu.look(no_library, tmp_path, tmp_path / "none"))
    assert [one.name for one in found] == list(gpu.NAMES)
    assert {one.status for one in found} == {"skip"}
    assert found[1].found == "no NVIDIA driver and no NVIDIA GPU"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"proc/driver/nvidia/version": "x"}, "its kernel module is loaded, but libcuda.so.1 does not load"),
        (
            {
                "sys/bus/pci/devices/0000:17:00.0/vendor": "0x10de",
                "sys/bus/pci/devices/0000:17:00.0/class": "0x030200",
            },
            "an NVIDIA GPU is at PCI 0000:17:00.0, but",
        ),
    ],
)
def test_a_gpu_without_a_driver(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = list(gpu.look(no_library, tmp_path, tmp_path / "none"))[1]
    assert found.status == "fail"
    assert found.found.startswith(said)
    assert "--gpus all" in found.fix


# ---- Two ranks ----


class Sum:
    """An all_reduce of two threads in the fake driver's memory."""

    def __init__(self, driver: FakeDriver, wrong_rank: int = -1, error: Exception | None = None) -> None:
        self._driver, self._wrong_rank, self._error = driver, wrong_rank, error
        self._barrier = threading.Barrier(2, timeout=10)
        self._mine: dict[int, Any] = {}

    def __call__(self, comm: Any, address: int) -> None:
        if self._error is not None:
            raise self._error
        memory = self._driver.memory[address][1]
        self._mine[comm.rank] = numpy.frombuffer(bytes(memory), numpy.float32)
        self._barrier.wait()
        total = (self._mine[0] + self._mine[1]).tobytes()
        self._barrier.wait()
        memory[:] = total
        if comm.rank == self._wrong_rank:
            memory[5] ^= 1


def test_two_gpu_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(gpu_ranks, "_all_reduce", Sum(driver))
    found = gpu_ranks.two_gpu_ranks(Driver(driver))
    assert found.status == "ok", found
    assert found.details["p50_us"]["16384"] > 0
    monkeypatch.setattr(gpu_ranks, "_all_reduce", Sum(driver, wrong_rank=1))
    found = gpu_ranks.two_gpu_ranks(Driver(driver))
    assert (found.status, found.found) == ("fail", "wrong data on rank 1 of 2 on GPU 0")
    monkeypatch.setattr(gpu_ranks, "_all_reduce", Sum(driver, error=DriverError("cuLaunchKernel", 700, "X")))
    assert "cuLaunchKernel: X (700)" in gpu_ranks.two_gpu_ranks(Driver(driver)).found
    assert (driver.retained, driver.memory) == ([0], {})


def test_two_gpu_ranks_without_a_cuda_part() -> None:
    """The call into the core is the real one: without a GPU it says why, in the words of the core."""
    if installation.version_of("dcomm") is None or "dcomm._core" not in sys.modules:
        pytest.skip("dcomm is not installed")
    from dcomm import CudaError, _core

    try:
        _core.cuda_device_count()
    except CudaError as error:
        found = gpu_ranks.two_gpu_ranks(Driver(FakeDriver()))
        assert found.status == "fail"
        assert str(error) in found.found
    else:
        pytest.skip("this machine has a GPU")
