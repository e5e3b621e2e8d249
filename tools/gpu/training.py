"""One rank's training of the GPT on the GPU, for the parts that time its steps or compare its weights."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import torch

import dcomm.torch
from gpu.report import CHECKOUT

sys.path.append(str(CHECKOUT / "examples"))
from gpt_model import GPT, GPTConfig

CONFIG = GPTConfig(num_layers=8, num_heads=8, width=512, block_size=256)
BATCH = 16  # sequences, of all ranks together


class Training:
    """One rank's model, data and optimizer; `syncs`: with communication."""

    def __init__(
        self,
        comm: Any,
        *,
        syncs: bool,
        deterministic: bool = False,
        microbatches: int = 1,
        overlap: bool | None = None,
    ) -> None:
        torch.manual_seed(5)
        self.model = GPT(CONFIG).cuda()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, foreach=False)
        average: Any = "microbatches" if deterministic else True
        self.sync = (
            dcomm.torch.GradientSynchronizer(
                self.model, comm, deterministic=deterministic, average=average, overlap=overlap
            )
            if syncs
            else None
        )
        generator = torch.Generator().manual_seed(7)
        shape = (BATCH, CONFIG.block_size + 1)
        data = torch.randint(0, 256, shape, generator=generator).chunk(comm.world_size)[comm.rank].cuda()
        self.parts = data.chunk(microbatches // comm.world_size or 1)

    def step(self) -> None:
        for part in self.parts:
            logits = self.model(part[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten()).backward()
        if self.sync is not None:
            self.sync.finish()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def digest(self) -> str:
        """Of all weights, bit for bit."""
        torch.cuda.synchronize()
        found = hashlib.sha256()
        for parameter in self.model.parameters():
            found.update(parameter.detach().cpu().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()
