"""Averages the gradients of a model over all ranks, in any training loop: no wrapper around the model, no copies.

    forward, backward                hooks: gradient into its view -> bucket complete -> all_reduce (overlap)
    finish()                         what is left; wait
    optimizer.step(), zero_grad()

Floor: torch, on the communicator. The two ways to reduce are reducer.py (as early as possible) and canonical.py (the
same bits on any number of ranks).
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn

import numpy
import torch

from dcomm import arrays
from dcomm.communicator import Communicator
from dcomm.errors import CudaError, DcommError, SharedMemoryError
from dcomm.torch import agreement
from dcomm.torch.bucket_trial import CANDIDATES, BucketTrial
from dcomm.torch.buckets import GradientBuckets, Plan, dtype_code, find_buckets, make_plan
from dcomm.torch.canonical import CanonicalReducer
from dcomm.torch.error_feedback import ErrorFeedback
from dcomm.torch.launching import HostLauncher, Launcher
from dcomm.torch.reducer import Reducer
from dcomm.torch.timeline import Event, Timeline

logger = logging.getLogger("dcomm")

_NO_WAY_BACK = (
    "overlap=True with error_feedback=True, a model on a GPU and ranks that are threads: a bucket that other ranks "
    "have not launched may be taken back, but not what was added to it; leave overlap out, or use processes"
)
_HALVES = ("float16", "bfloat16")


class GradientSynchronizer:
    """Averages gradients over the ranks of a communicator while backward still runs.

    >>> sync = dcomm.torch.GradientSynchronizer(model, comm)    # doctest: +SKIP
    >>> for x, y in batches:                                    # doctest: +SKIP
    ...     loss_of(model(x), y).backward()
    ...     sync.finish()
    ...     optimizer.step()
    ...     optimizer.zero_grad()

    Gradients live in memory that all ranks reach: p.grad is a view of it, and a bucket of neighbouring gradients is
    reduced where it lies. Where some rank cannot make such memory, all of them keep gradients in ordinary memory, which
    is copied through slots, or, of GPUs that reach each other in no way at all, through the host in :meth:`finish`;
    rank 0's logger "dcomm" says so once. All ranks make the same synchronizer and call finish() equally often; their
    backward passes may differ. Until finish() returns, use `comm` for nothing else (``comm.split(0)`` gives another
    one).

    Several backward passes before one finish() add up; inside :meth:`no_sync` nothing is sent meanwhile, which is
    cheaper. A parameter that a rank did not use counts as zero there, and keeps grad None if no rank used it.
    Parameters that are frozen when the synchronizer is made are not touched.

    Not thread-safe. As PyTorch's DistributedDataParallel (Li et al. 2020), without its copies.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        comm: Communicator,
        *,
        wire_dtype: Any = None,
        error_feedback: bool = False,
        bucket_bytes: int | str = "auto",
        average: bool | str = True,
        deterministic: bool = False,
        broadcast: bool = True,
        overlap: bool | None = None,
        grad_scaler: Any = None,
        record_events: bool = False,
    ) -> None:
        """Compare the models, give every rank rank 0's parameters and buffers, and watch the gradients. Collective.

        Args:
            model: On the CPU or on one GPU for each rank, equal on all ranks but for its values; float32, float16,
                bfloat16, float64 or complex parameters, mixed as you like; on a GPU the first three.
            comm: Ranks are processes or threads. It stays yours: close it after the synchronizer.
            wire_dtype: "float16", "bfloat16", "fp8" or "fp8_block128": float32 gradients travel in that type and are
                summed in float32; docs/compression.md says what each one costs and loses.
            error_feedback: True, with a `wire_dtype`: what the wire rounds away of this rank's gradients is kept and
                added to the next step's. Takes 8 bytes for each parameter, and four more passes over the gradients. A
                step whose averaged gradients hold inf or NaN, on any rank, leaves what is kept as it was.
            bucket_bytes: Gradients are collected up to so many bytes before they travel. "auto": of 1, 4, 8, 25 and
                64 MiB what is fastest for this model on this machine, found out in the steps 2 to 26, which differ in
                nothing but time; rank 0's logger "dcomm" says what and why. :meth:`state_dict` remembers it.
            average: True: mean over ranks. False: sum. "microbatches" (deterministic only): sum over all backward
                passes of all ranks, divided once by their number.
            deterministic: True: the gradients' bits depend on the global batch alone, not on the number of ranks,
                bucket sizes or timing. Each backward pass is a microbatch; docs/bucketing.md says which
                numbers of ranks and microbatches agree. Half-precision gradients are summed in float32.
            broadcast: False: every rank keeps its own initial parameters and buffers.
            overlap: True: a bucket is reduced on the communicator's progress thread as soon as it is complete, while
                backward goes on. False: all buckets in finish(), for where ranks have one CPU each nothing could run
                beside backward. None: True where there are two CPUs for each rank. Local: ranks may differ.
                On a GPU buckets are reduced on a stream of their own, for which finish() lets the current stream
                wait; None: True, but with `error_feedback` where ranks are threads. Of these the last one to complete a
                bucket launches it for all. What has to go through the host is never overlapped.
            grad_scaler: With `error_feedback`: the torch.amp.GradScaler by which losses are scaled. What is kept is
                kept in unscaled units, since the scale changes between steps.
            record_events: Keep a :meth:`timeline`.

        Raises:
            ValueError: A bad setting, no parameter to train, a lazy parameter or one on the meta device; or a model on
                another GPU than the communicator's.
            TypeError: Not a model, communicator or GradScaler, or a dtype that dcomm does not move, or sum on a GPU.
            CudaError, SharedMemoryError: No memory for the gradients, not even ordinary one; on every rank.
            MismatchError: The ranks' models or settings differ; on every rank. `comm` stays usable.
            DcommError: See :mod:`dcomm.errors`.
        """
        self._hooks: list[Any] = []
        _check_settings(model, comm, wire_dtype, bucket_bytes, average, deterministic)
        wire_name = arrays.wire_name(wire_dtype)
        _check_feedback(error_feedback, wire_name, grad_scaler)
        self._settings = {
            "wire_dtype": wire_name,
            "error_feedback": error_feedback,
            "bucket_bytes": bucket_bytes,
            "average": average,
            "deterministic": deterministic,
        }
        shared = ", ".join(f"{name}={value}" for name, value in self._settings.items())
        agreement.check_equal(comm, [f"{shared}, broadcast={broadcast}", *agreement.describe_model(model)])
        self._device = agreement.find_device(model)
        if error_feedback and self._device.type != "cpu" and wire_name in arrays.FP8_CODES:
            raise ValueError(
                f"error_feedback=True with wire_dtype={wire_dtype!r} and a model on a GPU: an fp8 wire's rounding is "
                "known on the CPU only; use 'bfloat16' or 'float16', or leave error_feedback out"
            )

        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError("the model has no parameter that requires a gradient: nothing to synchronize")
        self._names = [name for name, _ in trained]
        self._parameters = [parameter for _, parameter in trained]
        self._comm = comm
        self._deterministic = deterministic
        no_way = self._open_gpus()  # between the ranks' GPUs
        # Of this rank alone: the messages are the same.
        self._overlap = _choose_overlap(comm, self._device, error_feedback) if overlap is None else overlap
        if self._overlap and error_feedback and _shares_gpu(comm, self._device):
            raise ValueError(_NO_WAY_BACK)
        self._overlap = self._overlap and not no_way
        self._launcher = _make_launcher(comm, self._device, by_host=bool(no_way))
        # What "auto" chooses from is made of the smallest ones.
        self._plan_bytes = CANDIDATES[0] if isinstance(bucket_bytes, str) else bucket_bytes
        self._bucket_bytes = None if isinstance(bucket_bytes, str) else bucket_bytes
        self._trial: BucketTrial | None = None
        self._timeline = Timeline() if record_events else None
        self._dtypes = [dtype_code(name, self._sum_dtype(p)) for name, p in trained]
        if broadcast:
            agreement.broadcast_tensors(comm, [*model.parameters(), *model.buffers()], by_host=bool(no_way))

        # Gradients become ready from the last layer to the first; after one step rank 0 knows exactly.
        plan = self._plan(list(reversed(range(len(trained)))))
        self._buckets = self._make_buckets(plan, no_way)
        self._feedback: ErrorFeedback | None = None
        if error_feedback:
            assert wire_name is not None
            scale = (lambda: 1.0) if grad_scaler is None else grad_scaler.get_scale
            self._feedback = ErrorFeedback(self._buckets, wire_name, comm.world_size if average else 1, scale)
        self._reducer: Reducer | CanonicalReducer
        if deterministic:
            self._reducer = CanonicalReducer(
                comm, self._launcher, self._parameters, self._buckets, average=average, timeline=self._timeline
            )
        else:
            self._reducer = Reducer(
                comm,
                self._launcher,
                self._names,
                self._parameters,
                self._buckets,
                average=average is True,
                wire_dtype=wire_name,
                feedback=self._feedback,
                overlap=self._overlap,
                timeline=self._timeline,
            )
        self._order_known = deterministic  # there the order changes nothing
        self._pass: int | None = None  # the backward pass that is running, as torch numbers them
        self._syncing = True
        owner = weakref.ref(self)  # a model must not keep its synchronizer, and with it a communicator, alive
        for index, parameter in enumerate(self._parameters):
            register: Callable[[Any], Any] = parameter.register_post_accumulate_grad_hook
            self._hooks.append(register(_hook(owner, index)))

    # ---- The caller's side -------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Complete the step: when it returns, every p.grad is the average over all ranks, the same bits everywhere.

        Collective: all ranks call it, also one that ran no backward. Then clip, unscale, and step the optimizer.

        Raises:
            RuntimeError: The synchronizer is closed.
            DcommError: A rank is lost, late, or did something else; see :mod:`dcomm.errors`.
        """
        self._check_open()
        self._mark("finish")
        self._pass = None
        if self._trial is not None:
            self._trial.begin_finish()
        self._reducer.finish()
        if not self._order_known:
            self._order_known = True
            self._learn_order()
        self._mark("finished")
        if self._bucket_bytes is None:
            self._try_bucket_bytes()
        if self._timeline is not None:
            self._timeline.end_step()

    @contextmanager
    def step(self) -> Iterator[GradientSynchronizer]:
        """``with sync.step(): loss.backward()`` calls finish() at the end, unless the block raises."""
        yield self
        self.finish()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in this block only accumulate; the next one outside it, or finish(), sends the sums."""
        before, self._syncing = self._syncing, False
        try:
            yield
        finally:
            self._syncing = before

    def close(self) -> None:
        """Stop watching the model; what is in flight is waited for. Idempotent. Gradients stay where they are."""
        if self._remove_hooks():
            with suppress(DcommError):  # whoever needed the result has met it
                self._reducer.wait()

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make an equal synchronizer: ``GradientSynchronizer(model, comm, **settings)``."""
        return dict(self._settings)

    @property
    def bucket_bytes(self) -> int | None:
        """Gradients are collected up to so many bytes; None: "auto" is still finding out."""
        return self._bucket_bytes

    def state_dict(self) -> dict[str, Any]:
        """What this rank carries from step to step: to be saved by every rank, between two steps.

        Returns:
            "world_size"; "bucket_bytes", None while "auto" is finding out; "residuals": with error_feedback what this
            rank owes, by parameter name, (shape of the parameter) float32 in unscaled units, else None.
        """
        residuals = None if self._feedback is None else self._feedback.residuals(self._names)
        return {
            "world_size": self._comm.world_size,
            "bucket_bytes": self._bucket_bytes,
            "residuals": residuals,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, between two steps. Every rank loads its own; collective.

        What "auto" found then is taken over; a `bucket_bytes` that was given holds. To go on with another number of
        ranks, set "residuals" to None: nothing is owed then.

        Raises:
            RuntimeError: The synchronizer is closed.
            ValueError: Residuals of another number of ranks, of other parameters, or without error_feedback; a
                `bucket_bytes` that is no number of bytes.
            MismatchError: The ranks' states are not of one training; on every rank.
        """
        self._check_open()
        bucket_bytes, residuals = state.get("bucket_bytes"), state.get("residuals")
        problem = self._problem_of(state)
        text = f"bucket_bytes={bucket_bytes} and {'no' if residuals is None else 'its'} residuals to go on from"
        agreement.check_equal(self._comm, [problem or text])
        if problem:
            raise ValueError(problem)
        if self._feedback is not None:
            self._feedback.restore(self._names, residuals)
        if self._settings["bucket_bytes"] == "auto" and bucket_bytes is not None:
            self._trial = None
            self._bucket_bytes = bucket_bytes
            self._cut(bucket_bytes)

    def _problem_of(self, state: dict[str, Any]) -> str:
        bucket_bytes, residuals = state.get("bucket_bytes"), state.get("residuals")
        if bucket_bytes is not None and not _is_count(bucket_bytes):
            return f"bucket_bytes={bucket_bytes!r}: expected a positive number of bytes, or None"
        if residuals is None:
            return ""
        if self._feedback is None:
            return "the state has residuals: make the synchronizer with error_feedback=True, or set them to None"
        if state.get("world_size") != self._comm.world_size:
            return (
                f"the residuals are of {state.get('world_size')} ranks, here are {self._comm.world_size}, and each has "
                'its own; set "residuals" to None to go on without'
            )
        return self._feedback.problem_of(self._names, residuals)

    @property
    def num_buckets(self) -> int:
        """Messages in a step, when no gradient comes late."""
        return len(self._buckets.buckets)

    @property
    def gradient_bytes(self) -> int:
        """Memory of the gradients on this rank."""
        return self._buckets.nbytes

    @property
    def gradients_are_shared(self) -> bool:
        """True: all ranks reach the gradients and reduce them where they lie. False: there was no such memory."""
        return self._buckets.is_shared

    @property
    def accumulation_bytes(self) -> int:
        """With deterministic=True: most bytes of partial sums at one moment of the last step, the window's included.

        After k microbatches at most ceil(log2(k)) + 1 times the gradients. 0 otherwise: sums are made in the window.
        """
        return self._reducer.accumulation_bytes if isinstance(self._reducer, CanonicalReducer) else 0

    def timeline(self) -> list[Event]:
        """The events of the last complete step; needs record_events=True.

        Raises:
            RuntimeError: Events are not recorded.
        """
        return self._recorder().last

    def mark(self, kind: str, label: str = "") -> None:
        """Add an event of your own to the timeline, "forward" for example."""
        self._recorder().mark(kind, label)

    def __enter__(self) -> GradientSynchronizer:
        """The synchronizer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse: a communicator and hooks cannot be copied or moved to another process."""
        raise TypeError(
            "a GradientSynchronizer cannot be pickled or copied: keep its .settings and make a new one; the model can"
        )

    def __del__(self) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> bool:
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        return bool(hooks)

    # ---- The hooks' side ---------------------------------------------------------------------------------------

    def _on_gradient(self, index: int) -> None:
        number = torch._C._current_graph_task_id()
        if number != self._pass:
            self._begin_pass(number)
        gradient = self._parameters[index].grad
        if gradient is None:  # another hook took it
            return
        if gradient.layout is not torch.strided:
            raise TypeError(
                f"parameter {self._names[index]!r} has a {gradient.layout} gradient: GradientSynchronizer reduces "
                "dense ones; make the layer with sparse=False"
            )
        if self._timeline is not None:
            self._timeline.mark("ready", self._names[index])
        self._reducer.take(index, self._syncing)

    def _begin_pass(self, number: int) -> None:
        self._reducer.begin_pass()
        self._pass = number
        if self._trial is not None:
            self._trial.begin_pass()
        torch.autograd.Variable._execution_engine.queue_callback(self._on_backward_end)

    def _on_backward_end(self) -> None:
        self._mark("backward_end")
        self._pass = None
        self._reducer.end_pass()

    # ---- The plan ----------------------------------------------------------------------------------------------

    def _open_gpus(self) -> str:
        """Collective. Why the ranks' GPUs cannot work together; "" where they can, or none is used."""
        if self._device.type != "cuda":
            return ""
        agreement.check_gpu(self._comm, self._device.index)
        return agreement.open_gpus(self._comm, self._device.index)

    def _make_buckets(self, plan: Plan, no_way: str) -> GradientBuckets:
        """Collective. In the best memory that all ranks have; where it is not the one that was hoped for, say so."""
        if no_way:
            buckets = GradientBuckets(self._comm, self._parameters, plan, self._device, is_shared=False)
            self._notice("gradients on GPUs go through the host after backward", no_way)
            return buckets
        buckets, problem = find_buckets(self._comm, self._parameters, plan, self._device)
        if problem:
            self._notice("gradients are in ordinary memory and are copied through slots", problem)
        return buckets

    def _notice(self, what: str, why: str) -> None:
        if self._comm.rank == 0:
            logger.warning("dcomm: GradientSynchronizer: %s: %s", what, why)

    def _sum_dtype(self, parameter: torch.Tensor) -> torch.dtype:
        is_half = str(parameter.dtype).removeprefix("torch.") in _HALVES
        return torch.float32 if self._deterministic and is_half else parameter.dtype

    def _plan(self, order: list[int]) -> Plan:
        return make_plan(self._parameters, self._dtypes, order, self._plan_bytes)

    def _learn_order(self) -> None:
        """Lay the buckets out anew in the order in which rank 0's gradients came, once. Collective."""
        assert isinstance(self._reducer, Reducer)
        seen = self._reducer.order_seen
        order = numpy.array(seen + sorted(set(range(len(self._parameters))) - set(seen), reverse=True))
        self._comm.broadcast(order, src=0)
        plan = self._plan(order.tolist())
        if plan == self._buckets.plan:
            return
        before = self._buckets
        try:
            after = GradientBuckets(self._comm, self._parameters, plan, self._device, before.is_shared)
        except (CudaError, SharedMemoryError) as error:  # on all ranks: they go on with the order that they have
            logger.debug("dcomm: GradientSynchronizer: the buckets keep their first order: %s", error)
            return
        self._buckets = after
        for parameter, old, new in zip(self._parameters, before.views, self._buckets.views, strict=True):
            if parameter.grad is old:
                new.copy_(old)
                parameter.grad = new
        if not before.is_shared:
            self._launcher.drain()  # torch may give the old memory to another stream at once
        if self._feedback is not None:
            self._feedback.use(self._buckets)
        self._cut(self._bucket_bytes)

    def _cut(self, bucket_bytes: int | None) -> None:
        self._buckets.cut(bucket_bytes or 0)
        self._reducer.use(self._buckets)

    def _try_bucket_bytes(self) -> None:
        """After a step: what the next one tries, or, when all is known, the choice. Collective then."""
        if self._trial is None:
            self._trial = BucketTrial(self._comm, self._buckets, self._overlap, self._launcher.drain)
        else:
            self._trial.end_step()
        if not self._trial.is_over:
            self._cut(self._trial.bucket_bytes)
            return
        self._bucket_bytes, reason = self._trial.verdict()
        level = logging.WARNING if self._trial.num_steps else logging.DEBUG
        if self._comm.rank == 0:
            logger.log(level, 'dcomm: bucket_bytes="auto" is %d MiB: %s', self._bucket_bytes >> 20, reason)
        self._trial = None
        self._cut(self._bucket_bytes)

    def _recorder(self) -> Timeline:
        if self._timeline is None:
            raise RuntimeError("no events are recorded: make the synchronizer with record_events=True")
        return self._timeline

    def _mark(self, kind: str) -> None:
        if self._timeline is not None:
            self._timeline.mark(kind)

    def _check_open(self) -> None:
        if not self._hooks:
            raise RuntimeError("the GradientSynchronizer is closed: make a new one")


def _hook(owner: weakref.ref[GradientSynchronizer], index: int) -> Callable[[torch.Tensor], None]:
    def on_gradient(parameter: torch.Tensor) -> None:
        synchronizer = owner()
        if synchronizer is not None:
            synchronizer._on_gradient(index)

    return on_gradient


def _choose_overlap(comm: Communicator, device: torch.device, error_feedback: bool) -> bool:
    """On a GPU no host thread is needed."""
    if device.type == "cuda":
        return not (error_feedback and _shares_gpu(comm, device))
    return not _shares_cpus(comm)


def _shares_gpu(comm: Communicator, device: torch.device) -> bool:
    """Ranks are threads with one GPU: a bucket may be taken back until the last of them has launched it."""
    return device.type == "cuda" and comm.world_size > 1 and bool(comm._core.is_beside(comm._core))


def _make_launcher(comm: Communicator, device: torch.device, by_host: bool) -> Launcher:
    if device.type == "cpu":
        return HostLauncher(comm)
    from dcomm.torch.cuda_launching import CudaLauncher, StagedLauncher

    return (StagedLauncher if by_host else CudaLauncher)(comm, device)


def _shares_cpus(comm: Communicator) -> bool:
    """True: a progress thread would take a CPU from a rank that computes."""
    return len(os.sched_getaffinity(0)) < 2 * comm.world_size


def _check_settings(
    model: Any, comm: Any, wire_dtype: Any, bucket_bytes: Any, average: Any, deterministic: Any
) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    if not isinstance(comm, Communicator):
        raise TypeError(f"comm is a {type(comm).__name__}: expected a dcomm.Communicator, from dcomm.init()")
    if wire_dtype is not None and arrays.wire_name(wire_dtype) not in (*_HALVES, *arrays.FP8_CODES):
        raise ValueError(f"wire_dtype={wire_dtype!r}: expected None, 'float16', 'bfloat16', 'fp8' or 'fp8_block128'")
    if not _is_count(bucket_bytes) and bucket_bytes != "auto":
        raise ValueError(f"bucket_bytes={bucket_bytes!r}: expected a positive number of bytes, or 'auto'")
    if not isinstance(deterministic, bool):
        raise TypeError(f"deterministic={deterministic!r}: expected True or False")
    if not isinstance(average, bool) and average != "microbatches":
        raise ValueError(f"average={average!r}: expected True, False or 'microbatches'")
    if average == "microbatches" and not deterministic:
        raise ValueError("average='microbatches' needs deterministic=True; else divide each loss by their number")
    if deterministic and wire_dtype is not None:
        raise ValueError(
            f"wire_dtype={wire_dtype!r} with deterministic=True: rounding each rank's part would make the "
            "result depend on the number of ranks; leave one of them out"
        )


def _is_count(bucket_bytes: Any) -> bool:
    return isinstance(bucket_bytes, int) and not isinstance(bucket_bytes, bool) and bucket_bytes > 0


def _check_feedback(error_feedback: Any, wire_name: str | None, grad_scaler: Any) -> None:
    if not isinstance(error_feedback, bool):
        raise TypeError(f"error_feedback={error_feedback!r}: expected True or False")
    if error_feedback and wire_name is None:
        raise ValueError("error_feedback=True without a wire_dtype: nothing is rounded away; give one, or leave it out")
    if grad_scaler is not None and not error_feedback:
        raise ValueError(
            "grad_scaler is for error_feedback=True, which keeps gradients in unscaled units; leave it out"
        )
    if grad_scaler is not None and not callable(getattr(grad_scaler, "get_scale", None)):
        raise TypeError(f"grad_scaler is a {type(grad_scaler).__name__}: expected a torch.amp.GradScaler")
