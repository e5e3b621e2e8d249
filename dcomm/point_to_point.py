"""Messages from one rank to another: send, recv and recv_any."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from dcomm import arrays
from dcomm.operation import RECV, SEND, Endpoint, Operand, Operation, check_writable, operand, timeout_to_ns
from dcomm.work import AnySourceWork, Work

_MAX_TAG = 2**31 - 1
_ANY_SOURCE = -1  # the core's number for it


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
        stream: Any = None,
    ) -> Work | None:
        """Send `x` to rank `dst`, which takes it with :meth:`recv`.

        Messages of one rank to another with one tag arrive in the order of the calls. Returns when `x` may be written
        again, which may be before `dst` has called recv. A rank that waits in send or recv takes in what others send
        it meanwhile, so both of two ranks may send first. Messages in flight (with `async_op`) wait for nothing but
        their own peers, and for the collectives called before them.

        Args:
            x: (count,) or any shape, any dtype that dcomm knows; NumPy array, torch tensor or buffer; also empty.
                A non-contiguous array is copied first. A CUDA array: contiguous; of two ranks that exchange one must
                receive first. Ranks that are threads: the call blocks the host until `dst` has called recv (or use
                :func:`dcomm.group`). Processes: it is asynchronous to the host, in the order of this rank's calls.
            dst: The rank that receives; not this rank.
            tag: 0 to 2**31 - 1; tells messages apart.
            async_op: Return a :class:`Work` at once; `x` belongs to it until it is done.
            timeout: Seconds (or timedelta) without any of the message moving, from when it is its turn: behind
                collectives, and behind earlier messages to `dst`, it does not count. None: the communicator's.
            stream: CUDA arrays only, as for :meth:`all_reduce`.

        Returns:
            None; a :class:`Work` with `async_op`.

        Raises:
            ValueError: `dst` is no other rank, or a bad tag or timeout.
            TypeError: Not an array, or an unsupported dtype.
            PeerLostError: `dst` has died or closed its communicator.
            MismatchError: CUDA arrays: `dst` expects another count or dtype (processes: or tag), or waits for this rank
                in another call. Processes: raised at the next call, or when the host waits.
            CollectiveTimeoutError, AbortedError, ForkedProcessError, ConcurrentUseError: See :mod:`dcomm.errors`.
        """
        source = operand(x, stream)
        peer, number = _check_numbers("dst", dst, tag)
        if source.view.device >= 0:
            work: Work | None = self._run_message(SEND, source, None, peer, number, async_op, timeout, stream)
            return work
        self._check_on_host(stream)
        staged = source if source.view.contiguous else operand(arrays.contiguous_copy(x))
        args = (SEND, *_message_args(staged), peer, number, timeout_to_ns(timeout))
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
        stream: Any = None,
    ) -> Any:
        """Receive into `x` the next message that rank `src` sends to this rank with `tag`.

        Messages with other tags that come before it are kept for later calls; not so CUDA arrays between processes,
        which arrive in the order of the calls: another tag is a mismatch.

        Args:
            x: Writable array as for :meth:`send`, of the sender's count and dtype. A non-contiguous one is filled from
                a copy.
            src: The rank that sends; not this rank.
            tag: As for :meth:`send`.
            async_op: Return a :class:`Work` at once. Messages that are queued behind it do not wait for it;
                collectives do. Of receives that match the same message the one called first gets it.
            timeout: As for :meth:`send`.
            stream: As for :meth:`send`.

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
        target = operand(x, stream)
        check_writable("x", target)
        peer, number = _check_numbers("src", src, tag)
        if target.view.device >= 0:
            return self._run_message(RECV, None, target, peer, number, async_op, timeout, stream)
        self._check_on_host(stream)
        staged, finish = _staged_for_recv(x, target)
        args = (RECV, *_message_args(staged), peer, number, timeout_to_ns(timeout))
        if async_op:
            return self._track(Work(self._core.message_async(*args), x, (x, staged), self.abort, finish))
        self._core.message(*args)
        if finish is not None:
            finish()
        return x

    def recv_any(
        self, x: Any, *, tag: int = 0, async_op: bool = False, timeout: float | timedelta | None = None
    ) -> Any:
        """Receive into `x` a message with `tag`, whichever rank sends it.

        Ranks whose messages wait take turns, so none is passed over for ever. Order, stash and queue are as for
        :meth:`recv`; receives of one rank and of any rank stand in one line, and a message goes to the first that
        matches it.

        Args:
            x: CPU array as for :meth:`recv`.
            tag: As for :meth:`send`.
            async_op: Return a :class:`Work` at once, whose `wait()` returns the rank that has sent.
            timeout: As for :meth:`send`.

        Returns:
            The rank that has sent it; a :class:`Work` with `async_op`.

        Raises:
            ValueError: A bad tag or timeout, `x` is read-only or a CUDA array, or there is no other rank.
            TypeError: Not an array, or an unsupported dtype.
            MismatchError: As for :meth:`recv`; the text names the rank that has sent.
            PeerLostError: A rank has died while no message was there, or all others have closed their communicators.
                A rank that closes its own while others are there disturbs nothing.
            CollectiveTimeoutError, AbortedError, ForkedProcessError, ConcurrentUseError: See :mod:`dcomm.errors`.
        """
        target = operand(x)
        check_writable("x", target)
        _, number = _check_numbers("src", 0, tag)
        if target.view.device >= 0:
            raise ValueError(
                "recv_any takes CPU arrays: a CUDA array is received from a rank that is known; name it with recv(src=)"
            )
        staged, finish = _staged_for_recv(x, target)
        args = (RECV, *_message_args(staged), _ANY_SOURCE, number, timeout_to_ns(timeout))
        if async_op:
            return self._track(AnySourceWork(self._core.message_async(*args), x, (x, staged), self.abort, finish))
        source = self._core.message(*args)
        if finish is not None:
            finish()
        return source

    def _run_message(
        self,
        kind: int,
        source: Operand | None,
        target: Operand | None,
        peer: int,
        tag: int,
        async_op: bool,
        timeout: float | timedelta | None,
        stream: Any,
    ) -> Any:
        """A message of a CUDA array."""
        one = source or target
        assert one is not None
        result = None if target is None else target.array
        operation = Operation(kind, one.view.count, one.view.dtype, source, target, result, root=peer, tag=tag)
        return self._run(operation, async_op, timeout, stream)


def _staged_for_recv(x: Any, target: Operand) -> tuple[Operand, Callable[[], None] | None]:
    """Where a message for `x` comes in, and what brings it to `x` then (None: it is there)."""
    if target.view.contiguous:
        return target, None
    staged = operand(arrays.empty(x, target.view.shape))
    return staged, lambda: arrays.copy_into(x, staged.array)


def _message_args(staged: Operand) -> tuple[int, int, int]:
    return staged.view.address, staged.view.count, staged.view.dtype


def _check_numbers(name: str, peer: Any, tag: Any) -> tuple[int, int]:
    numbers = []
    for argument, value in ((name, peer), ("tag", tag)):
        try:
            numbers.append(operator.index(value))
        except TypeError:
            raise TypeError(f"{argument}={value!r}: expected a whole number") from None
        if not 0 <= numbers[-1] <= _MAX_TAG:
            raise ValueError(f"{argument}={value!r}: expected a whole number from 0 to {_MAX_TAG}")
    return numbers[0], numbers[1]
