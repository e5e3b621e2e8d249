"""Four ranks work on NumPy arrays: first as threads of this process, then as processes of their own.

    python examples/01_numpy.py

Under a launcher that starts the ranks (torchrun, srun, mpirun), `dcomm.init()` alone is enough.
"""

import os
import secrets
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np

import dcomm

WORLD_SIZE = 4


def work(comm: dcomm.Communicator) -> None:
    """What every rank does."""
    gradient = np.full(1_000_000, comm.rank + 1.0, np.float32)  # 1, 2, 3, 4
    total = comm.all_reduce(gradient, out=np.empty_like(gradient))
    assert (total == 1 + 2 + 3 + 4).all()

    comm.all_reduce(gradient, "avg", wire_dtype="fp16")  # in place; half the bytes travel, sums are in float32
    assert (gradient == 2.5).all()

    everyone = comm.all_gather(np.array([comm.rank], np.int64))
    assert everyone.tolist() == [0, 1, 2, 3]

    weights = np.arange(10.0) if comm.rank == 0 else np.zeros(10)
    comm.broadcast(weights, src=0)
    assert weights.sum() == 45
    if comm.rank == 0:
        print(f"  {comm.world_size} ranks: sum {total[0]}, average {gradient[0]}, gathered {everyone}", flush=True)


def run_thread(comm: dcomm.Communicator) -> None:
    with comm:  # a rank that leaves early is reported to the others
        work(comm)


def run_process(rank: int) -> None:
    with dcomm.init(rank=rank, world_size=WORLD_SIZE) as comm:
        work(comm)


if __name__ == "__main__":
    print("threads of one process")
    with ThreadPoolExecutor(WORLD_SIZE) as threads:
        list(threads.map(run_thread, dcomm.init_threads(WORLD_SIZE)))

    print("processes")
    os.environ["DCOMM_JOB_ID"] = secrets.token_hex(8)  # so that two jobs at the same time do not meet
    with ProcessPoolExecutor(WORLD_SIZE, get_context("spawn")) as processes:
        list(processes.map(run_process, range(WORLD_SIZE)))
