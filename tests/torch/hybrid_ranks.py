"""Rank processes of test_train_gpt_hybrid.py, and the training in one process that theirs is compared with."""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))

from gpt_hybrid import layout_of, train_hybrid
from gpt_model import GPT, GPTConfig
from gpt_recipe import make_optimizer
from text_data import Corpus, load_corpus, train_batch, val_windows
from training import Job

import dcomm.torch  # noqa: F401

STEPS = 6
SETTINGS: dict[str, Any] = {
    "layers": 3,
    "heads": 4,
    "width": 32,
    "block_size": 16,
    "seed": 0,
    "steps": STEPS,
    "batch_size": 4,
    "micro_batches": 1,
    "lr": 1e-2,
    "warmup": 1,
    "eval_every": STEPS,
    "eval_windows": 16,
}


def corpus() -> Corpus:
    return load_corpus(argparse.__file__, SETTINGS["block_size"])


def alone(num_batches: int) -> dict[str, Any]:
    """Trains in this process on the batches of all dp ranks at once."""
    torch.manual_seed(SETTINGS["seed"])
    config = GPTConfig(SETTINGS["layers"], SETTINGS["heads"], SETTINGS["width"], SETTINGS["block_size"])
    model = GPT(config)
    optimizer = make_optimizer(model, argparse.Namespace(**SETTINGS))
    text = corpus()
    losses, norms = [], []
    for step in range(STEPS):
        place = {"seed": SETTINGS["seed"], "step": step, "batch_size": 4, "block_size": SETTINGS["block_size"]}
        pairs = [train_batch(text.train, rank=rank, **place) for rank in range(num_batches)]
        inputs, targets = (torch.cat(each) for each in zip(*pairs, strict=True))
        progress = (step - 1) / (STEPS - 1)
        rate = 1.0 if step < 1 else 0.05 + 0.475 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS["lr"] * rate
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    windows = val_windows(text.val, num_windows=SETTINGS["eval_windows"], block_size=SETTINGS["block_size"])
    with torch.no_grad():
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    return {"losses": losses, "norms": norms, "val_loss": loss.item(), "weights": model.state_dict()}


def run(rank: int, world_size: int, folder: str, layouts: list[list[int]]) -> int:
    """Each layout's losses and weights into a file; their number."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    limit = timedelta(seconds=60)
    dist.init_process_group("dcomm", store=store, rank=rank, world_size=world_size, timeout=limit)
    job = Job(rank, world_size, True, torch.device("cpu"), "gloo")
    text = corpus()
    results = []
    for dp, tp, pp in layouts:
        args = argparse.Namespace(**SETTINGS, dp=dp, tp=tp, pp=pp)
        training, weights = train_hybrid(args, job, text, layout_of(args, world_size), "dcomm")
        results.append(
            {
                "losses": training.losses,
                "norms": training.grad_norms,
                "val_loss": training.val_losses[-1][1],
                "weights": weights,
            }
        )
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    return len(results)
