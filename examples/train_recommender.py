"""Trains a recommender (DLRM, arXiv 1906.00091): embedding tables sharded over the ranks, dense layers data parallel.

    torchrun --standalone --nproc-per-node 2 examples/train_recommender.py              # MovieLens, 100,004 ratings
    torchrun --standalone --nproc-per-node 2 examples/train_recommender.py --compare    # on gloo, then on dcomm
    torchrun ... examples/train_recommender.py --data ratings.csv                       # format: ratings_data.py

Every row of every table lies on one rank alone. Each step a rank asks the others for the rows that its batch names,
a different number from each: counts, then row numbers, then rows travel by all-to-all. Backward sends the rows'
gradients the same way back, and each rank updates the rows it has; no table is ever reduced. The dense layers are
copies, averaged by DDP. The measure is the AUC of "liked" (rating >= 4) on the held-out tenth, and the run fails
unless it beats that of the item's mean rating.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from ratings_data import Ratings, load_ratings
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from train_report import Run, compare, save_loss_curve, say
from train_results import Measure, save_results
from training import (
    Job,
    RankZeroParser,
    UserError,
    add_common_options,
    at_least,
    backends_of,
    import_dcomm_torch,
    part_of_epoch,
    process_group,
    run_main,
    train_loop,
)

TORCHRUN = "torchrun --standalone --nproc-per-node 2 examples/train_recommender.py"


def parse_args() -> argparse.Namespace:
    parser = RankZeroParser(
        description="Train a recommender: sharded embedding tables, data-parallel dense layers.",
        epilog=f"Start it with: {TORCHRUN}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="CSV", help="columns user,item,rating and others; MovieLens if not given")
    add("--compare", action="store_true", help="train on gloo first, then on dcomm, and compare")
    add("--width", type=at_least(1), default=16, help="numbers per embedding row")
    add("--table-lr", type=float, default=0.05, help="learning rate of the tables (Adagrad)")
    add_common_options(parser, steps=400, batch_size=512, lr=1e-3, out="runs/train_recommender")
    parser.set_defaults(device="cpu")  # Unequal all-to-all of CUDA tensors was not run.
    args = parser.parse_args()
    args.backend = ", then ".join(backends_of(args))  # For the first line.
    return args


class ShardedTables(nn.Module):
    """All tables one below the other; row r lies on rank r % world_size, at place r // world_size there."""

    def __init__(self, table_rows: list[int], width: int, job: Job, seed: int) -> None:
        super().__init__()
        self.world_size = job.world_size
        self.first_rows: Tensor
        self.register_buffer("first_rows", torch.tensor([0, *table_rows[:-1]]).cumsum(0))
        # Drawn in full on every rank: the same rows, however many ranks share them.
        rows = torch.randn(sum(table_rows), width, generator=torch.Generator().manual_seed(seed)) * width**-0.5
        mine = rows[job.rank :: job.world_size].clone()
        self.local = nn.Embedding.from_pretrained(mine, freeze=False, sparse=True)
        # What arrives for a row is summed over the ranks; the loss is their mean, as DDP has it for dense layers.
        self.local.weight.register_hook(lambda gradient: gradient / self.world_size)

    def forward(self, categories: Tensor) -> Tensor:
        """(batch, num_features) -> (batch, num_features, width). Collective, and its backward pass is."""
        rows, places = (categories + self.first_rows).unique(return_inverse=True)  # Each is asked for once.
        by_owner = (rows % self.world_size).argsort(stable=True)
        num_wanted = (rows % self.world_size).bincount(minlength=self.world_size)
        num_asked = torch.empty_like(num_wanted)
        dist.all_to_all_single(num_asked, num_wanted)
        wanted, asked = num_wanted.tolist(), num_asked.tolist()

        requests = rows.new_empty(sum(asked))
        dist.all_to_all_single(requests, rows[by_owner], asked, wanted)
        answers = self.local(requests // self.world_size)
        received = all_to_all_single_autograd(answers, wanted, asked, dist.group.WORLD)  # type: ignore[arg-type]
        return received[by_owner.argsort()[places]]


class DenseLayers(nn.Module):
    """DLRM's dense part: features through an MLP, dot products of all pairs of vectors, another MLP."""

    def __init__(self, num_features: int, num_dense: int, width: int) -> None:
        super().__init__()
        num_vectors = num_features + 1
        self.below = nn.Sequential(nn.Linear(num_dense, 32), nn.ReLU(), nn.Linear(32, width))
        num_inputs = num_vectors * width + num_vectors * (num_vectors - 1) // 2
        self.above = nn.Sequential(nn.Linear(num_inputs, 64), nn.ReLU(), nn.Linear(64, 1))
        self.pairs: Tensor
        self.register_buffer("pairs", torch.triu_indices(num_vectors, num_vectors, offset=1))

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """(batch, num_features, width), (batch, num_dense) -> (batch,) logits of "liked"."""
        vectors = torch.cat([self.below(dense)[:, None], embedded], dim=1)
        products = (vectors @ vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        logits: Tensor = self.above(torch.cat([vectors.flatten(1), products], dim=1)).squeeze(1)
        return logits


def auc(scores: Tensor, liked: Tensor) -> float:
    """Probability that a liked rating scores above another one, ties counted half (Mann-Whitney U)."""
    _, places, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0).double() - (counts - 1) / 2)[places]  # From 1; equal scores share their mean.
    num_liked = liked.sum().double()
    num_others = len(liked) - num_liked
    return float((ranks[liked > 0].sum() - num_liked * (num_liked + 1) / 2) / (num_liked * num_others))


@torch.no_grad()
def score_held_out(tables: ShardedTables, dense: nn.Module, ratings: Ratings, job: Job) -> Tensor:
    """Logits of all held-out ratings, the same on every rank: each computes its part, the sum puts them together."""
    held_out = slice(ratings.num_train, None)
    scores = torch.zeros(len(ratings.liked) - ratings.num_train)
    mine = slice(job.rank, None, job.world_size)
    embedded = tables(ratings.categories[held_out][mine].to(job.device))
    scores[mine] = dense(embedded, ratings.dense[held_out][mine].to(job.device)).cpu()
    summed = scores.to(job.device)
    dist.all_reduce(summed)
    return summed.cpu()


def batch(ratings: Ratings, step: int, args: argparse.Namespace, job: Job) -> tuple[Tensor, ...]:
    """This rank's ratings of one step."""
    mine = part_of_epoch(ratings.num_train, step, args, job)
    return tuple(part[mine].to(job.device) for part in (ratings.categories, ratings.dense, ratings.liked))


def train(args: argparse.Namespace, job: Job, ratings: Ratings, backend: str) -> tuple[Run, float]:
    """One training from the seed; every rank gets the same losses and held-out AUC."""
    begun = time.perf_counter()
    torch.manual_seed(args.seed)  # The same dense layers on all ranks, and in both trainings.
    dense = DenseLayers(len(ratings.table_rows), ratings.dense.shape[1], args.width).to(job.device)
    tables = ShardedTables(ratings.table_rows, args.width, job, args.seed).to(job.device)
    run = Run(backend, tokens_per_step=job.world_size * args.batch_size, unit="ratings")
    with process_group(job, backend, timeout_s=args.timeout):
        ddp = DistributedDataParallel(dense, gradient_as_bucket_view=True)
        adam = torch.optim.AdamW(dense.parameters(), lr=args.lr)
        adagrad = torch.optim.Adagrad(tables.parameters(), lr=args.table_lr)  # Touches the rows of this step alone.

        def step(_: int, part: tuple[Tensor, ...]) -> float:
            categories, numbers, liked = part
            adam.zero_grad()
            adagrad.zero_grad()
            loss = F.binary_cross_entropy_with_logits(ddp(tables(categories), numbers), liked)
            loss.backward()
            run.grad_norms.append(float(nn.utils.clip_grad_norm_(dense.parameters(), 1.0)))
            adam.step()
            adagrad.step()
            return loss.item()

        train_loop(run, job, lambda index: batch(ratings, index, args, job), step, num_steps=args.steps)
        scores = score_held_out(tables, dense, ratings, job)
    liked = ratings.liked[ratings.num_train :]
    run.val_losses.append((args.steps, float(F.binary_cross_entropy_with_logits(scores, liked))))
    run.seconds = time.perf_counter() - begun
    return run, auc(scores, liked)


def execute(args: argparse.Namespace, job: Job) -> int:
    import_dcomm_torch("train_recommender.py")  # Known before anything is trained.
    torch.sparse.check_sparse_tensor_invariants.disable()  # Said once, or torch warns in every Adagrad.
    ratings = load_ratings(args.data, args.seed)
    needed = args.batch_size * job.world_size
    if ratings.num_train < needed:
        raise UserError(
            f"{ratings.name}: {ratings.num_train} ratings to train on are too few; a step of {job.world_size} ranks "
            f"takes {needed}: give more ratings (--data) or a smaller --batch-size"
        )
    if job.is_first:
        sizes = ", ".join(f"{name} {rows:,}" for name, rows in zip(ratings.features, ratings.table_rows, strict=True))
        say(f"ratings: {ratings.name}, {ratings.num_train:,} to train on; rows of the sharded tables: {sizes}")
    baseline = auc(ratings.item_mean(), ratings.liked[ratings.num_train :])
    results = [train(args, job, ratings, backend) for backend in backends_of(args)]
    runs = [run for run, _ in results]
    # Every rank comes to the verdicts by itself; rank 0 tells.
    agrees, comparison = compare(runs[0], runs[1], job.world_size) if args.compare else (True, "")
    if job.is_first:
        for run, area in results:
            verdict = "better" if area > baseline else "FAILED, not better (train for more --steps)"
            say(f"[{run.name}] held-out AUC {area:.4f}, per-item mean {baseline:.4f}: {verdict}")
        if comparison:
            say(f"\n{comparison}")
        save_loss_curve(runs, None, args.out, ylabel="binary cross-entropy (nats)")
        measure = Measure("held-out AUC", [area for _, area in results], "per-item mean", baseline)
        save_results(args, job, runs, measure, agrees=agrees)
    return 0 if agrees and all(area > baseline for _, area in results) else 1


if __name__ == "__main__":
    run_main(parse_args(), execute)
