"""Trains a byte-level GPT with DistributedDataParallel, its gradients averaged by torch or by dcomm.

    torchrun --standalone --nproc-per-node 2 examples/train_gpt.py             # dcomm's hook
    torchrun --standalone --nproc-per-node 2 examples/train_gpt.py --compare   # torch's own, then dcomm's
    torchrun ... examples/train_gpt.py --hook synchronizer                     # dcomm without DDP
    torchrun ... examples/train_gpt.py --micro-batches 4 --compare --against synchronizer --hook deterministic

The text is the source of Python's standard library (--data takes any file or folder). The measure is the loss
on held-out files, next to that of a bigram model which sees the same text. --compare trains twice from one
seed, prints losses and times side by side and fails if the losses differ by more than the bound it states.
One seed gives the same losses each time; what a step sees depends on the seed, the step and the rank alone.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from gpt_model import GPT, GPTConfig
from text_data import Corpus, DataError, bigram_loss, load_corpus, train_batch, val_windows
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from train_report import Progress, Run, compare, save_loss_curve, say

HOOKS = {
    "default": None,  # DDP's own all-reduce through the process group.
    "dcomm": "all_reduce_hook",
    "dcomm-fp16": "fp16_hook",
    "dcomm-bf16": "bf16_hook",
}
SYNCHRONIZERS: dict[str, dict[str, Any]] = {  # No DDP: the settings of dcomm's GradientSynchronizer.
    "synchronizer": {},
    "synchronizer-fp16": {"wire_dtype": "float16"},
    "deterministic": {"deterministic": True},
}
TORCHRUN = "torchrun --standalone --nproc-per-node 2 examples/train_gpt.py"
EVAL_BATCH = 16
# A resumed run repeats an uninterrupted one bit for bit only where these are equal.
RESUME_KEYS = ("seed", "steps", "batch_size", "micro_batches", "block_size", "lr", "world_size", "train_bytes")


@dataclass(frozen=True)
class Job:
    """This process's place among the ranks, and where it computes."""

    rank: int
    world_size: int
    launched: bool
    device: torch.device
    backend: str

    @property
    def is_first(self) -> bool:
        return self.rank == 0


class UserError(Exception):
    """Something the caller can put right; the message says how."""


class RankZeroParser(argparse.ArgumentParser):
    """Speaks once per job, not once per rank."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if int(os.environ.get("RANK", "0")) == 0:
            super()._print_message(message, file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            self._print_message(message, sys.stderr)
        leave(status)


def leave(status: int) -> NoReturn:
    """Exits; where all ranks fail alike, the others let rank 0 speak before torchrun ends the job.

    Threads of torch's gloo outlive their group, and one that still frees a tensor while the interpreter ends aborts the
    process: so the interpreter is not ended in order.
    """
    if status and int(os.environ.get("RANK", "0")) > 0:
        time.sleep(3)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def at_least(smallest: int) -> Any:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{value} is below {smallest}")
        return value

    return whole_number


def parse_args() -> argparse.Namespace:
    parser = RankZeroParser(
        description="Train a byte-level GPT with DDP over torch's or dcomm's gradient all-reduce.",
        epilog=f"Start it with: {TORCHRUN}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    names = [*HOOKS, *SYNCHRONIZERS]
    add("--hook", choices=names, default="dcomm", help="who averages the gradients, and in which wire dtype")
    add("--compare", action="store_true", help="train with --against, then with --hook, and compare")
    add("--against", choices=names, default="default", help="what --compare compares with")
    add("--data", metavar="PATH", help="file or folder of text; the standard library's source if not given")
    devices = ("auto", "cpu", "cuda")
    add("--device", choices=devices, default="auto", help="auto: one GPU per rank where there are enough")
    add("--steps", type=at_least(1), default=300, help="optimizer steps")
    add("--seed", type=int, default=0)
    add("--batch-size", type=at_least(1), default=4, help="sequences per rank and step")
    add("--micro-batches", type=at_least(1), default=1, help="backward passes per step, sharing the batch")
    add("--block-size", type=at_least(2), default=64, help="bytes per sequence")
    add("--layers", type=at_least(1), default=4)
    add("--heads", type=at_least(1), default=4)
    add("--width", type=at_least(2), default=256, help="channels; a multiple of twice the number of heads")
    add("--lr", type=float, default=2e-3, help="peak learning rate (AdamW, linear warm-up, cosine decay)")
    add("--warmup", type=at_least(1), default=20, help="steps until the peak learning rate")
    add("--eval-every", type=at_least(1), default=100, help="steps between validations; the last step always")
    add("--eval-windows", type=at_least(1), default=256, help="validation sequences of --block-size bytes")
    add("--probe-every", type=at_least(1), default=20, help="steps between timings without gradient exchange")
    add("--threads", type=at_least(1), default=1, help="intra-op threads per rank on the CPU")
    add("--timeout", type=at_least(1), default=120, help="seconds until a collective gives up")
    add("--out", type=Path, default=Path("runs/train_gpt"), metavar="DIR", help="where loss.png goes")
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
    if args.batch_size % args.micro_batches:
        parser.error(f"--batch-size {args.batch_size} is not a multiple of --micro-batches {args.micro_batches}")
    if args.compare and args.hook == args.against:
        args.hook = "dcomm" if args.against == "default" else "default"  # Against itself it has nothing to show.
    return args


def choose_device(args: argparse.Namespace) -> Job:
    """Reads torchrun's environment and decides; the caller prints it first of all."""
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    rank, world_size = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE")) if launched else (0, 1)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_gpus = torch.cuda.device_count()
    one_each = num_gpus >= num_local_ranks
    if args.device == "cuda" and num_gpus == 0:
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu or leave it out")
    if args.device == "cpu" or (args.device == "auto" and not one_each):
        torch.set_num_threads(args.threads)
        return Job(rank, world_size, launched, torch.device("cpu"), "gloo")
    device = torch.device("cuda", local_rank % num_gpus)
    torch.cuda.set_device(device)
    # Equal seeds shall give equal losses on a GPU too; cuBLAS reads its variable when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    return Job(rank, world_size, launched, device, "nccl" if one_each else "gloo")


def describe(job: Job, args: argparse.Namespace) -> str:
    if job.device.type == "cuda":
        where = f"{job.device} ({torch.cuda.get_device_name(job.device)})"
    else:
        where = f"cpu (intra-op threads per rank: {args.threads})"
    group = f"ranks: {job.world_size}, process group: {job.backend}"
    return f"device: {where}, {group}, torch {torch.__version__}"


def find_dcomm(name: str) -> Any:
    """The module that `name` needs, or None for DDP's own way. Only here is dcomm imported."""
    if name == "default":
        return None
    try:
        return importlib.import_module("dcomm.torch")
    except ImportError as error:
        raise UserError(
            f"--hook {name}: cannot import dcomm.torch ({error}); "
            "install it with `pip install .` in the repository, or train with --hook default"
        ) from error


@dataclass(frozen=True)
class Exchange:
    """How gradients are averaged: what to call in place of the model, and what completes a step."""

    model: torch.nn.Module
    no_sync: Callable[[], AbstractContextManager[None]]
    finish: Callable[[], None]
    buffer_bytes: Callable[[], int]  # Gradients and what is held beside them.
    close: Callable[[], None]


def make_exchange(model: GPT, job: Job, name: str) -> Exchange:
    """Collective."""
    dcomm_torch = find_dcomm(name)
    if name in SYNCHRONIZERS:
        comm = importlib.import_module("dcomm").init(
            rank=job.rank, world_size=job.world_size, store=dist.group.WORLD.get_group_store(), group_name=name
        )
        sync = dcomm_torch.GradientSynchronizer(model, comm, **SYNCHRONIZERS[name])

        def close() -> None:
            sync.close()
            comm.close()

        return Exchange(
            model, sync.no_sync, sync.finish, lambda: max(sync.gradient_bytes, sync.accumulation_bytes), close
        )
    ddp = DistributedDataParallel(model, device_ids=[job.device] if job.device.type == "cuda" else None)
    if dcomm_torch is not None:
        ddp.register_comm_hook(dcomm_torch.HookState(), getattr(dcomm_torch, HOOKS[name]))
    # DDP keeps the gradients and, in buckets, a copy of them.
    num_bytes = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    return Exchange(ddp, ddp.no_sync, lambda: None, lambda: num_bytes, lambda: None)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def gather(values: list[float], job: Job) -> Tensor:
    """(world_size, len(values)) float64 on the CPU, rows in rank order on every rank."""
    mine = torch.tensor(values, dtype=torch.float64, device=job.device)
    rows = [torch.empty_like(mine) for _ in range(job.world_size)]
    dist.all_gather(rows, mine)
    return torch.stack(rows).cpu()


def learning_rate(args: argparse.Namespace, step: int) -> float:
    if step < args.warmup:
        return float(args.lr * (step + 1) / args.warmup)
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return float(args.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))))


def make_optimizer(model: GPT, args: argparse.Namespace) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)


def byte_loss(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    logits: Tensor = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model: GPT, windows: Tensor, job: Job) -> float:
    """Mean nats per byte over all windows, each rank taking its share; the same number on every rank."""
    total, count = 0.0, 0
    for part in torch.split(windows[job.rank :: job.world_size], EVAL_BATCH):
        if len(part):  # A rank beyond the number of windows has none.
            part = part.to(job.device)
            total += float(byte_loss(model, part[:, :-1], part[:, 1:])) * len(part)
            count += len(part)
    sums = gather([total, float(count)], job).sum(dim=0)
    return float(sums[0] / sums[1])


def settings(args: argparse.Namespace, job: Job, corpus: Corpus) -> dict[str, Any]:
    values = {**vars(args), "world_size": job.world_size, "train_bytes": len(corpus.train)}
    return {key: values[key] for key in RESUME_KEYS}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes beside `path`, then renames: a reader finds the old state or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, config: GPTConfig) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--resume {path}: there is no such file")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        stored = state["config"]
    except Exception as error:  # torch.load raises half a dozen unrelated types on a damaged file.
        raise UserError(f"--resume {path}: no checkpoint of train_gpt.py ({type(error).__name__})") from error
    if stored != asdict(config):
        raise UserError(f"--resume {path}: its model is {stored}, this command asks for {asdict(config)}")
    return state


def train(
    args: argparse.Namespace, job: Job, corpus: Corpus, hook_name: str, resumed: dict[str, Any] | None
) -> tuple[Run, GPT]:
    """One training from the seed (or from a checkpoint); every rank gets the same losses and model."""
    begun = time.perf_counter()
    config = GPTConfig(args.layers, args.heads, args.width, args.block_size)
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
                loss = byte_loss(exchange.model, *part) / len(parts)
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
    local_losses: list[float] = []
    progress = Progress(run, first_step=first_step, num_steps=args.steps, show=job.is_first)
    with progress:
        for step in range(first_step, last_step):
            inputs, targets = batch(step)
            if (step - first_step) % probe_every == 0:
                # The same work without the exchange, interleaved because a shared machine's speed drifts.
                run.no_sync_ms.append(backward(inputs, targets, synced=False)[1])
                optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args, step)
            start = clock(job.device)
            loss, backward_ms = backward(inputs, targets, synced=True)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            run.step_ms.append((clock(job.device) - start) * 1e3)
            run.backward_ms.append(backward_ms)
            run.grad_norms.append(norm.item())
            run.buffer_bytes = max(run.buffer_bytes, exchange.buffer_bytes())
            local_losses.append(loss)
            done = step + 1
            progress.update(done, loss)
            if done % args.eval_every == 0 or done == last_step:
                run.val_losses.append((done, evaluate(model, windows, job)))
                progress.note(f"step {done}/{args.steps}  validation loss {run.val_losses[-1][1]:.4f}")
            if done == last_step or (args.checkpoint_every and done % args.checkpoint_every == 0):
                run.losses += gather(local_losses, job).mean(dim=0).tolist()
                local_losses.clear()
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
                    progress.note(f"step {done}: wrote {args.checkpoint}")
    exchange.close()
    run.seconds = time.perf_counter() - begun
    return run, model


def print_diff(hook_name: str) -> None:
    if hook_name in SYNCHRONIZERS:
        settings = "".join(f", {key}={value!r}" for key, value in SYNCHRONIZERS[hook_name].items())
        say("\nwhat your own training loop needs:\n")
        say("--- a/train.py")
        say("+++ b/train.py")
        say("@@ -1,2 +1,5 @@")
        say("+import dcomm.torch")
        say(f"+sync = dcomm.torch.GradientSynchronizer(model, dcomm.init(){settings})")
        say(" loss.backward()")
        say("+sync.finish()")
        say(" optimizer.step()")
        return
    say("\nwhat your own DistributedDataParallel script needs:\n")
    say("--- a/train.py")
    say("+++ b/train.py")
    say("@@ -1,1 +1,3 @@")
    say("+import dcomm.torch")
    say(" ddp = DistributedDataParallel(model)")
    say(f"+ddp.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.{HOOKS[hook_name]})")


def execute(args: argparse.Namespace, job: Job) -> int:
    """Everything after the first line; returns the exit status, the same on every rank."""
    if job.is_first and not job.launched:
        say(f"not started by torchrun: training in one process; for two ranks: {TORCHRUN}")
    try:
        corpus = load_corpus(args.data, args.block_size)
    except DataError as error:
        raise UserError(str(error)) from error
    find_dcomm(args.hook)
    config = GPTConfig(args.layers, args.heads, args.width, args.block_size)
    resumed = load_checkpoint(args.resume, config) if args.resume else None
    if resumed is not None:
        if resumed["step"] >= min(args.steps, args.stop_at or args.steps):
            raise UserError(f"--resume {args.resume}: it is at step {resumed['step']}; give more --steps")
        now = settings(args, job, corpus)
        before = resumed["settings"]
        changes = [f"{key} {before[key]} -> {now[key]}" for key in RESUME_KEYS if before[key] != now[key]]
        if job.is_first:
            say(f"resuming after step {resumed['step']}")
            if changes:
                say(f"not a bit-for-bit continuation, this differs: {', '.join(changes)}")

    timeout = timedelta(seconds=args.timeout)
    if job.launched:
        dist.init_process_group(job.backend, timeout=timeout)
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(job.backend, timeout=timeout, store=store, rank=0, world_size=1)

    windows = val_windows(corpus.val, num_windows=args.eval_windows, block_size=args.block_size)
    if job.is_first:
        num_parameters = sum(p.numel() for p in GPT(config).parameters())
        say(
            f"text: {corpus.name}, {corpus.num_files} files, {len(corpus.train):,} bytes to train on, "
            f"{len(corpus.val):,} held out; model: {num_parameters:,} parameters"
        )
    bigram = bigram_loss(corpus.train, windows)
    hooks = [args.against, args.hook] if args.compare else [args.hook]
    results = [train(args, job, corpus, name, resumed) for name in hooks]
    runs, model = [run for run, _ in results], results[-1][1]

    # Every rank comes to the verdict by itself; rank 0 tells.
    agrees, comparison = compare(runs[0], runs[1], job.world_size, args.micro_batches) if args.compare else (True, "")
    if job.is_first:
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
        if agrees and args.hook != "default":
            print_diff(args.hook)
    dist.barrier()  # no rank leaves while another one still needs it
    dist.destroy_process_group()
    return 0 if agrees else 1


def main() -> NoReturn:
    args = parse_args()
    try:
        job = choose_device(args)
        if job.is_first:
            say(describe(job, args))
        status = execute(args, job)
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        status = 2
    leave(status)


if __name__ == "__main__":
    main()
