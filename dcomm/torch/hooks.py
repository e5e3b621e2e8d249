"""DDP communication hooks: gradients travel through dcomm instead of the process group.

The hooks divide by the number of ranks themselves, before the cast where the wire is half precision (PyTorch's own
fp16 hook casts first, so one large gradient on one rank becomes inf), or travels as fp8. Sums are in float32.
Source of the interface: PyTorch, "DDP Communication Hooks".
"""

# No `from __future__ import annotations`: DDP compares the hooks' annotations with the classes themselves.
import logging
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket

import dcomm
from dcomm import arrays
from dcomm.communicator import Communicator
from dcomm.cuda_operation import FLOATS
from dcomm.errors import DcommError
from dcomm.torch import agreement, device_streams
from dcomm.torch.auto_policy import AutoPolicy
from dcomm.torch.bucket_memory import BucketMemory
from dcomm.torch.completer import Completer
from dcomm.torch.gradient_memory import GradientMemory
from dcomm.torch.recommendation import DCOMM, GROUP, Recommendation

logger = logging.getLogger("dcomm")


class HookState:
    """What a hook needs from one call to the next: its communicator and settings.

    The communicator is made at the first bucket, collectively, through the process group's store. Where dcomm cannot
    serve (ranks on several hosts; gradients on a GPU of which some rank has no CUDA part, or reaches not all others'
    memory) the hook on every rank hands each bucket to the process group instead, and rank 0 says so once. So it does
    with buckets of a dtype that has no CUDA kernel. Pickling keeps the settings and drops the communicator.

    Args:
        process_group: The DDP module's process group; None: the default group.
        wire_dtype: "float16", "bfloat16", "fp8" or "fp8_block128" for :func:`all_reduce_hook`; None: no conversion.
        policy: "dcomm": use dcomm wherever it can serve. "auto": in the third step, when DDP has laid out its buckets
            for good, time the process group, dcomm, and dcomm with the wire (`wire_dtype`, or the hook's) for each
            size of bucket, and use what is fastest from then on; rank 0's logger "dcomm" says so in one line. A wire
            is then a permission: used where it pays, and never tried if it is None. Before that the group averages.
        overlap: True: a bucket is reduced on dcomm's progress thread, or on a GPU on dcomm's stream, while backward
            goes on. False: at once, in the thread or on the stream that runs backward; on a CPU while its gradients are
            in that core's cache: faster where ranks have one CPU each, for then nothing else could run at the same
            time. Local: ranks may differ.
        register_buckets: CPU only. True: from a bucket's third step on the ranks reduce it where DDP keeps it, without
            a copy (see :meth:`dcomm.Communicator.register`). False, and with a narrower wire: through the window.
        reuse_gradients: CPU only. True: large gradients that DDP copies to and from its buckets (without
            ``gradient_as_bucket_view``) become parts of the memory that their bucket is reduced into, which stays from
            step to step: no copy back, no page faults. What anything else refers to is left alone. Until backward ends,
            such a ``p.grad`` holds nothing of use. Takes memory of the gradients' size. Used where all ranks want it.

    Raises:
        ValueError: Bad `wire_dtype` or `policy`.
        TypeError: `overlap`, `register_buckets` or `reuse_gradients` is no bool.
    """

    def __init__(
        self,
        process_group: Any = None,
        wire_dtype: Any = None,
        policy: str = "dcomm",
        *,
        overlap: bool = True,
        register_buckets: bool = True,
        reuse_gradients: bool = True,
    ) -> None:
        """Check the settings; nothing is connected yet."""
        flags = {"overlap": overlap, "register_buckets": register_buckets, "reuse_gradients": reuse_gradients}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise TypeError(f"{name}={flag!r}: expected True or False")
        if policy not in ("dcomm", "auto"):
            raise ValueError(f"policy={policy!r}: expected 'dcomm' or 'auto'")
        if wire_dtype is not None:
            arrays.wire_code(wire_dtype)
        self.process_group = process_group
        self.wire_dtype = wire_dtype
        self.policy = policy
        self.overlap = overlap
        self.register_buckets = register_buckets
        self.reuse_gradients = reuse_gradients
        self._comm: Communicator | None = None
        self._memory: BucketMemory | None = None
        self._gradients: GradientMemory | None = None
        self._auto: AutoPolicy | None = None
        self._completer: Completer | None = None
        self._side_stream: Any = None  # of gradients on a GPU: comes to the end of each bucket's reduction
        self._delegates = False
        self._noticed = False

    @property
    def communicator(self) -> Communicator | None:
        """The communicator in use; None before the first bucket, or where the process group serves."""
        return self._comm

    @property
    def recommendation(self) -> Recommendation | None:
        """What policy="auto" has found; None before the third step, or with another policy."""
        return None if self._auto is None else self._auto.recommendation

    def close(self) -> None:
        """Finish what is queued and free the communicator; the next bucket would make a new one."""
        if self._comm is not None:
            self._comm.close()
        if self._completer is not None:
            self._completer.close()
        if self._memory is not None:
            self._memory.close()
        if self._gradients is not None:
            self._gradients.close()
        self._comm = None
        self._auto = None
        self._completer = None
        self._memory = None
        self._gradients = None
        self._side_stream = None

    def __del__(self) -> None:
        comm, completer = getattr(self, "_comm", None), getattr(self, "_completer", None)
        if comm is not None:
            comm._core.leave()  # aborts what is queued: nobody waits for it any more
        if completer is not None:
            completer.close()

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: a communicator cannot be moved to another process."""
        names = ("wire_dtype", "policy", "overlap", "register_buckets", "reuse_gradients")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start over with the pickled settings and the default process group."""
        self.__init__(**state)  # type: ignore[misc]

    def _group(self) -> Any:
        return self.process_group if self.process_group is not None else dist.group.WORLD

    def _connect(self, tensor: torch.Tensor) -> None:
        """Collective: every rank takes the same branch, on facts that all ranks share."""
        group = self._group()
        device = device_streams.gpu_of(tensor)
        if device is None and tensor.device.type != "cpu":
            self._delegate(f"gradients on {tensor.device.type} are served by the process group so far")
            return
        try:
            self._comm = dcomm.init(
                rank=group.rank(),
                world_size=group.size(),
                store=group.get_group_store(),
                group_name=f"hook/{group.group_name}",
            )
        except DcommError as error:
            if type(error) is not DcommError:  # a failure, not "the ranks are on several hosts"
                raise
            self._delegate(str(error))
            return
        if device is not None:
            reason = agreement.open_gpus(self._comm, device)
            if reason:
                self._comm.close()
                self._comm = None
                self._delegate(reason)
            else:
                self._side_stream = device_streams.make_side_stream(device)
                self._follow_policy(group)
            return
        self._completer = Completer()
        self._memory = BucketMemory(self._comm) if self.register_buckets else None
        self._gradients = GradientMemory(self._comm, self.reuse_gradients and self.overlap)
        self._follow_policy(group)

    def _follow_policy(self, group: Any) -> None:
        if self.policy == "auto":
            assert self._comm is not None
            self._auto = AutoPolicy(self._comm, group)

    def _delegate(self, reason: str) -> None:
        self._delegates = True
        self._notice(reason)

    def _notice(self, reason: str) -> None:
        if self._group().rank() == 0 and not self._noticed:
            logger.warning("dcomm: the process group reduces the gradients: %s", reason)
        self._noticed = True


def all_reduce_hook(state: HookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket over all ranks; on the wire in `state.wire_dtype`.

    The operation runs on dcomm's progress thread while backward goes on, or at once with ``overlap=False``. Of
    gradients on a GPU it runs on dcomm's stream, behind what the current stream holds; the host does not wait for it.

    Args:
        state: A :class:`HookState`; one per DDP module.
        bucket: (count,) gradients, float32, float16, bfloat16 or float64 (float64 on a GPU: by the process group).

    Returns:
        A future of the averaged bucket, in place or in memory that is used for it in every step. When the operation
        fails, waiting for it raises a RuntimeError with the text of the dcomm error; with ``overlap=False`` the hook,
        and so backward, raises the error itself. On a GPU the future is complete when the operation is enqueued:
        waiting for it lets the current stream wait, as for torch's own; what went wrong on the GPU is raised by the
        hook's next call.
    """
    return _average(state, bucket, state.wire_dtype)


def fp16_hook(state: HookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """As :func:`all_reduce_hook`, float32 gradients travelling as float16; sums in float32."""
    return _average(state, bucket, "float16")


def bf16_hook(state: HookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """As :func:`all_reduce_hook`, float32 gradients travelling as bfloat16; sums in float32."""
    return _average(state, bucket, "bfloat16")


def fp8_hook(state: HookState, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """As :func:`all_reduce_hook`, float32 gradients travelling as fp8, a scale for each 32 numbers; sums in float32.

    An inf or NaN makes its whole block NaN on every rank, so that a gradient scaler skips the step.
    """
    return _average(state, bucket, "fp8")


def _average(state: HookState, bucket: GradBucket, wire_dtype: Any) -> torch.futures.Future[torch.Tensor]:
    tensor = bucket.buffer()
    if state._comm is None and not state._delegates:
        state._connect(tensor)
    if state._auto is not None:
        allowed = None if wire_dtype is None else arrays.DTYPE_NAMES[arrays.wire_code(wire_dtype)]
        choice = state._auto.choice_of(bucket, tensor, allowed)
        if choice == GROUP:
            return _average_by_group(state._group(), tensor)
        wire_dtype = None if choice == DCOMM else choice
    if state._comm is not None and state._side_stream is not None:
        return _average_on_gpu(state, state._comm, tensor, wire_dtype)
    if state._comm is None or state._completer is None or state._gradients is None:
        return _average_by_group(state._group(), tensor)
    wire = wire_dtype if tensor.dtype == torch.float32 else None
    place = tensor if state._memory is None or wire is not None else state._memory.place_of(bucket.index(), tensor)
    # Gradients that lie in results need all buckets of a step here.
    lends = state._auto is None or state._auto.all_dcomm
    result = state._gradients.result_of(bucket, tensor) if lends else None
    if state.overlap and place is tensor:
        out = tensor if result is None else result
        work = state._comm.all_reduce(tensor, "avg", out=out, wire_dtype=wire, async_op=True)
        return state._completer.future_of(work, out)
    if place is not tensor:
        place.copy_(tensor)
    out = state._comm.all_reduce(place, "avg", out=place if result is None else result, wire_dtype=wire)
    if place is not tensor and result is None:
        out = tensor.copy_(place)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(out)
    return done


def _average_on_gpu(
    state: HookState, comm: Communicator, tensor: torch.Tensor, wire_dtype: Any
) -> torch.futures.Future[torch.Tensor]:
    """Enqueue it; the returned future is complete, its value in the order of a stream."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in FLOATS:  # on all ranks alike
        state._notice(f"buckets of {name} on a GPU; dcomm reduces those of {', '.join(FLOATS)}")
        return _average_by_group(state._group(), tensor)
    wire = wire_dtype if tensor.dtype == torch.float32 else None
    device = device_streams.gpu_of(tensor)
    assert device is not None
    if not state.overlap:
        comm.all_reduce(tensor, "avg", wire_dtype=wire)
        return device_streams.completed_on(None, device, tensor)
    work = comm.all_reduce(tensor, "avg", wire_dtype=wire, async_op=True)
    work.wait(stream=state._side_stream)
    return device_streams.completed_on(state._side_stream, device, tensor)


def _average_by_group(group: Any, tensor: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """What DDP does without a hook."""
    tensor.div_(group.size())
    work = dist.all_reduce(tensor, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])  # type: ignore[no-any-return]
