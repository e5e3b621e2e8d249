"""Rank processes of test_operators.py: each check has communicators of its own, and all ranks go through all checks."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

import torch

import dcomm

sys.path.insert(0, str(Path(__file__).parent))
PARTS = ("operator_values", "operator_schemas", "operator_graphs", "operator_parallel", "operator_errors")
for part in PARTS:
    importlib.import_module(part)
CHECKS = importlib.import_module("operator_checks").CHECKS


def run(rank: int, world_size: int, names: list[str]) -> dict[str, str]:
    """What went wrong in each check; empty: nothing."""
    torch.set_num_threads(1)
    outcomes = {}
    for name in names:
        torch._dynamo.reset()
        torch.manual_seed(7)  # the same numbers on all ranks
        comm = dcomm.init(rank=rank, world_size=world_size, group_name=name)
        try:
            CHECKS[name](comm)
            outcomes[name] = ""
        except BaseException:
            outcomes[name] = traceback.format_exc()
        comm.close()
    return outcomes
