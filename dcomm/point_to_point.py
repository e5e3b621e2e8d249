"""Messages from one rank to another: send and recv."""

from __future__ import annotations

import operator
from datetime import timedelta
from typing import Any

from dcomm import arrays
from dcomm.errors import CudaError
from dcomm.operation import Endpoint, Operand, check_writable, timeout_to_ns
from dcomm.work import Work

# Codes of csrc/protocol/control.h.
_SEND, _RECV = 10, 11
_MAX_TAG = 2**31 - 1


class PointToPoint(Endpoint):
    """The part of a :class:`dcomm.Communicator` that only two ranks take part in."""

    def send(
        self,
        x: Any,
        dst: int,
        *,
        tag: int = 0,
        async_op: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Work | None:
        """Send `x` to rank `dst`, which takes it with :meth:`recv`.

        Messages of one rank to another with one tag arrive in the order of the calls. Returns when `x` may be written
        again, which may be before `dst` has called recv. A rank that waits in send or recv takes in what others send
        it meanwhile, so both of two ranks may send first.

        Args:
            x: (count,) or any shape, any dtype that dcomm knows; NumPy array, torch tensor or buffer; also empty.
                A non-contiguous array is copied first.
            dst: The rank that receives; not this rank.
            tag: 0 to 2**31 - 1; tells messages apart.
            async_op: Return a :class:`Work` at once; `x` belongs to it until it is done.
            timeout: Seconds (or timedelta) that a single wait for `dst` may last; None: the communicator's.

        Returns:
            None; a :class:`Work` with `async_op`.

        Raises:
            ValueError: `dst` is no other rank, or a bad tag or timeout.
            TypeError: Not an array, or an unsupported dtype.
            PeerLostError: `dst` has died or closed its communicator.
            CollectiveTimeoutError, AbortedError, ForkedProcessError, ConcurrentUseError: See :mod:`dcomm.errors`.
        """
        described = arrays.view(x)
        staged = x
        if not described.contiguous:
            staged = arrays.contiguous_copy(x)
        args = _message_args(_SEND, staged, dst, tag, timeout)
        if async_op:
            return self._track(Work(self._core.message_async(*args), None, (x, staged), self.abort))
        self._core.message(*args)
        return None

    def recv(
        self,
        x: Any,
        src: int,
        *,
        tag: int = 0,
        async_op: bool = False,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Receive into `x` the next message that rank `src` sends to this rank with `tag`.

        Messages with other tags that come before it are kept for later calls.

        Args:
            x: Writable array as for :meth:`send`, of the sender's count and dtype. A non-contiguous one is filled from
                a copy.
            src: The rank that sends; not this rank.
            tag: As for :meth:`send`.
            async_op: Return a :class:`Work` at once. Sends that are queued behind it do not wait for it; collectives
                do.
            timeout: As for :meth:`send`.

        Returns:
            `x`; a :class:`Work` with `async_op`.

        Raises:
            ValueError: `src` is no other rank, a bad tag or timeout, or `x` is read-only.
            TypeError: Not an array, or an unsupported dtype.
            MismatchError: The message has another count or dtype; the text names both sides. The communicator is then
                broken on every rank.
            PeerLostError: `src` has died or closed its communicator before it sent all of the message.
            CollectiveTimeoutError, AbortedError, ForkedProcessError, ConcurrentUseError: See :mod:`dcomm.errors`.
        """
        described = arrays.view(x)
        check_writable("x", Operand(x, described))
        staged = x
        finish = None
        if not described.contiguous:
            staged = arrays.empty(x, described.shape)

            def finish() -> None:
                arrays.copy_into(x, staged)

        args = _message_args(_RECV, staged, src, tag, timeout)
        if async_op:
            return self._track(Work(self._core.message_async(*args), x, (x, staged), self.abort, finish))
        self._core.message(*args)
        if finish is not None:
            finish()
        return x


def _message_args(
    kind: int, array: Any, peer: int, tag: int, timeout: float | timedelta | None
) -> tuple[int, int, int, int, int, int, int]:
    described = arrays.view(array)
    if described.device >= 0:
        raise CudaError("got a CUDA array: send and recv serve CPU arrays only so far; move it with .cpu()")
    numbers = []
    for name, value in (("src" if kind == _RECV else "dst", peer), ("tag", tag)):
        try:
            numbers.append(operator.index(value))
        except TypeError:
            raise TypeError(f"{name}={value!r}: expected a whole number") from None
        if not 0 <= numbers[-1] <= _MAX_TAG:
            raise ValueError(f"{name}={value!r}: expected a whole number from 0 to {_MAX_TAG}")
    codes = (kind, described.address, described.count, described.dtype)
    return (*codes, numbers[0], numbers[1], timeout_to_ns(timeout))
