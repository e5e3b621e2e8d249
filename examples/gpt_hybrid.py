"""Hybrid parallelism: data x tensor x pipeline parallelism over one DeviceMesh, on any backend of torch.distributed.

    gradients over dp   one sum of all gradients laid end to end, after the backward pass
    matrices over tp    gpt_stage.shard_block
    blocks over pp      torch.distributed.pipelining, schedule 1F1B

A step sees the batch that data parallelism over dp ranks sees, so the losses are those of one process which trains on
the dp ranks' batches at once, up to the order of sums: tests/torch/test_train_gpt_hybrid.py says how far.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from gpt_model import GPT
from gpt_recipe import CLIP_NORM, byte_loss, config_of, make_optimizer, set_learning_rate
from gpt_stage import Stage, local_part, shard_block, whole_weights
from text_data import Corpus, train_batch, val_windows
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor
from train_report import Run
from training import Job, Loop, UserError, gather, train_loop


@dataclass(frozen=True)
class Layout:
    """How many ranks each kind of parallelism has, and into how many micro-batches a batch is cut."""

    dp: int
    tp: int
    pp: int
    micro_batches: int

    @property
    def largest_sum(self) -> int:
        """The most ranks that one sum goes over."""
        return max(self.dp, self.tp, self.pp)

    def __str__(self) -> str:
        return f"dp {self.dp} x tp {self.tp} x pp {self.pp}, micro-batches: {self.micro_batches}"


def layout_of(args: argparse.Namespace, world_size: int) -> Layout:
    """What the options ask for; dp is what the others leave where it is not given."""
    tp, pp = args.tp or 1, args.pp or 1
    dp = args.dp or max(1, world_size // (tp * pp))
    if dp * tp * pp != world_size:
        raise UserError(
            f"--dp {dp} x --tp {tp} x --pp {pp} is for {dp * tp * pp} ranks, there are {world_size}: "
            f"start it with torchrun --nproc-per-node {dp * tp * pp}"
        )
    if args.heads % tp:
        raise UserError(f"--tp {tp} does not divide --heads {args.heads}: a head is on one rank")
    if args.layers < pp:
        raise UserError(f"--pp {pp} is more than --layers {args.layers}: a stage has at least one")
    micro_batches = max(args.micro_batches, pp)  # Fewer leave stages idle all the time; 1F1B refuses them.
    if args.batch_size % micro_batches:
        raise UserError(
            f"--batch-size {args.batch_size} is not a multiple of the {micro_batches} micro-batches of --pp"
        )
    return Layout(dp, tp, pp, micro_batches)


class Hybrid:
    """One rank's stage and what it takes to train it. All methods are collective over the world."""

    def __init__(self, args: argparse.Namespace, job: Job, layout: Layout, name: str) -> None:
        # DTensor caches by mesh how operators are split, and meshes of one shape and names are equal. That a second
        # training still finds its own groups is due to torch naming them alike; names of their own do not rely on it.
        names = tuple(f"{name}_{dimension}" for dimension in ("pp", "dp", "tp"))
        mesh = init_device_mesh(job.device.type, (layout.pp, layout.dp, layout.tp), mesh_dim_names=names)
        self.job, self.layout = job, layout
        self.pp, self.dp, self.tp = (mesh.get_group(dimension) for dimension in names)
        self.dp_index = mesh.get_local_rank(names[1])
        stage_index = mesh.get_local_rank(names[0])
        torch.manual_seed(args.seed)  # Every rank draws the whole model and keeps its part: equal on all dp ranks.
        model = GPT(config_of(args))
        self.stage = Stage(model, stage_index, layout.pp)
        if layout.tp > 1:
            for block in self.stage.blocks.values():
                shard_block(block, mesh[names[2]])  # type: ignore[arg-type]
        self.stage.to(job.device)
        self.schedule: Any = None
        if layout.pp > 1:
            part = PipelineStage(self.stage, stage_index, layout.pp, job.device, group=self.pp)
            self.schedule = Schedule1F1B(part, n_microbatches=layout.micro_batches, loss_fn=byte_loss)

    def forward_backward(self, inputs: Tensor, targets: Tensor) -> float:
        """Adds to the gradients those of the mean loss over this dp rank's batch; the loss, 0 before the last stage."""
        if self.schedule is not None:
            return self._run_pipeline(self.schedule.step, inputs, targets)
        total = 0.0
        for part in zip(*(each.chunk(self.layout.micro_batches) for each in (inputs, targets)), strict=True):
            loss = byte_loss(self.stage(part[0]), part[1]) / self.layout.micro_batches
            torch.autograd.backward(loss)
            total += loss.item()
        return total

    def _run_pipeline(self, call: Any, inputs: Tensor, targets: Tensor) -> float:
        losses: list[Tensor] = []
        last = {"target": targets, "losses": losses} if self.stage.is_last else {}
        call(*((inputs,) if self.stage.is_first else ()), **last)
        return torch.stack(losses).mean().item() if losses else 0.0

    @torch.no_grad()
    def combine_gradients(self) -> None:
        """The tied embedding's gradients summed over the stages, then all gradients averaged over dp."""
        if self.layout.pp > 1:
            # Stages between first and last add zeros, which spares each pair of the two a group.
            weight = self.stage.embedding.weight if hasattr(self.stage, "embedding") else None
            shape = (256, self.stage.width)
            total = torch.zeros(shape, device=self.job.device) if weight is None else weight.grad
            dist.all_reduce(total, group=self.pp)
        if self.layout.dp > 1:
            gradients = self._gradients()
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=self.dp)
            flat /= self.layout.dp
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def clip(self, loss: float) -> tuple[float, float]:
        """Scales the gradients to a norm of at most CLIP_NORM; the whole model's norm and the last stage's loss."""
        square = torch.zeros((), dtype=torch.float64, device=self.job.device)
        for name, parameter in self.stage.named_parameters():
            assert parameter.grad is not None
            if name == "embedding.weight" and not self.stage.is_first:
                continue  # The last stage's is the first one's.
            whole = local_part(parameter.grad).double().square().sum()
            # What every tp rank has counts once.
            square += whole if isinstance(parameter, DTensor) else whole / self.layout.tp
        sums = torch.stack([square, square.new_tensor(loss / self.layout.tp)])
        for group, size in ((self.tp, self.layout.tp), (self.pp, self.layout.pp)):
            if size > 1:
                dist.all_reduce(sums, group=group)
        norm = sums[0].sqrt().item()
        for gradient in self._gradients():
            gradient.mul_(min(1.0, CLIP_NORM / (norm + 1e-6)))
        return norm, sums[1].item()

    def _gradients(self) -> list[Tensor]:
        return [local_part(p.grad) for p in self.stage.parameters() if p.grad is not None]

    @torch.no_grad()
    def evaluate(self, windows: Tensor, batch_size: int) -> float:
        """Mean nats per byte over windows (n, T + 1), n a multiple of dp * batch_size; the same on every rank."""
        total, count = 0.0, 0
        for part in torch.split(windows[self.dp_index :: self.layout.dp].to(self.job.device), batch_size):
            inputs, targets = part[:, :-1], part[:, 1:]
            if self.schedule is None:
                total += byte_loss(self.stage(inputs), targets).item()
            else:
                total += self._run_pipeline(self.schedule.eval, inputs, targets)
            count += self.stage.is_last
        sums = gather([total, float(count)], self.job).sum(dim=0)
        return float(sums[0] / sums[1])


def train_hybrid(
    args: argparse.Namespace, job: Job, corpus: Corpus, layout: Layout, name: str
) -> tuple[Run, dict[str, Tensor]]:
    """One training from the seed on the process group's backend `name`; losses and weights, whole on every rank."""
    begun = time.perf_counter()
    hybrid = Hybrid(args, job, layout, name)
    optimizer = make_optimizer(hybrid.stage, args)
    run = Run(name, tokens_per_step=layout.dp * args.batch_size * args.block_size)
    share = layout.dp * args.batch_size
    windows = val_windows(
        corpus.val, num_windows=max(1, args.eval_windows // share) * share, block_size=args.block_size
    )

    def prepare(step: int) -> tuple[Tensor, Tensor]:
        set_learning_rate(optimizer, args, step)
        inputs, targets = train_batch(
            corpus.train,
            seed=args.seed,
            step=step,
            rank=hybrid.dp_index,
            batch_size=args.batch_size,
            block_size=args.block_size,
        )
        return inputs.to(job.device), targets.to(job.device)

    def train_step(step: int, batch: tuple[Tensor, Tensor]) -> float:
        loss = hybrid.forward_backward(*batch)
        hybrid.combine_gradients()
        norm, loss = hybrid.clip(loss)
        optimizer.step()
        optimizer.zero_grad()
        run.grad_norms.append(norm)
        return loss

    def after(done: int, loop: Loop) -> None:
        if done % args.eval_every == 0 or done == args.steps:
            run.val_losses.append((done, hybrid.evaluate(windows, args.batch_size)))
            loop.progress.note(f"step {done}/{args.steps}  validation loss {run.val_losses[-1][1]:.4f}")

    train_loop(run, job, prepare, train_step, num_steps=args.steps, after=after)
    weights = whole_weights(hybrid.stage, layout.tp, hybrid.pp)
    run.seconds = time.perf_counter() - begun
    return run, weights
