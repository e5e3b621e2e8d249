"""examples/train_gpt.py as a user runs it: under torchrun, with models small enough for seconds."""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torchrun import run_script

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "train_gpt.py"
PATCHED = Path(__file__).with_name("run_patched.py")
TEXT = Path(argparse.__file__)  # About 100 KB of text that is on every machine.
SMALL = [
    *("--device", "cpu", "--data", str(TEXT), "--layers", "1", "--heads", "2", "--width", "32"),
    *("--block-size", "16", "--eval-windows", "8", "--sample-bytes", "8", "--timeout", "30"),
]


def run(
    *arguments: str, script: Path = EXAMPLE, cwd: Path, num_ranks: int | None = 2
) -> subprocess.CompletedProcess[str]:
    """Runs to the end; num_ranks None is plain Python without torchrun."""
    return run_script(script, *arguments, cwd=cwd, num_ranks=num_ranks)


def succeed(*arguments: str, cwd: Path, script: Path = EXAMPLE, num_ranks: int | None = 2) -> str:
    done = run(*arguments, cwd=cwd, script=script, num_ranks=num_ranks)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def text_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import text_data

    return text_data


@pytest.fixture
def train_report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import train_report

    return train_report


def test_learns_and_reports(tmp_path: Path) -> None:
    out = succeed(*("--hook", "default", "--steps", "60", "--eval-every", "20", "--lr", "0.01", *SMALL), cwd=tmp_path)
    assert re.match(r"device: cpu .*, ranks: 2, process group: gloo", out)
    losses = [float(loss) for loss in re.findall(r"step \d+/60  validation loss ([\d.]+)", out)]
    assert len(losses) == 3
    assert losses[0] < math.log(256)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 3.5  # ln 256 is 5.5; knowing how frequent each byte is would give about 3.2.
    verdict = re.search(r"validation loss ([\d.]+), bigram ([\d.]+)", out)
    assert verdict is not None
    assert float(verdict[1]) == losses[-1]
    assert 1 < float(verdict[2]) < 3
    assert re.search(r"tokens/s  comm -?[\d.]+%", out)
    assert "sample:\ndef " in out
    assert (tmp_path / "runs/train_gpt/loss.png").read_bytes().startswith(b"\x89PNG")
    assert "register_comm_hook" not in out  # The diff is for those who used the hook.


@pytest.mark.timeout(300)  # Three launches; seconds each unless the machine is busy.
@pytest.mark.long
def test_resume_continues_bit_for_bit(tmp_path: Path) -> None:
    common = ["--hook", "default", "--steps", "10", "--eval-every", "4", *SMALL]
    succeed(*common, "--checkpoint", "straight.pt", cwd=tmp_path)
    succeed(*common, "--checkpoint", "half.pt", "--stop-at", "5", cwd=tmp_path)
    out = succeed(*common, "--checkpoint", "resumed.pt", "--resume", "half.pt", cwd=tmp_path)
    assert "resuming after step 5" in out
    assert "not a bit-for-bit continuation" not in out
    straight, half, resumed = (
        torch.load(tmp_path / name, weights_only=True) for name in ("straight.pt", "half.pt", "resumed.pt")
    )
    assert (half["step"], straight["step"], resumed["step"]) == (5, 10, 10)
    assert half["losses"] == straight["losses"][:5]
    assert resumed["losses"] == straight["losses"]
    assert resumed["val_losses"][-1] == straight["val_losses"][-1]
    assert any(not torch.equal(half["model"][name], value) for name, value in straight["model"].items())
    for name, value in straight["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    for index, state in straight["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(resumed["optimizer"]["state"][index][name], value), (index, name)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"half.pt", "resumed.pt", "runs", "straight.pt"}  # No temporary file.


@pytest.mark.long
def test_compare_prints_table_and_diff(tmp_path: Path) -> None:
    out = succeed("--compare", "--steps", "12", *SMALL, cwd=tmp_path)
    assert re.search(r"^ +default +dcomm$", out, re.MULTILINE)
    for row in ("final validation loss", "ms per step, median", "communication share"):
        assert re.search(rf"^{row} +\S+ +\S+$", out, re.MULTILINE), row
    assert re.search(r"12 steps: \S+ \(bound 1e-06\)", out)
    assert "equal bits are expected: ok" in out
    diff = out[out.index("--- a/") :].splitlines()
    assert len(diff) == 6
    assert diff[3] == "+import dcomm.torch"
    assert diff[5] == "+ddp.register_comm_hook(dcomm.torch.HookState(), dcomm.torch.all_reduce_hook)"


@pytest.mark.long
def test_compare_fails_on_wrong_gradients(tmp_path: Path) -> None:
    done = run("wrong-sum", "--compare", "--steps", "12", *SMALL, script=PATCHED, cwd=tmp_path)
    assert done.returncode != 0
    assert "equal bits are expected: FAILED" in done.stdout, done.stderr
    assert "+import dcomm.torch" not in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("kind", ["--dp", "--tp", "--pp"])
def test_hybrid_compares_with_gloo(kind: str, tmp_path: Path) -> None:
    out = succeed(kind, "2", "--compare", "--steps", "4", *SMALL, "--layers", "2", cwd=tmp_path)
    assert "hybrid parallelism: " in out
    assert re.search(r"^ +gloo +dcomm$", out, re.MULTILINE)
    assert re.search(r"4 steps: \S+ \(bound 1e-06\)", out)
    assert "equal bits are expected: ok" in out
    assert "sample:\ndef " in out


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "kind"), [("wrong-group", "--tp"), ("wrong-group", "--dp"), ("wrong-message", "--pp")]
)
def test_hybrid_compare_fails_on_a_wrong_backend(mode: str, kind: str, tmp_path: Path) -> None:
    """And so shows that the second training runs on the second backend, although torch keeps things of the first."""
    arguments = (mode, kind, "2", "--compare", "--steps", "4", *SMALL, "--layers", "2")
    done = run(*arguments, script=PATCHED, cwd=tmp_path)
    assert done.returncode != 0
    assert "equal bits are expected: FAILED" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tp", "2", "--pp", "2"], "is for 4 ranks, there are 1: start it with torchrun --nproc-per-node 4"),
        (["--backend", "nccl"], "--backend nccl: it has no CPU tensors"),
        (["--dp", "1", "--hook", "default"], "--hook is for data parallelism by DDP"),
        (["--dp", "1", "--hook", "dcomm"], "--hook is for data parallelism by DDP"),  # the default, but asked for
    ],
)
def test_hybrid_options_that_do_not_fit(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, *SMALL, cwd=tmp_path, num_ranks=None)
    assert done.returncode == 2
    assert message in done.stderr


SLOW_HOOKS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("dcomm-bf16", "synchronizer-fp16", "deterministic")
]


LONG_HOOKS = [pytest.param(name, marks=pytest.mark.long) for name in ("dcomm-fp16", "synchronizer")]


@pytest.mark.parametrize("hook", ["dcomm", *LONG_HOOKS, *SLOW_HOOKS])
def test_gradients_do_not_travel_through_torch(hook: str, tmp_path: Path) -> None:
    arguments = ("no-all-reduce", "--hook", hook, "--steps", "4", *SMALL)
    out = succeed(*arguments, script=PATCHED, cwd=tmp_path)
    assert f"[{hook}] step 4/4" in out


@pytest.mark.long
def test_default_hook_meets_the_patch(tmp_path: Path) -> None:
    done = run("no-all-reduce", "--hook", "default", "--steps", "4", *SMALL, script=PATCHED, cwd=tmp_path)
    assert done.returncode != 0
    assert "torch's all-reduce was called" in done.stderr


@pytest.mark.long
def test_bad_data_path_is_said_once(tmp_path: Path) -> None:
    done = run("--data", "nowhere", "--hook", "default", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: --data nowhere: there is no such file or folder") == 1
    assert done.stdout.startswith("device: ")


@pytest.mark.long
def test_one_process_without_torchrun(tmp_path: Path) -> None:
    out = succeed("--hook", "default", "--steps", "2", *SMALL, cwd=tmp_path, num_ranks=None)
    assert re.match(r"device: cpu .*, ranks: 1,", out)
    assert "torchrun --standalone --nproc-per-node 2 examples/train_gpt.py" in out
    done = run("--hook", "nccl", cwd=tmp_path, num_ranks=None)
    assert done.returncode == 2
    assert "invalid choice: 'nccl'" in done.stderr


def test_batches_depend_on_seed_step_and_rank_alone(text_data: ModuleType) -> None:
    train = torch.arange(100_000).remainder(251).to(torch.uint8)

    def draw(seed: int, step: int, rank: int) -> torch.Tensor:
        inputs, targets = text_data.train_batch(train, seed=seed, step=step, rank=rank, batch_size=4, block_size=8)
        assert inputs.shape == targets.shape == (4, 8)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        return inputs

    torch.manual_seed(1)
    first = draw(0, 0, 0)
    torch.manual_seed(2)
    assert torch.equal(first, draw(0, 0, 0))
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(first, draw(*other))


def test_bigram_is_the_counted_one(text_data: ModuleType) -> None:
    corpus = text_data.load_corpus(str(TEXT), 16)
    windows = text_data.val_windows(corpus.val, num_windows=5, block_size=16)
    content = bytes(corpus.train.tolist())
    pairs, starts = Counter(pairwise(content)), Counter(content[:-1])
    terms = [
        -math.log((pairs[a, b] + 0.1) / (starts[a] + 25.6)) for window in windows.tolist() for a, b in pairwise(window)
    ]
    assert len(terms) == 5 * 16
    assert text_data.bigram_loss(corpus.train, windows) == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_files_are_held_out_whole(text_data: ModuleType, tmp_path: Path) -> None:
    for index in range(60):
        (tmp_path / f"{index}.txt").write_text(f"<{index}>" * 20)
    (tmp_path / "image.bin").write_bytes(b"\0" * 100)
    corpus = text_data.load_corpus(str(tmp_path), 8)
    found = [set(re.findall(rb"<\d+>", bytes(part.tolist()))) for part in (corpus.train, corpus.val)]
    assert not found[0] & found[1]
    assert len(found[0] | found[1]) == corpus.num_files == 60
    assert 1 <= len(found[1]) <= 15
    (tmp_path / "5.txt").unlink()  # Who is held out does not depend on who else is there.
    smaller = text_data.load_corpus(str(tmp_path), 8)
    assert set(re.findall(rb"<\d+>", bytes(smaller.val.tolist()))) == found[1] - {b"<5>"}


@pytest.mark.parametrize("content", ["", "too short"])
def test_too_little_text(text_data: ModuleType, tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(text_data.DataError, match="too few"):
        text_data.load_corpus(str(tmp_path), 16)


def test_missing_extras_are_named(
    train_report: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("rich", "matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    training = train_report.Run("default", [1.0], [(1, 1.0)], [1.0], [2.0], [2.0], [2.0], 8)
    with train_report.Progress(training, first_step=0, num_steps=1, show=True) as progress:
        progress.update(1, 1.0)
    train_report.save_loss_curve([training], 2.0, tmp_path)
    out = capsys.readouterr().out
    assert "pip install 'dcomm[cli]'" in out
    assert "pip install 'dcomm[plot]'" in out
    assert "step 1/1  loss 1.000" in out


@pytest.mark.parametrize(
    ("losses", "val_loss", "norm", "agrees"),
    [
        ([1.0, 2.0], 3.0, 4.0, True),
        ([1.0, 2.0 + 2e-6], 3.0, 4.0, False),
        ([1.0, math.nan], 3.0, 4.0, False),
        ([1.0, 2.0], 3.0 + 2e-6, 4.0, False),
        ([1.0, 2.0], 3.0, 4.0 + 1e-5, False),
        ([1.0, 2.0], 3.0, math.nan, False),
    ],
)
def test_verdict(train_report: ModuleType, losses: list[float], val_loss: float, norm: float, agrees: bool) -> None:
    times = [[2.0], [2.0], [2.0], 8]
    first = train_report.Run("default", [1.0, 2.0], [(2, 3.0)], [4.0], *times)
    second = train_report.Run("dcomm", losses, [(2, val_loss)], [norm], *times)
    verdict, table = train_report.compare(first, second, 2)
    assert verdict is agrees
    assert table.endswith("ok" if agrees else "FAILED")


def test_verdict_allows_for_rounding(train_report: ModuleType) -> None:
    times = [[2.0], [2.0], [2.0], 8]
    first = train_report.Run("default", [1.0], [(1, 3.0)], [4.0], *times)
    second = train_report.Run("dcomm-fp16", [1.01], [(1, 3.01)], [4.001], *times)
    assert train_report.compare(first, second, 2)[0]
    second.grad_norms = [8.0]  # Summed, not averaged.
    assert not train_report.compare(first, second, 2)[0]
