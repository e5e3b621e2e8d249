"""PyTorch's own tests of torch.distributed, as the wheel ships them, made to run on any backend.

The tests are ``DistributedTest._DistTestBase`` and ``TestDistBackend`` of
``torch.testing._internal.distributed.distributed_test``. Nothing of them is copied: the module is imported, once for
each world size, because its decorators look at the environment when it is loaded.

Many of these decorators skip a test unless the backend's name is one of torch's own. They are passed like this:

* The module is loaded with ``BACKEND=gloo`` and once more with ``BACKEND=mpi``; what decorators skip for gloo and not
  for MPI (all-to-all of CPU tensors) is taken from the second. Then the ``BACKEND`` of both, and the variable that
  tests read while they run, get the name of the backend under test, and all groups are made by that name.
* The name is added to ``DistTestCases.backend_feature``, where torch lists what a backend can do.
* Tests that want 8 ranks run with 4 or more: no test needs the other four.
* One helper chooses between CPU and GPU by the names that it knows. While it runs, the module's ``BACKEND`` is "gloo";
  it makes no group.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MODULE = "torch.testing._internal.distributed.distributed_test"
FEATURES = ("ddp", "subgroup", "gpu", "cuda", "plugin")
_ENOUGH_RANKS = 4  # for what upstream gives 8: its subgroups are of ranks 1 and 2
_CHOOSES_DEVICE = "_test_accumulate_gradients_no_sync"


def load(backend: str, world_size: int) -> ModuleType:
    """The module of the tests for one world size, its gates opened for `backend`."""
    module = _load_as("gloo", backend, world_size)
    tests, more = (each.DistributedTest._DistTestBase for each in (module, _load_as("mpi", backend, world_size)))
    for name in names(module):
        if _skips(getattr(tests, name)) and not _skips(getattr(more, name)):
            setattr(tests, name, getattr(more, name))
    _on_cpu(module, _CHOOSES_DEVICE)
    return module


def enter(module: Any, world_size: int, deadline_s: float) -> None:
    """Make `module` the one of this process: what tests pickle names it, and they read the environment."""
    sys.modules[MODULE] = module
    os.environ.update(WORLD_SIZE=str(world_size), BACKEND=module.BACKEND)
    common: Any = sys.modules["torch.testing._internal.common_distributed"]
    common.TIMEOUT_DEFAULT = deadline_s
    common.TIMEOUT_OVERRIDE.clear()


def names(module: ModuleType) -> list[str]:
    """All tests, by name."""
    base = module.DistributedTest._DistTestBase
    return sorted(name for name in dir(base) if name.startswith("test_"))


def skipped_at_once(module: ModuleType, name: str) -> str | None:
    """Why a decorator skips the test without starting it; None: it does not."""
    test = getattr(module.DistributedTest._DistTestBase, name)
    return str(test.__unittest_skip_why__) if _skips(test) else None


def _skips(test: Any) -> bool:
    return bool(getattr(test, "__unittest_skip__", False))


def _load_as(name: str, backend: str, world_size: int) -> Any:
    """The module as its decorators leave it for torch's backend `name`; `backend` is what it knows afterwards."""
    os.environ.update(
        BACKEND=name, WORLD_SIZE=str(world_size), INIT_METHOD="file://", PYTORCH_PRINT_REPRO_ON_FAILURE="0"
    )
    common: Any = importlib.import_module("torch.testing._internal.common_distributed")
    for feature in FEATURES:
        common.DistTestCases.backend_feature[feature].add(backend)
    wants_eight = common.skip_if_small_worldsize
    if world_size >= _ENOUGH_RANKS:
        common.skip_if_small_worldsize = lambda test: test
    sys.modules.pop(MODULE, None)
    try:
        module: Any = importlib.import_module(MODULE)
    finally:
        common.skip_if_small_worldsize = wants_eight
    module.BACKEND = backend
    return module


def _on_cpu(module: Any, helper: str) -> None:
    base = module.DistributedTest._DistTestBase
    original: Callable[..., Any] = getattr(base, helper)

    def as_gloo(*args: Any, **kwargs: Any) -> Any:
        real = module.BACKEND
        module.BACKEND = "gloo"
        try:
            return original(*args, **kwargs)
        finally:
            module.BACKEND = real

    setattr(base, helper, as_gloo)
