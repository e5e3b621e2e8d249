"""Checkpoints of train_gpt.py: written whole or not at all, refused when they do not fit, differences told."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpt_model import GPTConfig
from text_data import Corpus
from train_report import say
from training import Job, UserError

# A resumed run repeats an uninterrupted one bit for bit only where these are equal.
RESUME_KEYS = ("seed", "steps", "batch_size", "micro_batches", "block_size", "lr", "world_size", "train_bytes")


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


def resume(args: argparse.Namespace, job: Job, corpus: Corpus, config: GPTConfig) -> dict[str, Any] | None:
    """The state that --resume names, None without it; rank 0 tells what differs from the run that wrote it."""
    if not args.resume:
        return None
    resumed = load_checkpoint(args.resume, config)
    if resumed["step"] >= min(args.steps, args.stop_at or args.steps):
        raise UserError(f"--resume {args.resume}: it is at step {resumed['step']}; give more --steps")
    now = settings(args, job, corpus)
    before = resumed["settings"]
    changes = [f"{key} {before[key]} -> {now[key]}" for key in RESUME_KEYS if before[key] != now[key]]
    if job.is_first:
        say(f"resuming after step {resumed['step']}")
        if changes:
            say(f"not a bit-for-bit continuation, this differs: {', '.join(changes)}")
    return resumed
