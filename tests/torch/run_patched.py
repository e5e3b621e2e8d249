"""Runs examples/train_gpt.py after breaking something on purpose; test_train_gpt.py starts it by torchrun.

run_patched.py no-all-reduce [arguments of train_gpt.py]   torch's all-reduce raises, whoever calls it
run_patched.py wrong-sum     [arguments of train_gpt.py]   dcomm's hook gives averages that are 1% too large
run_patched.py wrong-group   [arguments of train_gpt.py]   sums of the "dcomm" process group are 1% too large
run_patched.py wrong-message [arguments of train_gpt.py]   what the "dcomm" process group sends is 1% too large
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MESSAGE = "torch's all-reduce was called"


def refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(MESSAGE)


def refuse_all_reduce() -> torch.library.Library:
    for name in ("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor"):
        setattr(dist, name, refuse)
    for name in ("allreduce", "allreduce_coalesced", "reduce", "reduce_scatter"):
        for group in (dist.ProcessGroup, dist.ProcessGroupGloo):
            setattr(group, name, refuse)
    # DDP's reducer is C++ and meets no Python name; its calls pass the dispatcher, where these kernels lie.
    library = torch.library.Library("c10d", "IMPL")
    for operator in ("allreduce_", "allreduce_coalesced_"):
        library.impl(operator, refuse, "CPU", allow_override=True)
    return library


def spoil_sum() -> None:
    import dcomm.torch

    right = dcomm.torch.all_reduce_hook

    def wrong(state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are strings.
        return right(state, bucket).then(lambda future: future.value().mul_(1.01))

    dcomm.torch.all_reduce_hook = wrong


def spoil_group(name: str) -> None:
    """What the group's method `name` gets is spoiled, on its way into the method."""
    from dcomm.torch.process_group import ProcessGroup

    right = getattr(ProcessGroup, name)

    def wrong(self: Any, tensors: list[torch.Tensor], *args: Any) -> Any:
        with torch.no_grad():
            for tensor in tensors:
                if tensor.is_floating_point():
                    tensor.mul_(1.01)
        return right(self, tensors, *args)

    setattr(ProcessGroup, name, wrong)


def main() -> None:
    mode = sys.argv.pop(1)
    if mode == "no-all-reduce":
        library = refuse_all_reduce()
        assert library is not None  # Kept until the end: the kernels go when it does.
    elif mode == "wrong-sum":
        spoil_sum()
    elif mode == "wrong-group":
        spoil_group("allreduce")
        spoil_group("allreduce_coalesced")
    elif mode == "wrong-message":
        spoil_group("send")
    else:
        raise SystemExit(f"unknown mode {mode!r}")
    script = EXAMPLES / "train_gpt.py"
    sys.argv[0] = str(script)
    sys.path.insert(0, str(EXAMPLES))  # What Python does for a script that it runs itself.
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
