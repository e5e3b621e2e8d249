"""Handles of calls whose tensors are on a GPU: who waits lets its current stream wait, and the host goes on.

    current stream   | x = ... |              | wait(): from here on behind the event | uses x
    dcomm's stream             | all_reduce x |
    side stream                               | copies out, futures |

As torch's own groups do, so that DDP's backward, FSDP's prefetch and the like overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch

from dcomm.torch import device_streams
from dcomm.torch.completer import Completer
from dcomm.torch.device_streams import SideStream
from dcomm.torch.group_work import GroupWork
from dcomm.work import Work


class CudaGroupWork(GroupWork):
    """The handle of one call on a GPU.

    Args:
        works: Its operations, which run asynchronously; empty: the current stream has waited for them.
        tensors: What the call gives; the future's value.
        completer: Of the group; not needed here.
        side: The group's stream beside the caller's.
        finish: Copies results out; runs on `side`, behind the operations.
    """

    def __init__(
        self,
        works: Sequence[Work],
        tensors: list[torch.Tensor],
        completer: Completer,
        side: SideStream,
        finish: Callable[[], None] | None = None,
    ) -> None:
        """See the class."""
        super().__init__(works, tensors, completer)
        self._side = side
        self._event: Any = None if finish is None else side.finish(works, finish)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Let the current stream wait for the results; the host goes on at once.

        Args:
            timeout: More than 0: the host waits for the operations too, so long at most.

        Raises:
            CollectiveTimeoutError: `timeout` has passed; the operations go on.
            DcommError: With `timeout`: an operation failed. Without, the group's next call raises it.
        """
        super().wait(timeout)
        if self._event is not None:
            torch.cuda.current_stream(self._side.device).wait_event(self._event)
        return True

    def is_completed(self) -> bool:
        """True once the GPU is through with all operations, well or badly; never blocks."""
        return all(work.done() for work in self._works) and (self._event is None or bool(self._event.query()))

    def get_future(self) -> torch.futures.Future[Any]:
        """A completed future of the tensors: waiting for it lets the stream that is current then wait."""
        if not self._works:
            return device_streams.completed_on(None, self._side.device, self._tensors)
        return self._side.future_of(self._works, self._event, self._tensors)
