"""dcomm in a PyTorch training loop.

>>> import dcomm.torch
>>> ddp.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.all_reduce_hook)   # doctest: +SKIP

Importing this module imports torch; the core of dcomm links none of it, so one build serves every torch >= 2.11.
"""

from dcomm.torch.hooks import HookState, all_reduce_hook, bf16_hook, fp16_hook

__all__ = ["HookState", "all_reduce_hook", "bf16_hook", "fp16_hook"]
