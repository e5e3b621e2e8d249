"""Four ranks on one GPU work on CuPy arrays; they are threads of this process.

    python examples/02_cupy.py

It needs CuPy, a GPU, and a dcomm that was installed where nvcc is. Ranks that are processes: docs/gpu_processes.md.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import dcomm

try:
    import cupy
except ImportError:
    sys.exit("This example needs CuPy: pip install 'dcomm[cupy]'; examples/01_numpy.py does the same on CPUs.")

WORLD_SIZE = 4


def work(comm: dcomm.Communicator) -> None:
    """What every rank does."""
    with comm, cupy.cuda.Stream(non_blocking=True) as stream:
        gradient = cupy.full(1_000_000, comm.rank + 1.0, cupy.float32)  # 1, 2, 3, 4
        # On CuPy's current stream: the calls return before the GPU is done, and what follows on the stream waits.
        total = comm.all_reduce(gradient, out=cupy.empty_like(gradient))
        comm.all_reduce(gradient, "avg", wire_dtype="fp16")  # in place; rounded once on its way, sums are in float32
        everyone = comm.all_gather(cupy.full(1, comm.rank, cupy.int64))
        stream.synchronize()

        assert (total.get() == 1 + 2 + 3 + 4).all()
        assert (gradient.get() == 2.5).all()
        assert everyone.get().tolist() == [0, 1, 2, 3]
        if comm.rank == 0:
            print(f"{comm.world_size} ranks on {cupy.cuda.Device()}: sum {total[0]}, average {gradient[0]}", flush=True)


if __name__ == "__main__":
    try:
        comms = dcomm.init_threads(WORLD_SIZE, device="cuda")
    except dcomm.CudaError as error:
        sys.exit(f"No GPU for this example: {error}. `dcomm doctor` says more; examples/01_numpy.py needs no GPU.")
    with ThreadPoolExecutor(WORLD_SIZE) as pool:
        list(pool.map(work, comms))
