"""Messages between two ranks of a process group: send, recv, and recv from any source.

They have a communicator of their own, so that a receive that waits for its message holds up no collective. A message
never blocks its caller: torch's ``send`` and ``recv`` wait on the handle.
"""

from __future__ import annotations

import torch

from dcomm.torch.group_call import GroupCall
from dcomm.torch.group_identity import GroupIdentity
from dcomm.torch.group_work import GroupWork, ReceiveWork


class GroupMessages(GroupIdentity):
    """What two ranks of the group call."""

    def _message_call(self) -> GroupCall:
        raise NotImplementedError

    def send(self, tensors: list[torch.Tensor], dst: int, tag: int = 0) -> GroupWork:
        """Send a tensor to rank `dst` of the group; it may be written again when the handle is done."""
        call = self._message_call()
        call.message(lambda comm, x, **how: comm.send(x, dst, tag=tag, **how), call.readable(_only(tensors)))
        return call.end_message(tensors, GroupWork)

    def recv(self, tensors: list[torch.Tensor], src: int, tag: int = 0) -> GroupWork:
        """Receive the next message of rank `src` of the group with this tag."""
        call = self._message_call()
        call.message(lambda comm, x, **how: comm.recv(x, src, tag=tag, **how), call.writable(_only(tensors)))
        return call.end_message(tensors, GroupWork)

    def recv_anysource(self, tensors: list[torch.Tensor], tag: int = 0) -> GroupWork:
        """Receive the next message with this tag; the handle's ``source_rank`` says from whom."""
        call = self._message_call()
        call.message(lambda comm, x, **how: comm.recv_any(x, tag=tag, **how), call.writable(_only(tensors)))
        return call.end_message(tensors, ReceiveWork)


def _only(tensors: list[torch.Tensor]) -> torch.Tensor:
    if len(tensors) != 1:
        raise ValueError(f"a message of {len(tensors)} tensors: expected one; send them one after the other")
    return tensors[0]
