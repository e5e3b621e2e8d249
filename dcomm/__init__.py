"""dcomm: all-reduce, gradient bucketing and half-precision wires for training on one host.

>>> import numpy as np, dcomm
>>> comm = dcomm.init()                     # torchrun's environment; alone, a single rank
>>> x = np.ones(4, np.float32)
>>> comm.all_reduce(x, op="sum")            # in place; the same bytes on every rank
array([1., 1., 1., 1.], dtype=float32)

The PyTorch side (DDP comm hooks) is in :mod:`dcomm.torch`, imported on request.
"""

import os
import threading

from dcomm import _no_core, call_site, errors

try:
    from dcomm import _core
except ImportError as error:
    _no_core.explain(error)

_core.initialise(
    errors._BY_NAME,
    threading.main_thread().ident,
    call_site.call_site,
    os.environ.get("DCOMM_CALL_SITES") == "1",
)

from dcomm._version import __version__  # noqa: E402  (the core must know its exceptions first)
from dcomm.bootstrap import init, init_threads  # noqa: E402
from dcomm.bucket import Bucket, pack, unpack  # noqa: E402
from dcomm.communicator import Communicator  # noqa: E402
from dcomm.cuda_array import CudaArray  # noqa: E402
from dcomm.errors import (  # noqa: E402
    AbortedError,
    CollectiveTimeoutError,
    ConcurrentUseError,
    CudaError,
    DcommError,
    ForkedProcessError,
    MismatchError,
    PeerLostError,
    SharedMemoryError,
    VersionMismatchError,
)
from dcomm.grouping import group  # noqa: E402
from dcomm.reduce_ops import PremulSum, premul_sum  # noqa: E402
from dcomm.registration import Registration  # noqa: E402
from dcomm.rounding import quantize  # noqa: E402
from dcomm.work import Work  # noqa: E402

__all__ = [
    "AbortedError",
    "Bucket",
    "CollectiveTimeoutError",
    "Communicator",
    "ConcurrentUseError",
    "CudaArray",
    "CudaError",
    "DcommError",
    "ForkedProcessError",
    "MismatchError",
    "PeerLostError",
    "PremulSum",
    "Registration",
    "SharedMemoryError",
    "VersionMismatchError",
    "Work",
    "__version__",
    "group",
    "init",
    "init_threads",
    "pack",
    "premul_sum",
    "quantize",
    "unpack",
]
