"""Text as bytes for train_gpt.py: find files, hold some out, cut batches, and fit the bigram to be beaten.

The default text is what every Python installation has: the source of its own standard library. All is a pure
function of the files, the seed, the step and the rank, so that two runs see the same bytes in the same order.
"""

from __future__ import annotations

import hashlib
import os
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT_ONE_IN = 10
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class DataError(ValueError):
    """The text cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Corpus:
    """Training and validation bytes, both (count,) uint8 on the CPU; from different files where possible."""

    name: str
    num_files: int
    train: Tensor
    val: Tensor


def load_corpus(path: str | None, block_size: int) -> Corpus:
    """Reads `path` (a file, a folder, or None for the standard library's *.py files).

    Raises:
        DataError: nothing there, nothing readable, or fewer bytes than one block for training or validation.
    """
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        name, files = "the Python standard library's source", _find_files(root, suffix=".py")
    else:
        root = Path(path)
        if not root.exists():
            raise DataError(f"--data {path}: there is no such file or folder")
        name, files = path, _find_files(root, suffix="") if root.is_dir() else [root]
    texts = _read_texts(root, files)
    train, val = _split(texts)
    for part, count in (("training", len(train)), ("validation", len(val))):
        if count <= block_size + 1:
            raise DataError(
                f"{name}: {count} bytes of text for {part} out of {len(texts)} files are too few; "
                f"a block needs {block_size + 2}: give more text (--data) or a smaller --block-size"
            )
    return Corpus(name, len(texts), _to_tensor(train), _to_tensor(val))


def _find_files(root: Path, *, suffix: str) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [d for d in subfolders if d not in SKIPPED_FOLDERS and not d.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith(suffix) and not name.startswith(".")]
    return sorted(found)


def _read_texts(root: Path, files: list[Path]) -> dict[str, bytes]:
    """Contents by relative path; files with a NUL byte count as binary and are left out, as in git."""
    texts = {}
    for file in files:
        if not file.is_file():  # A dangling link or a socket.
            continue
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from error
        if content and b"\0" not in content:
            texts[file.relative_to(root).as_posix()] = content
    return texts


def _split(texts: dict[str, bytes]) -> tuple[bytes, bytes]:
    """Holds out files by a hash of their path, which does not change when others come or go."""
    if len(texts) < 2:
        content = b"".join(texts.values())
        cut = len(content) - len(content) // HELD_OUT_ONE_IN
        return content[:cut], content[cut:]
    keys = {name: hashlib.sha256(name.encode()).digest() for name in texts}
    held_out = {name for name, key in keys.items() if int.from_bytes(key[:4], "big") % HELD_OUT_ONE_IN == 0}
    if not held_out or len(held_out) == len(texts):  # Possible with a handful of files.
        held_out = {min(keys, key=lambda name: keys[name])}
    return (
        b"\n".join(content for name, content in texts.items() if name not in held_out),
        b"\n".join(content for name, content in texts.items() if name in held_out),
    )


def _to_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def train_batch(
    train: Tensor, *, seed: int, step: int, rank: int, batch_size: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (batch_size, block_size) int64: windows drawn by seed, step and rank."""
    # A string seed is hashed by SHA-512 inside Random: neighbouring steps and ranks get unrelated windows.
    draw = random.Random(f"{seed}/{step}/{rank}")
    starts = [draw.randrange(len(train) - block_size) for _ in range(batch_size)]
    windows = torch.stack([train[start : start + block_size + 1] for start in starts]).long()
    return windows[:, :-1], windows[:, 1:]


def val_windows(val: Tensor, *, num_windows: int, block_size: int) -> Tensor:
    """(num_windows, block_size + 1) int64: spread evenly over the validation bytes, always the same."""
    last = len(val) - block_size - 1
    starts = torch.linspace(0, last, num_windows, dtype=torch.float64).long().tolist()
    return torch.stack([val[start : start + block_size + 1] for start in starts]).long()


def bigram_loss(train: Tensor, windows: Tensor, *, smoothing: float = 0.1) -> float:
    """Nats per byte of a byte bigram on exactly the predictions that the model is judged by.

    Counted over all training bytes. `smoothing` is added to each count; 0.1 serves this text better than 1.
    """
    pairs = train[:-1].long() * 256 + train[1:].long()
    counts = torch.bincount(pairs, minlength=256 * 256).view(256, 256).double() + smoothing
    log_probability = (counts / counts.sum(dim=1, keepdim=True)).log()
    return -log_probability[windows[:, :-1], windows[:, 1:]].mean().item()
