"""Rank processes of test_backend_traps.py: what goes wrong for process groups in Python, each with its cure removed
on demand (`without`)."""

# No `from __future__ import annotations`: DDP compares the annotations of hooks with the classes themselves.
import contextlib
import gc
import os
import sys
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import dcomm.torch
from dcomm.torch import dynamo, functional_ops
from dcomm.torch.completer import Completer
from dcomm.torch.group_identity import GroupIdentity


def start(rank: int, world_size: int, folder: str, backend: str = "dcomm", seconds: float = 15, **how: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=seconds), **how
    )


def construct(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """1: the constructor of torch's class that takes a store."""
    if without:

        def init(self: Any, number: int, count: int, store: Any, timeout: timedelta) -> None:
            dist.ProcessGroup.__init__(self, store, number, count)

        GroupIdentity.__init__ = init  # type: ignore[method-assign]
    start(rank, world_size, folder)
    return dist.group.WORLD.size()


def names(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """2: the group's name, which functional collectives and DTensor look up."""
    if without:
        del GroupIdentity.group_name, GroupIdentity.getGroupName
    start(rank, world_size, folder)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = torch.arange(8.0)
    return distribute_tensor(whole, init_device_mesh("cpu", (world_size,)), [Shard(0)]).full_tensor().tolist()


def gather_out(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """3: a functional collective that C++ does not bring to Python."""
    if without:
        functional_ops.install = lambda: None
    start(rank, world_size, folder)
    out = torch.zeros(3 * world_size)
    name = dist.group.WORLD.group_name
    op = torch.ops._c10d_functional
    op.all_gather_into_tensor_out(torch.full((3,), float(rank)), world_size, name, out=out)
    return op.wait_tensor(out).tolist()


def compiled(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """4: Dynamo that traces into the group."""
    if without:
        from torch._C._dynamo import eval_frame as frame

        back = frame._FrameExecStrategy(frame._FrameAction.DEFAULT, frame._FrameAction.DEFAULT)
        for owner in dynamo._owners(tuple(dynamo.parts_of("dcomm.torch.process_group"))):
            for _, function in dynamo._functions(owner):
                for code in dynamo._all_code(function.__code__):
                    frame.set_code_exec_strategy(code, back)
    start(rank, world_size, folder)
    from torch.nn.parallel import DistributedDataParallel

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))  # buffers, which forward broadcasts
    step = torch.compile(DistributedDataParallel(model), backend="eager")
    step(torch.ones(3, 4) * rank).sum().backward()
    return bool(torch.isfinite(model[0].weight.grad).all())  # type: ignore[arg-type]


def callbacks(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """5: callbacks that block in further collectives."""
    if without:
        Completer._add_thread = _only_one_thread  # type: ignore[method-assign]
    start(rank, world_size, folder)

    def chain(future: torch.futures.Future[Any]) -> float:
        for late in range(world_size):  # each rank asks once for the future of an operation that is not done yet
            if rank == late:
                time.sleep(0.3)
            more = torch.full((200_000,), 2.0)
            dist.all_reduce(more, async_op=True).get_future().wait()
        return float(more[0] + future.value()[0][0])

    big = [torch.ones(200_000) for _ in range(3)]
    first = dist.all_reduce(big[0], async_op=True)
    assert first is not None
    last = first.get_future().then(chain)
    for completer in _waiting[:1]:
        _add_thread(completer)
    deadline = time.monotonic() + 10
    while not last.done():
        if time.monotonic() > deadline:
            print("timed out", file=sys.stderr, flush=True)
            os._exit(3)  # threads that wait for each other would keep the process
        time.sleep(0.01)
    return last.wait()


def _only_one_thread(self: Any) -> None:
    # Started by callbacks() once the callback is there: on a future that is done it would run in the caller instead.
    if not self._threads:
        _waiting.append(self)


_waiting: list[Completer] = []
_add_thread = Completer._add_thread


def power_sgd(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """6: collectives that callbacks issue, with several buckets: in order with DCOMM_ASYNC=0."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
    from torch.nn.parallel import DistributedDataParallel

    os.environ["DCOMM_ASYNC"] = "1" if without else "0"
    start(rank, world_size, folder)
    torch.manual_seed(3)
    layers = [torch.nn.Linear(64, 64) for _ in range(8)]
    model = DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=0.02)
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    for step in range(6):
        model(torch.ones(4, 64) * (step + rank)).sum().backward()
    return [float(p.grad.double().sum()) for p in model.parameters() if p.grad is not None]


def leave_late(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """7: no destroy_process_group, with work in flight and a thread that completes futures."""
    import atexit

    from rank_main import store_value

    start(rank, world_size, folder)
    work = dist.all_reduce(torch.ones(300_000), async_op=True)
    assert work is not None
    work.get_future().wait()
    if without:
        atexit.unregister(dcomm.torch.process_group._shut_down_all)
        atexit.unregister(dcomm.torch.completer._close_all)
        atexit.unregister(dcomm.communicator._leave_all)
    store_value([thread.name for thread in threading.enumerate()])
    return [thread.name for thread in threading.enumerate()]


def references(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """8: what keeps a group alive after destroy_process_group, and what calls to it do."""
    start(rank, world_size, folder)
    group = dist.new_group(list(range(world_size)))
    tensor = torch.ones(300_000)
    work = dist.all_reduce(tensor, group=group, async_op=True)
    assert work is not None
    work.get_future().wait()
    watched = [weakref.ref(group), weakref.ref(tensor)]
    kept = group if without else None
    dist.destroy_process_group()
    errors = []
    for name, args in (("barrier", ()), ("allreduce", ([torch.ones(2)],))):
        try:
            getattr(group, name)(*args).wait()
        except dcomm.DcommError as error:
            errors.append(str(error))
    del group, tensor, work
    deadline = time.monotonic() + 5
    while any(ref() is not None for ref in watched) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("dcomm")]
    return [ref() is None for ref in watched], errors, names, kept is not None


def mixed(rank: int, world_size: int, folder: str, backend: str) -> Any:
    """10, 11: groups of two backends, and a name for each device."""
    start(rank, world_size, folder, backend)
    x = torch.ones(3)
    dist.all_reduce(x)
    return x.tolist(), dist.get_backend(), type(dist.group.WORLD).__name__


def debug(rank: int, world_size: int, folder: str) -> Any:
    """13: TORCH_DISTRIBUTED_DEBUG=DETAIL."""
    from torch.nn.parallel import DistributedDataParallel

    start(rank, world_size, folder)
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    model(torch.ones(2, 4)).sum().backward()
    return dist.get_debug_level().name, type(dist.group.WORLD).__name__


def timeouts(rank: int, world_size: int, folder: str, without: bool) -> Any:
    """14: options that name no timeout, handles waited for with none, and a peer that does not come."""
    start(rank, world_size, folder, seconds=1.5)
    work = dist.all_reduce(torch.ones(300_000), async_op=True)
    assert work is not None
    work.wait(timedelta(0))
    if without:
        dist.group.WORLD.set_timeout(timedelta(seconds=30))
    begin = time.monotonic()
    error = None
    if rank == 0:
        try:
            dist.all_reduce(torch.ones(2))
        except dcomm.CollectiveTimeoutError as problem:
            error = str(problem)
    else:
        time.sleep(4)
        with contextlib.suppress(dcomm.DcommError):
            dist.all_reduce(torch.ones(2))
    return error, time.monotonic() - begin


def workers(rank: int, world_size: int, folder: str) -> Any:
    """15: forked data-loader workers beside a live group, and no thread from an import alone."""
    before = threading.active_count()
    start(rank, world_size, folder)
    data = torch.utils.data.TensorDataset(torch.arange(64.0))
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="fork")
    total = torch.zeros(1)
    for _ in range(2):
        for (batch,) in loader:
            total += batch.sum()
            work = dist.all_reduce(torch.ones(100_000), async_op=True)
            assert work is not None
            work.get_future().wait()
    dist.all_reduce(total)
    dist.barrier()
    dist.destroy_process_group()
    return before, total.item()
