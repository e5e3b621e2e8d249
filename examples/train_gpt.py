"""Trains a byte-level GPT: data parallel by DDP, its gradients averaged by torch or by dcomm, or hybrid parallel.

    torchrun --standalone --nproc-per-node 2 examples/train_gpt.py             # dcomm's hook
    torchrun --standalone --nproc-per-node 2 examples/train_gpt.py --compare   # torch's own, then dcomm's
    torchrun ... examples/train_gpt.py --hook synchronizer                     # dcomm without DDP
    torchrun ... examples/train_gpt.py --micro-batches 4 --compare --against synchronizer --hook deterministic
    torchrun --standalone --nproc-per-node 4 examples/train_gpt.py --dp 2 --tp 2 --compare   # gloo, then dcomm

With --dp, --tp or --pp everything runs on the process group "dcomm" (--backend), and the ranks are divided among data,
tensor and pipeline parallelism: gpt_hybrid.py.

The text is the source of Python's standard library (--data takes any file or folder). The measure is the loss
on held-out files, next to that of a bigram model which sees the same text. --compare trains twice from one
seed, prints losses and times side by side and fails if the losses differ by more than the bound it states.
One seed gives the same losses each time; what a step sees depends on the seed, the step and the rank alone.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpt_checkpoint import resume, save_checkpoint, settings
from gpt_hybrid import layout_of, train_hybrid
from gpt_model import GPT
from gpt_recipe import (
    CLIP_NORM,
    add_recipe_options,
    byte_loss,
    config_of,
    make_optimizer,
    set_learning_rate,
)
from gradient_exchange import HOOKS, SYNCHRONIZERS, find_dcomm, make_exchange, print_diff
from text_data import Corpus, DataError, bigram_loss, load_corpus, train_batch, val_windows
from torch import Tensor
from train_report import Run, compare, save_loss_curve, say
from train_results import Measure, save_results
from training import (
    Job,
    Loop,
    RankZeroParser,
    UserError,
    add_common_options,
    at_least,
    clock,
    gather,
    process_group,
    run_main,
    train_loop,
)

TORCHRUN = "torchrun --standalone --nproc-per-node 2 examples/train_gpt.py"
EVAL_BATCH = 16


def parse_args() -> argparse.Namespace:
    parser = RankZeroParser(
        description="Train a byte-level GPT with DDP over torch's or dcomm's gradient all-reduce, or hybrid parallel.",
        epilog=f"Start it with: {TORCHRUN}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    names = [*HOOKS, *SYNCHRONIZERS]
    add("--hook", choices=names, help="who averages the gradients, and in which wire dtype; dcomm, if not given")
    add(
        "--compare",
        action="store_true",
        help="train with --against, then with --hook (hybrid: gloo, then --backend), and compare",
    )
    add("--against", choices=names, help="what --compare compares with; default (torch's own), if not given")
    add_common_options(parser, steps=300, batch_size=4, lr=2e-3, out="runs/train_gpt")
    add_recipe_options(parser)
    hybrid = parser.add_argument_group(
        "hybrid parallelism", "any of these turns it on; dp x tp x pp is the number of ranks"
    )
    hybrid.add_argument("--dp", type=at_least(1), help="data parallel ranks; what the others leave, if not given")
    hybrid.add_argument("--tp", type=at_least(1), help="tensor parallel ranks, which share each layer")
    hybrid.add_argument("--pp", type=at_least(1), help="pipeline stages, which have some layers each")
    hybrid.add_argument(
        "--backend", choices=("dcomm", "gloo", "nccl"), help="of the process group; dcomm, if not given"
    )
    add("--probe-every", type=at_least(1), default=20, help="steps between timings without gradient exchange")
    add("--sample-bytes", type=at_least(0), default=240, help="length of the generated text at the end")
    add("--checkpoint", type=Path, metavar="PATH", help="write model, optimizer and losses here")
    add("--checkpoint-every", type=at_least(1), metavar="N", help="also every N steps, not only at the end")
    add("--resume", type=Path, metavar="PATH", help="continue from this checkpoint")
    add("--stop-at", type=at_least(1), metavar="N", help="end after N steps, as if interrupted")
    args = parser.parse_args()
    if args.width % (2 * args.heads):
        parser.error(f"--width {args.width} is not a multiple of twice --heads {args.heads}")
    if args.compare and (args.checkpoint or args.resume):
        parser.error("--compare trains twice from the start: it goes with neither --checkpoint nor --resume")
    if args.checkpoint_every and not args.checkpoint:
        parser.error("--checkpoint-every needs --checkpoint PATH")
    if is_hybrid(args):
        unfit = ("hook", "against", "checkpoint", "checkpoint_every", "resume", "stop_at")
        given = [name for name in unfit if getattr(args, name) is not None]
        if given:
            parser.error(
                f"--{given[0].replace('_', '-')} is for data parallelism by DDP: not with --dp --tp --pp --backend"
            )
        args.backend = args.backend or "dcomm"
    args.hook, args.against = args.hook or "dcomm", args.against or "default"
    if args.batch_size % args.micro_batches:
        parser.error(f"--batch-size {args.batch_size} is not a multiple of --micro-batches {args.micro_batches}")
    if args.compare and args.hook == args.against:
        args.hook = "dcomm" if args.against == "default" else "default"  # Against itself it has nothing to show.
    return args


@torch.no_grad()
def evaluate(model: GPT, windows: Tensor, job: Job) -> float:
    """Mean nats per byte over all windows, each rank taking its share; the same number on every rank."""
    total, count = 0.0, 0
    for part in torch.split(windows[job.rank :: job.world_size], EVAL_BATCH):
        if len(part):  # A rank beyond the number of windows has none.
            part = part.to(job.device)
            total += float(byte_loss(model(part[:, :-1]), part[:, 1:])) * len(part)
            count += len(part)
    sums = gather([total, float(count)], job).sum(dim=0)
    return float(sums[0] / sums[1])


def is_hybrid(args: argparse.Namespace) -> bool:
    return any(getattr(args, name) is not None for name in ("dp", "tp", "pp", "backend"))


def train(
    args: argparse.Namespace, job: Job, corpus: Corpus, hook_name: str, resumed: dict[str, Any] | None
) -> tuple[Run, GPT]:
    """One training from the seed (or from a checkpoint); every rank gets the same losses and model."""
    begun = time.perf_counter()
    config = config_of(args)
    torch.manual_seed(args.seed)
    model = GPT(config).to(job.device)
    exchange = make_exchange(model, job, hook_name)
    optimizer = make_optimizer(model, args)
    run = Run(hook_name, tokens_per_step=job.world_size * args.batch_size * args.block_size)
    first_step = 0
    if resumed is not None:
        model.load_state_dict(resumed["model"])
        optimizer.load_state_dict(resumed["optimizer"])
        first_step, run.losses, run.val_losses = resumed["step"], resumed["losses"], resumed["val_losses"]
    last_step = min(args.steps, args.stop_at or args.steps)
    windows = val_windows(corpus.val, num_windows=args.eval_windows, block_size=args.block_size)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        pair = train_batch(
            corpus.train,
            seed=args.seed,
            step=step,
            rank=job.rank,
            batch_size=args.batch_size,
            block_size=args.block_size,
        )
        return pair[0].to(job.device), pair[1].to(job.device)

    def backward(inputs: Tensor, targets: Tensor, *, synced: bool) -> tuple[float, float]:
        """Returns this rank's loss and the milliseconds of forward and backward."""
        total = 0.0
        start = clock(job.device)
        parts = list(zip(inputs.chunk(args.micro_batches), targets.chunk(args.micro_batches), strict=True))
        for number, part in enumerate(parts):
            with nullcontext() if synced and number + 1 == len(parts) else exchange.no_sync():
                loss = byte_loss(exchange.model(part[0]), part[1]) / len(parts)
                torch.autograd.backward(loss)
            total += loss.item()
        if synced:
            exchange.finish()
        elapsed_ms = (clock(job.device) - start) * 1e3
        if not synced:
            exchange.finish()  # Its caller drops the gradients; the synchronizer shall know that they are complete.
        return total, elapsed_ms

    # DDP lays its buckets out anew when a first backward pass is over. That is spent here, so that a resumed
    # run has the same buckets, hence the same order of sums, as an uninterrupted one.
    for synced in (True, False):
        backward(*batch(first_step), synced=synced)
        optimizer.zero_grad()
    probe_every = max(1, min(args.probe_every, args.steps // 5))

    def prepare(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batch(step)
        if (step - first_step) % probe_every == 0:
            # The same work without the exchange, interleaved because a shared machine's speed drifts.
            run.no_sync_ms.append(backward(inputs, targets, synced=False)[1])
            optimizer.zero_grad()
        set_learning_rate(optimizer, args, step)
        return inputs, targets

    def train_step(step: int, pair: tuple[Tensor, Tensor]) -> float:
        loss, backward_ms = backward(*pair, synced=True)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        run.backward_ms.append(backward_ms)
        run.grad_norms.append(norm.item())
        run.buffer_bytes = max(run.buffer_bytes, exchange.buffer_bytes())
        return loss

    def after(done: int, loop: Loop) -> None:
        if done % args.eval_every == 0 or done == last_step:
            run.val_losses.append((done, evaluate(model, windows, job)))
            loop.progress.note(f"step {done}/{args.steps}  validation loss {run.val_losses[-1][1]:.4f}")
        if done == last_step or (args.checkpoint_every and done % args.checkpoint_every == 0):
            loop.gather_losses()
            if args.checkpoint and job.is_first:
                state = {
                    "config": asdict(config),
                    "settings": settings(args, job, corpus),
                    "step": done,
                    "losses": run.losses,
                    "val_losses": run.val_losses,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                save_checkpoint(args.checkpoint, state)
                loop.progress.note(f"step {done}: wrote {args.checkpoint}")

    train_loop(
        run,
        job,
        prepare,
        train_step,
        num_steps=args.steps,
        first_step=first_step,
        last_step=last_step,
        after=after,
    )
    exchange.close()
    run.seconds = time.perf_counter() - begun
    return run, model


def execute(args: argparse.Namespace, job: Job) -> int:
    """Everything after the first line; returns the exit status, the same on every rank."""
    if job.is_first and not job.launched:
        say(f"not started by torchrun: training in one process; for two ranks: {TORCHRUN}")
    try:
        corpus = load_corpus(args.data, args.block_size)
    except DataError as error:
        raise UserError(str(error)) from error
    if is_hybrid(args):
        return execute_hybrid(args, job, corpus)
    return execute_ddp(args, job, corpus)


def execute_ddp(args: argparse.Namespace, job: Job, corpus: Corpus) -> int:
    find_dcomm(args.hook)
    resumed = resume(args, job, corpus, config_of(args))
    with process_group(job, job.backend, timeout_s=args.timeout):
        tell_size(args, job, corpus)
        hooks = [args.against, args.hook] if args.compare else [args.hook]
        results = [train(args, job, corpus, name, resumed) for name in hooks]
        runs, model = [run for run, _ in results], results[-1][1]
        agrees = tell_results(args, job, corpus, runs, model, num_summed=job.world_size)
        if job.is_first and agrees and args.hook != "default":
            print_diff(args.hook)
    return 0 if agrees else 1


def execute_hybrid(args: argparse.Namespace, job: Job, corpus: Corpus) -> int:
    layout = layout_of(args, job.world_size)
    if args.backend == "nccl" and job.device.type == "cpu":
        raise UserError("--backend nccl: it has no CPU tensors; use --backend dcomm or gloo, or one GPU per rank")
    if job.is_first:
        say(f"hybrid parallelism: {layout}")
    tell_size(args, job, corpus)
    backends = [args.backend]
    if args.compare:
        backends = [job.backend, "dcomm" if args.backend == job.backend else args.backend]
    runs = []
    for backend in backends:
        with process_group(job, backend, timeout_s=args.timeout):
            run, weights = train_hybrid(args, job, corpus, layout, backend)
            runs.append(run)
    model = GPT(config_of(args))
    model.load_state_dict(weights)
    return 0 if tell_results(args, job, corpus, runs, model, num_summed=layout.largest_sum) else 1


def tell_size(args: argparse.Namespace, job: Job, corpus: Corpus) -> None:
    if job.is_first:
        num_parameters = sum(p.numel() for p in GPT(config_of(args)).parameters())
        say(
            f"text: {corpus.name}, {corpus.num_files} files, {len(corpus.train):,} bytes to train on, "
            f"{len(corpus.val):,} held out; model: {num_parameters:,} parameters"
        )


def tell_results(
    args: argparse.Namespace, job: Job, corpus: Corpus, runs: list[Run], model: GPT, *, num_summed: int
) -> bool:
    """Whether two runs agree (one does with itself). Every rank comes to the verdict by itself; rank 0 tells."""
    agrees, comparison = compare(runs[0], runs[1], num_summed, args.micro_batches) if args.compare else (True, "")
    if job.is_first:
        windows = val_windows(corpus.val, num_windows=args.eval_windows, block_size=args.block_size)
        bigram = bigram_loss(corpus.train, windows)
        for run in runs:
            final = run.val_losses[-1][1]
            verdict = "below the bigram" if final < bigram else "NOT below the bigram (train longer)"
            say(f"[{run.name}] validation loss {final:.4f}, bigram {bigram:.4f} (nats per byte): {verdict}")
        if comparison:
            say(f"\n{comparison}")
        if args.sample_bytes:
            text = model.generate(b"def ", args.sample_bytes, temperature=0.7, seed=args.seed)
            say(f"\nsample:\n{text.decode(errors='replace')}\n")
        save_loss_curve(runs, bigram, args.out)
        measure = Measure("validation loss", [run.val_losses[-1][1] for run in runs], "bigram model", bigram)
        save_results(args, job, runs, measure, agrees=agrees)
    return agrees


if __name__ == "__main__":
    run_main(parse_args(), execute)
