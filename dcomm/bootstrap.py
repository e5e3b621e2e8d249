"""How ranks find each other: a store, a launcher's environment, or one process.

Nothing listens on TCP: all ranks of a communicator are on one host and meet at an abstract Unix socket.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dcomm import _core
from dcomm._version import __version__
from dcomm.communicator import Communicator
from dcomm.device_arrays import device_index
from dcomm.errors import DcommError
from dcomm.work import to_seconds

DEFAULT_TIMEOUT_S = 300.0

_init_counters: Counter[str] = Counter()


@dataclass(frozen=True)
class Launch:
    """A rank's place in its job, as a launcher's environment says it."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    job_key: str  # equal on all ranks of one job and on no other job's


def _number(environ: dict[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"{name}={environ[name]!r} in the environment: expected a whole number") from None


def launch_from_environment(environ: dict[str, str] | None = None) -> Launch:
    """Read torchrun's variables, else SLURM's, else Open MPI's, else PMI's; else a single process.

    Raises:
        ValueError: A variable is not a number, or belongs to an incomplete set.
    """
    env = dict(os.environ) if environ is None else environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        parts = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        return Launch(
            "torchrun",
            rank,
            world_size,
            _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank,
            _number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else world_size,
            "/".join(env.get(name, "") for name in parts),
        )
    if "SLURM_PROCID" in env and "SLURM_NTASKS" in env:
        rank, world_size = _number(env, "SLURM_PROCID"), _number(env, "SLURM_NTASKS")
        local_rank = _number(env, "SLURM_LOCALID") if "SLURM_LOCALID" in env else rank
        one_host = env.get("SLURM_NNODES", "1") == "1"
        key = "/".join(env.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return Launch("slurm", rank, world_size, local_rank, world_size if one_host else 0, key)
    for prefix, names in (
        ("openmpi", ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")),
        ("pmi", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")),
    ):
        if names[0] in env and names[1] in env:
            rank, world_size = _number(env, names[0]), _number(env, names[1])
            local_rank = _number(env, names[2]) if names[2] in env else rank
            sizes = [n for n in ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS") if n in env]
            local = _number(env, sizes[0]) if sizes else world_size
            key = env.get("PMIX_NAMESPACE") or env.get("PMI_JOBID") or env.get("OMPI_MCA_ess_base_jobid") or ""
            return Launch(prefix, rank, world_size, local_rank, local, key)
    return Launch("single process", 0, 1, 0, 1, "")


def host_identity() -> str:
    """Equal for two processes that can reach each other's abstract sockets: same boot, same network namespace."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _key_from_store(store: Any, rank: int, world_size: int, prefix: str) -> str:
    """The meeting token that rank 0 made; raises when the ranks are not on one host."""
    if rank == 0:
        store.set(f"{prefix}/token", os.urandom(16).hex())
    store.set(f"{prefix}/host/{rank}", host_identity())
    hosts = [_text(store.get(f"{prefix}/host/{peer}")) for peer in range(world_size)]
    if len(set(hosts)) > 1:
        others = [peer for peer in range(world_size) if hosts[peer] != hosts[rank]]
        raise DcommError(
            f"ranks {', '.join(map(str, others))} are not on rank {rank}'s host (or not in its network namespace): a "
            "communicator spans one host; make one per host, and use torch.distributed between hosts"
        )
    return _text(store.get(f"{prefix}/token"))


def _is_deterministic(deterministic: bool | None) -> bool:
    """The argument, or what DCOMM_DETERMINISTIC says."""
    if deterministic is not None:
        if not isinstance(deterministic, bool):
            raise TypeError(f"deterministic={deterministic!r}: expected True, False, or None for DCOMM_DETERMINISTIC")
        return deterministic
    text = os.environ.get("DCOMM_DETERMINISTIC", "")
    if text not in ("", "0", "1"):
        raise ValueError(f"DCOMM_DETERMINISTIC={text!r}: expected '0' or '1'; unset it for the default")
    return text == "1"


def init(
    *,
    rank: int | None = None,
    world_size: int | None = None,
    store: Any = None,
    group_name: str = "",
    local_rank: int | None = None,
    timeout: float | timedelta | None = None,
    deterministic: bool | None = None,
) -> Communicator:
    """Make this process a rank of a new communicator. Collective: blocks until all ranks have come.

    Args:
        rank: This rank, 0 to world_size - 1; with `world_size`. None: from the launcher's environment, read in the
            order torchrun, SLURM, Open MPI, PMI; none of them: a single process.
        world_size: How many ranks there are.
        store: Anything with ``set(key, value)`` and a blocking ``get(key)``, such as a torch.distributed Store;
            the ranks meet through it. None: at a socket named after uid, MASTER_ADDR, MASTER_PORT, run id,
            restart count, DCOMM_JOB_ID, `group_name` and the number of this call.
        group_name: Tells communicators of one job apart when ranks make them in different orders.
        local_rank: Overrides the launcher's.
        timeout: Seconds (or timedelta) to wait for the other ranks; None: 300 s.
        deterministic: True: only algorithms that sum in canonical order (one_shot, two_shot) are used, and an explicit
            ring or tree is refused. The same on every rank. None: True where DCOMM_DETERMINISTIC is 1.

    Returns:
        The communicator; use it in a ``with`` block, or call ``close()``.

    Raises:
        ValueError: Bad arguments or environment, `deterministic` differs between ranks, or another job holds the
            meeting point.
        CollectiveTimeoutError: Ranks are missing; the message names them.
        VersionMismatchError, SharedMemoryError, DcommError: See :mod:`dcomm.errors`.
    """
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size go together: pass both, or neither for the launcher's environment")
    if rank is None or world_size is None:
        launch = launch_from_environment()
    else:
        env_key = "/".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        launch = Launch("arguments", rank, world_size, rank, world_size, env_key)
    if not (isinstance(launch.rank, int) and isinstance(launch.world_size, int)):
        raise TypeError(f"rank={launch.rank!r}, world_size={launch.world_size!r}: expected whole numbers")
    if not 0 <= launch.rank < launch.world_size:
        raise ValueError(f"rank={launch.rank}, world_size={launch.world_size}: expected 0 <= rank < world_size")
    if launch.local_world_size != launch.world_size:
        raise DcommError(
            f"{launch.launcher} started {launch.world_size} ranks on several hosts: a communicator spans one host; "
            "make one per host with rank=, world_size= and store=, and use torch.distributed between hosts"
        )
    seconds = to_seconds(timeout) or DEFAULT_TIMEOUT_S
    canonical_only = _is_deterministic(deterministic)
    counter = _init_counters[group_name]
    _init_counters[group_name] += 1

    if launch.world_size == 1:
        return Communicator(_core.Communicator.of_threads(1, canonical_only)[0], local_rank=local_rank)
    if store is not None:
        key = _key_from_store(store, launch.rank, launch.world_size, f"dcomm/{group_name}/{counter}")
    else:
        job = os.environ.get("DCOMM_JOB_ID", "")
        key = f"{os.getuid()}/{launch.launcher}/{launch.job_key}/{job}/{group_name}/{counter}"
    core = _core.Communicator.connect(
        rank=launch.rank,
        world_size=launch.world_size,
        meeting_key=key,
        exact=store is not None,
        init_counter=counter,
        config_hash=zlib.crc32(group_name.encode()),
        version=os.environ.get("DCOMM_TEST_VERSION", __version__),
        timeout_s=seconds,
        force_shm=os.environ.get("DCOMM_FORCE_SHM", "") == "1",
        deterministic=canonical_only,
        test_protocol=int(os.environ.get("DCOMM_TEST_PROTOCOL", "0")),
    )
    return Communicator(core, local_rank=launch.local_rank if local_rank is None else local_rank)


def init_threads(world_size: int, *, deterministic: bool | None = None, device: Any = None) -> list[Communicator]:
    """Make `world_size` ranks in this process: one communicator for each thread (index = rank).

    For tests, notebooks and several ranks on one GPU. Each communicator is used by one thread; a collective
    returns when all threads have called it.

    Args:
        world_size: How many ranks to make.
        deterministic: As for :func:`init`.
        device: The GPU whose arrays the ranks will pass: "cuda:0", "cuda" (torch's current one, else the first), its
            number, or a torch.device. Its memory is allocated and its kernels are loaded now; arrays of another GPU are
            refused. CPU arrays are served all the same. None: at the first call with a CUDA array, on its device.

    Raises:
        ValueError: `world_size` is not at least 1, this process sees no such GPU, or a bad environment variable.
        CudaError: No CUDA part, no GPU, or more ranks than it holds at once.
    """
    if not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"world_size={world_size!r}: expected a whole number of at least 1")
    canonical_only = _is_deterministic(deterministic)
    index = None
    if device is not None:
        index = device_index(device)
        num_devices = _core.cuda_device_count()
        if index >= num_devices:
            raise ValueError(
                f"device={device!r}: this process sees {num_devices} GPUs; expected cuda:0 or one of these"
            )
    comms = [Communicator(core, device=index) for core in _core.Communicator.of_threads(world_size, canonical_only)]
    if index is not None:
        try:
            comms[0]._core.open_cuda(index)
        except BaseException:
            for comm in comms:
                comm.close()
            raise
    return comms
