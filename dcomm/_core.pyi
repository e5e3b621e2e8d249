"""The compiled core. Private: use the dcomm package."""

from collections.abc import Callable
from typing import Any

__version__: str

class Work:
    def done(self) -> bool: ...
    def wait_for(self, seconds: float) -> bool: ...
    @property
    def source(self) -> int: ...
    def open_event(self) -> int: ...
    def raise_if_failed(self) -> None: ...

class CudaWork:
    @property
    def state(self) -> int: ...
    def order_before(self, stream: int, /) -> None: ...

class Region:
    @property
    def reach_bytes(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class _FastAllReduce:
    def __call__(self, array: Any, out: Any, op: Any, algo: Any, wire_dtype: Any, /) -> bool: ...

class Communicator:
    @staticmethod
    def of_threads(world_size: int, deterministic: bool = ...) -> list[Communicator]: ...
    @staticmethod
    def connect(
        rank: int,
        world_size: int,
        meeting_key: str,
        exact: bool,
        init_counter: int,
        config_hash: int,
        version: str,
        timeout_s: float,
        force_shm: bool,
        deterministic: bool,
    ) -> Communicator: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    @property
    def isa(self) -> str: ...
    @property
    def deterministic(self) -> bool: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def pids(self) -> list[int]: ...
    def stats(self) -> dict[str, Any]: ...
    def collective(
        self,
        kind: int,
        source: int,
        target: int,
        count: int,
        dtype: int,
        wire: int,
        op: int,
        algo: int,
        root: int,
        factor: float,
        send_lengths: list[int] | None,
        recv_lengths: list[int] | None,
        timeout_ns: int,
        /,
    ) -> None: ...
    def collective_async(
        self,
        kind: int,
        source: int,
        target: int,
        count: int,
        dtype: int,
        wire: int,
        op: int,
        algo: int,
        root: int,
        factor: float,
        send_lengths: list[int] | None,
        recv_lengths: list[int] | None,
        timeout_ns: int,
        /,
    ) -> Work: ...
    def collective_cuda(
        self,
        kind: int,
        device: int,
        source: int,
        target: int,
        count: int,
        dtype: int,
        wire: int,
        op: int,
        algo: int,
        root: int,
        tag: int,
        stream: int,
        timeout_ns: int,
        collected: bool,
        async_op: bool,
        /,
    ) -> CudaWork | None: ...
    def wait_cuda(self, work: CudaWork, timeout_ns: int, /) -> None: ...
    def check_cuda_reports(self) -> None: ...
    def end_collecting_cuda(self, complain: bool, /) -> None: ...
    def open_cuda(self, device: int, /) -> None: ...
    @property
    def cuda_device(self) -> int: ...
    def is_beside(self, other: Communicator, /) -> bool: ...
    def synchronize_cuda(self, timeout_ns: int, /) -> None: ...
    def message(
        self, kind: int, address: int, count: int, dtype: int, peer: int, tag: int, timeout_ns: int, /
    ) -> int: ...
    def message_async(
        self, kind: int, address: int, count: int, dtype: int, peer: int, tag: int, timeout_ns: int, /
    ) -> Work: ...
    def adopt(self, address: int, nbytes: int, timeout_ns: int, /) -> Region: ...
    def release(self, region: Region, /) -> None: ...
    def allocate(self, nbytes: int, timeout_ns: int, /) -> Region: ...
    def set_patience(self, patience_ns: int, /) -> None: ...
    def set_timeout(self, timeout_ns: int, /) -> None: ...
    def split(self, color: int | None, key: int, timeout_ns: int, /) -> Communicator | None: ...
    def fast_all_reduce(
        self,
        op_codes: dict[Any, int],
        algo_codes: dict[str, int],
        wire_codes: dict[Any, int],
        kinds: dict[type, int],
        torch_codes: dict[Any, int],
        /,
    ) -> _FastAllReduce: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
    def leave(self) -> None: ...
    def _inject_delay(self, seconds: float, /) -> None: ...

def initialise(exceptions: dict[str, type[BaseException]], main_thread: int | None) -> None: ...
def in_forked_child() -> bool: ...
def cuda_device_count() -> int: ...
def cuda_pointer_device(address: int, /) -> int: ...
def order_cuda_streams(device: int, before: int, after: int, /) -> None: ...
def cuda_launch_floor(device: int, /) -> tuple[float, float]: ...
def _use_cuda_library(path: str) -> None: ...
def dlpack_view(capsule: Any) -> tuple[int, int, int, bool, bool, tuple[int, ...]]: ...
def buffer_view(array: Any) -> tuple[int, int, int, bool, bool, tuple[int, ...], str]: ...

class ArrayList:
    def __init__(
        self,
        arrays: tuple[Any, ...],
        kinds: dict[type, int],
        torch_codes: dict[Any, int],
        describe: Callable[[int, Any], tuple[int, int, int, bool]],
    ) -> None: ...
    @property
    def arrays(self) -> tuple[Any, ...]: ...
    @property
    def count(self) -> int: ...
    @property
    def dtype(self) -> int: ...

class CudaArrayList:
    def __init__(
        self, device: int, addresses: list[int], counts: list[int], offsets: list[int], dtype: int
    ) -> None: ...
    def pack(self, whole: int, dtype: int, scale: float, stream: int, /) -> None: ...
    def unpack(self, whole: int, dtype: int, scale: float, stream: int, /) -> None: ...

def all_reduce_lists(
    comm: Communicator,
    source: ArrayList,
    target: ArrayList,
    wire: int,
    op: int,
    algo: int,
    factor: float,
    timeout_ns: int,
    /,
) -> None: ...
def all_reduce_lists_async(
    comm: Communicator,
    source: ArrayList,
    target: ArrayList,
    wire: int,
    op: int,
    algo: int,
    factor: float,
    timeout_ns: int,
    /,
) -> Work: ...
def pack(arrays: ArrayList, address: int, nbytes: int, dtype: int, scale: float, /) -> None: ...
def unpack(address: int, nbytes: int, dtype: int, arrays: ArrayList, scale: float, /) -> None: ...
def plan_buckets(
    counts: list[int], dtypes: list[int], order: list[int], bucket_bytes: int, first_bucket_bytes: int
) -> list[tuple[int, int, list[tuple[int, int]]]]: ...
def record_all_reduce(
    algo: int, world_size: int, count: int, /
) -> list[list[tuple[bool, int, int, int, int, int]]]: ...
def time_all_reduce(
    comm: Communicator,
    buffers: list[tuple[int, int]],
    inputs: int,
    expected: int,
    num_offsets: int,
    count: int,
    dtype: int,
    wire: int,
    op: int,
    algo: int,
    calls: int,
    batches: int,
    num_warm: int,
) -> tuple[list[float], int]: ...
