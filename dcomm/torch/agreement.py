"""What ranks must have in common before they train together: the same model, the same settings, the same start.

Each rank writes one line of text for every parameter and buffer. Ranks compare a hash of these lines; only where the
hashes differ do the texts travel, so that every rank raises the same error with both sides in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import zip_longest

import numpy
import torch

from dcomm.communicator import Communicator
from dcomm.errors import DcommError, MismatchError

_PROBLEM_BYTES = 512  # of what a rank tells the others
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_COMPILED = "_orig_mod."  # what torch.compile puts into the names


def describe_tensor(kind: str, name: str, tensor: torch.Tensor) -> str:
    """One line with everything about a parameter or buffer in which ranks may not differ."""
    shape = "of no shape yet" if torch.nn.parameter.is_lazy(tensor) else str(tuple(tensor.shape))
    text = f"{kind} {name.replace(_COMPILED, '')!r} {shape} {str(tensor.dtype).removeprefix('torch.')}"
    if kind == "parameter" and not tensor.requires_grad:
        text += " frozen"
    if shape[0] == "(" and tensor.layout is torch.strided and not tensor.is_contiguous():
        text += f" strides {tensor.stride()}"
    return f"{text} on {tensor.device.type}"


def describe_model(model: torch.nn.Module) -> list[str]:
    """A line for each parameter and buffer, in registration order."""
    lines = [describe_tensor("parameter", name, parameter) for name, parameter in model.named_parameters()]
    return lines + [describe_tensor("buffer", name, buffer) for name, buffer in model.named_buffers()]


def check_equal(comm: Communicator, lines: list[str]) -> None:
    """Collective. Raise on every rank when the ranks' lines differ; the communicator stays usable.

    Raises:
        MismatchError: They differ; the text names the first line that does, on rank 0 and on the first other rank.
    """
    text = "\n".join(lines).encode()
    header = numpy.frombuffer(len(text).to_bytes(8, "little") + hashlib.sha256(text).digest(), numpy.uint8)
    headers = comm.all_gather(header).reshape(comm.world_size, header.size)
    differing = [rank for rank in range(comm.world_size) if (headers[rank] != headers[0]).any()]
    if not differing:
        return
    texts = []
    for rank in (0, differing[0]):
        received = numpy.zeros(int.from_bytes(headers[rank][:8].tobytes(), "little"), numpy.uint8)
        if comm.rank == rank:
            received[:] = numpy.frombuffer(text, numpy.uint8)
        texts.append(comm.broadcast(received, src=rank).tobytes().decode().split("\n"))
    for mine, theirs in zip_longest(*texts, fillvalue="nothing more"):
        if mine != theirs:
            raise MismatchError(
                f"GradientSynchronizer: the ranks do not agree: rank 0 has {mine}; rank {differing[0]} has {theirs}; "
                "build the same model with the same settings on every rank"
            )


def share_problem(comm: Communicator, own: str) -> str:
    """Collective: what went wrong, on any rank.

    Args:
        comm: Of the ranks.
        own: On this rank; "" where all went well.

    Returns:
        "" where all went well on all ranks; else why not, the same text on all of them, whichever has failed.
    """
    line = numpy.zeros(_PROBLEM_BYTES, numpy.uint8)
    encoded = numpy.frombuffer(own.encode()[:_PROBLEM_BYTES], numpy.uint8)
    line[: encoded.size] = encoded
    problems: dict[str, int] = {}
    for rank, row in enumerate(comm.all_gather(line).reshape(comm.world_size, -1)):
        text = row.tobytes().rstrip(b"\0").decode(errors="replace")
        if text:
            problems.setdefault(text, rank)
    return "; ".join(f"rank {rank}: {text}" for text, rank in problems.items())


def check_gpu(comm: Communicator, device: int) -> None:
    """Collective.

    Raises:
        ValueError: A rank's communicator uses another GPU than its `device`; on all ranks.
    """
    bound = comm._core.cuda_device
    own = "" if bound in (-1, device) else f"the model is on cuda:{device}, but comm is bound to cuda:{bound}"
    problem = share_problem(comm, own)
    if problem:
        raise ValueError(f"{problem}; move the model, or make another communicator for its GPU")


def open_gpus(comm: Communicator, device: int) -> str:
    """Collective: let a communicator serve arrays on this rank's GPU.

    Returns:
        As :func:`share_problem`.
    """
    own = ""
    try:
        comm._core.open_cuda(device)
    except (DcommError, ValueError) as error:  # ValueError: DCOMM_CUDA_* of one rank
        own = str(error) or type(error).__name__
    return share_problem(comm, own)


def find_device(model: torch.nn.Module) -> torch.device:
    """Where the model is: on the CPU or on one GPU.

    Raises:
        ValueError: On the meta device, a lazy parameter, or on several devices.
        TypeError: On another kind of device, or a parameter on a GPU that is of a dtype without sums there.
    """
    found: dict[torch.device, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name!r} is a lazy parameter without a shape: run one forward pass first")
        if tensor.device.type == "meta":
            raise ValueError(f"{name!r} is on the meta device, without memory: call model.to_empty(device='cpu') first")
        if tensor.device.type not in ("cpu", "cuda"):
            raise TypeError(f"{name!r} is on {tensor.device}: expected the cpu or a GPU; move the model with .cpu()")
        if tensor.is_cuda and tensor.requires_grad and tensor.dtype not in _GPU_DTYPES:
            raise TypeError(
                f"{name!r} is {tensor.dtype} on {tensor.device}: on a GPU gradients of float32, float16 and bfloat16 "
                "are summed; convert the parameter, or move the model with .cpu()"
            )
        found.setdefault(tensor.device, name)
    if len(found) > 1:
        places = ", ".join(f"{name!r} on {device}" for device, name in found.items())
        raise ValueError(f"the model is on several devices ({places}): expected one; GradientSynchronizer needs one")
    return next(iter(found), torch.device("cpu"))


def broadcast_tensors(comm: Communicator, tensors: Iterable[torch.Tensor], by_host: bool = False) -> None:
    """Collective. Every rank gets rank 0's values, whatever the dtype: bytes travel.

    Args:
        comm: Of the ranks.
        tensors: Equal on all ranks but for their values.
        by_host: Those on a GPU travel as copies on the host.
    """
    for tensor in tensors:
        plain = tensor.detach()
        if plain.numel() == 0:
            continue
        flat = (plain.cpu() if by_host else plain).contiguous().reshape(-1)
        comm.broadcast(flat.view(torch.uint8), src=0)
        if comm.rank != 0 and flat.data_ptr() != plain.data_ptr():
            plain.copy_(flat.view(plain.shape))
