"""The few calls of the CUDA driver API that the doctor makes, by ctypes: neither torch nor a toolkit is needed.

Every argument is a ctypes object of the width that the C function takes, so that no prototype has to be declared and
tests can pass an object of their own instead of libcuda. Tried against a libcuda in C (tests/support/fake_libcuda.c),
compiled with NVIDIA's header; no GPU has run it yet.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

LIBRARY = "libcuda.so.1"
_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_PEER_ACCESS_ALREADY_ENABLED = 704

# What to do about the results of cuInit that a user can do something about.
INIT_FIXES = {
    100: "make a GPU visible: look at CUDA_VISIBLE_DEVICES, docker --gpus, srun --gpus",
    101: "CUDA_VISIBLE_DEVICES names a GPU that is not there; `nvidia-smi -L` lists them",
    304: "the operating system refused: look at the permissions of /dev/nvidia* and at the device cgroup",
    802: "the system is not ready: start nvidia-fabricmanager (`systemctl status nvidia-fabricmanager`)",
    803: "the kernel module and libcuda are of different versions: reboot, or reload the nvidia modules",
    804: "the forward-compatibility libcuda does not serve this GPU: take it off LD_LIBRARY_PATH, or update the driver",
    999: "reload nvidia_uvm (`modprobe -r nvidia_uvm && modprobe nvidia_uvm`), and look at `dmesg`",
}
_OTHER_FIX = "look at `nvidia-smi` and `dmesg`"


class DriverError(Exception):
    """A call of the driver failed."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name or 'error'} ({code})")
        self.code = code

    @property
    def fix(self) -> str:
        """What to do about it."""
        return INIT_FIXES.get(self.code, _OTHER_FIX)


class Gpu(NamedTuple):
    """A device as the driver numbers it."""

    number: int
    name: str
    nbytes: int
    capability: tuple[int, int]


def load() -> Any:
    """The driver's library.

    Raises:
        OSError: There is none, or it does not load.
    """
    return ctypes.CDLL(LIBRARY)


class Driver:
    """The driver; every method raises DriverError where its call fails."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def _call(self, name: str, *arguments: Any) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code != 0:
            raise DriverError(name, code, self._error_name(code))

    def _error_name(self, code: int) -> str:
        text = ctypes.c_char_p()
        if int(self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))) != 0:
            return ""
        return (text.value or b"").decode()

    def initialise(self) -> None:
        """Once, before anything else."""
        self._call("cuInit", ctypes.c_uint(0))

    def cuda_version(self) -> tuple[int, int]:
        """The newest CUDA that this driver serves."""
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        return version.value // 1000, version.value % 1000 // 10

    def gpus(self) -> list[Gpu]:
        """Those that this process sees."""
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return [self._gpu(index) for index in range(count.value)]

    def _device(self, index: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        return device

    def _gpu(self, index: int) -> Gpu:
        device, name, nbytes = self._device(index), ctypes.create_string_buffer(128), ctypes.c_size_t()
        self._call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        self._call("cuDeviceTotalMem_v2", ctypes.byref(nbytes), device)
        numbers = []
        for attribute in _COMPUTE_CAPABILITY:
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
            numbers.append(value.value)
        return Gpu(index, name.value.decode(errors="replace"), nbytes.value, (numbers[0], numbers[1]))

    def can_access_peer(self, index: int, peer: int) -> bool:
        """Whether GPU `index` claims to reach the memory of GPU `peer`."""
        answer = ctypes.c_int()
        self._call("cuDeviceCanAccessPeer", ctypes.byref(answer), self._device(index), self._device(peer))
        return answer.value != 0

    @contextmanager
    def context(self, index: int) -> Iterator[Context]:
        """The primary context of a GPU, which the CUDA runtime uses, too."""
        device, handle = self._device(index), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(handle), device)
        try:
            yield Context(self, handle)
        finally:
            self._library.cuDevicePrimaryCtxRelease_v2(device)


class Context:
    """A context, and what is done in it."""

    def __init__(self, driver: Driver, handle: ctypes.c_void_p) -> None:
        self._driver = driver
        self._handle = handle

    def _call(self, name: str, *arguments: Any) -> None:
        self._driver._call("cuCtxSetCurrent", self._handle)
        self._driver._call(name, *arguments)

    @contextmanager
    def memory(self, nbytes: int) -> Iterator[int]:
        """The address of device memory."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
        try:
            yield address.value
        finally:
            self._driver._library.cuMemFree_v2(address)

    def write(self, address: int, data: bytes) -> None:
        """Copy to the device."""
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_char_p(data), ctypes.c_size_t(len(data)))

    def read(self, address: int, nbytes: int) -> bytes:
        """Copy from the device; waits for what was started before."""
        data = ctypes.create_string_buffer(nbytes)
        self._call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(nbytes))
        return data.raw

    def copy_to(self, peer: Context, target: int, source: int, nbytes: int) -> None:
        """Copy from this GPU's memory to a peer's, and wait for it."""
        there, here = (ctypes.c_uint64(target), peer._handle), (ctypes.c_uint64(source), self._handle)
        self._call("cuMemcpyPeer", *there, *here, ctypes.c_size_t(nbytes))
        self._call("cuCtxSynchronize")

    def enable_access_to(self, peer: Context) -> None:
        """Let this GPU reach the peer's memory without the host."""
        try:
            self._call("cuCtxEnablePeerAccess", peer._handle, ctypes.c_uint(0))
        except DriverError as error:
            if error.code != _PEER_ACCESS_ALREADY_ENABLED:
                raise
