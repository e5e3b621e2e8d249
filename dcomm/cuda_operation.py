"""The way of every collective and message whose arrays are in the memory of a GPU: check, find the stream, launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcomm import device_arrays, reduce_ops
from dcomm.arrays import DTYPE_NAMES
from dcomm.cuda_work import CudaWork

if TYPE_CHECKING:
    from dcomm.operation import Endpoint, Operand, Operation

# What has kernels: docs/gpu.md. Moves have them for every dtype.
SUM_OPS = ("sum", "avg")
FLOATS = ("float32", "float16", "bfloat16")
INTEGERS = ("int8", "uint8", "int32", "int64", "bool")  # "avg" is refused by the core, as of CPU arrays
ALGOS = ("auto", "two_shot", "one_shot", "direct", "ring", "tree")
INTEGER_ALGOS = ("auto", "two_shot", "ring")

_ALL_REDUCE, _BROADCAST, _REDUCE_SCATTER, _ALL_GATHER, _REDUCE = 1, 2, 4, 5, 6  # csrc/protocol/control.h
_TO_CPU = "for the others use a CPU array (.cpu())"


def run(endpoint: Endpoint, operation: Operation, async_op: bool, timeout_ns: int, stream: Any) -> Any:
    """Enqueue a checked operation behind its stream and return its result, whose content is there in stream order.

    With `async_op` a :class:`CudaWork`, at once: the stream goes on, and whoever needs the result waits for that.
    Else, where ranks are threads, it returns once all that take part have called; inside :func:`dcomm.group` at once.
    """
    _check_bounds(operation)
    operands = [each for each in (operation.source, operation.target) if each is not None]
    device = _find_device(endpoint, operands, stream)
    handle = _find_stream(operands, stream)
    for each in operands:
        device_arrays.make_ready(each.view, handle)
    source, target = _address(operation.source), _address(operation.target)
    if operation.kind == _BROADCAST:
        target = source
    collected = endpoint._collected
    if async_op:
        endpoint._keeper.sweep()  # first: what is over gives its event back
    work = endpoint._core.collective_cuda(
        operation.kind,
        device,
        source,
        target,
        operation.count,
        operation.dtype,
        operation.dtype if operation.wire < 0 else operation.wire,
        operation.op,
        operation.algo,
        operation.root,
        operation.tag,
        handle,
        timeout_ns,
        collected is not None,
        async_op,
    )
    if collected is not None:
        collected.append(operands)
    if work is None:
        endpoint._keeper.sweep()
        return operation.result
    held = [operation.result, *(each.array for each in operands)]
    endpoint._keeper.keep(work, held)
    current = device_arrays.current_stream(operands[0].array, operands[0].view) if operands else lambda: handle
    return CudaWork(work, endpoint._core, operation.result, held, handle, current)


def _address(operand: Operand | None) -> int:
    return 0 if operand is None else operand.view.address


def _check_bounds(operation: Operation) -> None:
    """Refuse what has no kernel, before other ranks are involved.

    Raises:
        ValueError: It names what was given and what there is.
    """
    if operation.send_lengths is not None:
        raise ValueError(
            "send_counts and recv_counts are for CPU arrays: on CUDA all_to_all has blocks of one length; pad x, or "
            "use a CPU array (.cpu())"
        )
    if operation.kind in (_REDUCE_SCATTER, _ALL_GATHER) and operation.algo != reduce_ops.ALGO_CODES["auto"]:
        name = _name_of(reduce_ops.BLOCK_ALGO_CODES, operation.algo)
        raise ValueError(f"algo={name!r} with a CUDA array: on CUDA there is 'auto'; {_TO_CPU}")
    if operation.kind not in (_ALL_REDUCE, _REDUCE_SCATTER, _REDUCE):
        return
    if operation.op == reduce_ops.PREMUL_SUM_CODE:
        raise ValueError("premul_sum is for CPU arrays: scale the CUDA array first, and use op='sum'")
    dtype = DTYPE_NAMES[operation.dtype]
    if dtype not in FLOATS + INTEGERS:
        known = _list(FLOATS + INTEGERS)
        raise ValueError(f"got a CUDA array of {dtype} to reduce: on CUDA there are {known}; {_TO_CPU}")
    for name, value, there_are in (
        ("op", _name_of(reduce_ops.OP_NAMES, operation.op), SUM_OPS),
        ("algo", _name_of(reduce_ops.ALGO_CODES, operation.algo), ALGOS if dtype in FLOATS else INTEGER_ALGOS),
    ):
        if value not in there_are:
            raise ValueError(
                f"{name}={value!r} with a CUDA array of {dtype}: on CUDA there are {_list(there_are)}; {_TO_CPU}"
            )


def _name_of(codes: dict[str, int], code: int) -> str:
    return next(name for name, value in codes.items() if value == code)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))


def _find_device(endpoint: Endpoint, operands: list[Operand], stream: Any) -> int:
    """The GPU of the arrays; of a barrier, which has none, where the ranks are.

    Raises:
        ValueError: The communicator is bound to another GPU, or a barrier does not know where.
    """
    bound = endpoint._device
    if operands:
        device = operands[0].view.device
        if bound is not None and device != bound:
            raise ValueError(
                f"got an array on cuda:{device}, but this communicator is bound to cuda:{bound}; move the array, or "
                f"make communicators with init_threads(..., device='cuda:{device}')"
            )
        return device
    if bound is not None:
        return bound
    index = getattr(getattr(stream, "device", None), "index", None)  # of a torch stream
    device = index if isinstance(index, int) else endpoint._core.cuda_device
    if device < 0:
        raise ValueError(
            f"barrier(stream={stream!r}) on a communicator that does not know its GPU; make it with "
            "init_threads(..., device=), or call a collective of CUDA arrays first"
        )
    return device


def _find_stream(operands: list[Operand], stream: Any) -> int:
    if not operands:
        return device_arrays.handle_of(stream)
    return device_arrays.stream_handle(operands[0].array, operands[0].view, stream)
