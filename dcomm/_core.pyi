"""The compiled core. Private: use the dcomm package."""

from typing import Any

__version__: str

class Work:
    def done(self) -> bool: ...
    def wait_for(self, seconds: float) -> bool: ...
    def raise_if_failed(self) -> None: ...

class _FastAllReduce:
    def __call__(self, *args: Any) -> bool: ...

class Communicator:
    @staticmethod
    def of_threads(world_size: int) -> list[Communicator]: ...
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
        stream: int,
        timeout_ns: int,
        /,
    ) -> None: ...
    def synchronize_cuda(self, timeout_ns: int, /) -> None: ...
    def fast_all_reduce(self) -> _FastAllReduce: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
    def leave(self) -> None: ...
    def _inject_delay(self, seconds: float, /) -> None: ...

def initialise(exceptions: dict[str, type[BaseException]], main_thread: int | None) -> None: ...
def in_forked_child() -> bool: ...
def cuda_device_count() -> int: ...
def buffer_view(array: Any) -> tuple[int, int, int, bool, bool, str]: ...
