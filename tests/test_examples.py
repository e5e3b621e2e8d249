"""examples/01 to 03 as a user starts them: that they do what they say, and that their own checks can fail."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_gpu import EmulatedGpu
from rank_processes import WORKERS

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NUMPY, CUPY, DDP = (EXAMPLES / name for name in ("01_numpy.py", "02_cupy.py", "03_ddp_hook.py"))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(*command: str | Path, cwd: Path, timeout: float = 100, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {"OMP_NUM_THREADS": "1", "DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "65536", **env}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, **settings},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def changed(example: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of the example with one line that is wrong."""
    text = example.read_text()
    assert old in text
    copy = folder / example.name
    copy.write_text(text.replace(old, new))
    return copy


@pytest.mark.parametrize("example", [NUMPY, CUPY, DDP])
def test_examples_are_short_and_say_how_to_run_them(example: Path) -> None:
    text = example.read_text()
    assert len(text.splitlines()) < 60
    assert re.search(rf"^    (python|torchrun .*) ?examples/{example.name}$", text, re.M)
    assert "assert " in text
    assert f"examples/{example.name}" in (ROOT / "README.md").read_text()


def test_numpy(tmp_path: Path) -> None:
    done = run(NUMPY, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = "  4 ranks: sum 10.0, average 2.5, gathered [0 1 2 3]"
    assert done.stdout.splitlines() == ["threads of one process", result, "processes", result]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("assert (total == 1 + 2 + 3 + 4).all()", "assert (total == 11).all()"),
        ("assert weights.sum() == 45", 'assert weights.sum() == 45 and "DCOMM_JOB_ID" not in os.environ'),  # processes
    ],
)
def test_numpy_fails_if_a_result_is_wrong(tmp_path: Path, old: str, new: str) -> None:
    done = run(changed(NUMPY, tmp_path, old, new), cwd=tmp_path)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_cupy_without_cupy(tmp_path: Path) -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed")
    done = run(CUPY, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "This example needs CuPy: pip install 'dcomm[cupy]'; examples/01_numpy.py does the same on CPUs.\n"
    )


def test_cupy_without_a_gpu(tmp_path: Path) -> None:
    done = run(WORKERS / "run_with_fake_cupy.py", "", CUPY, cwd=tmp_path)
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("No GPU for this example: ")
    assert "`dcomm doctor` says more; examples/01_numpy.py needs no GPU." in done.stderr


def test_cupy_on_an_emulated_gpu(emulated_gpu: EmulatedGpu, tmp_path: Path) -> None:
    done = run(WORKERS / "run_with_fake_cupy.py", emulated_gpu.path, CUPY, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "4 ranks on <CUDA Device 0>: sum 10.0, average 2.5\n"


def test_cupy_fails_if_a_result_is_wrong(emulated_gpu: EmulatedGpu, tmp_path: Path) -> None:
    wrong = changed(CUPY, tmp_path, "(gradient.get() == 2.5)", "(gradient.get() == 2.25)")
    done = run(WORKERS / "run_with_fake_cupy.py", emulated_gpu.path, wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_ddp_hook(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = run(*TORCHRUN, DDP, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(text) for text in re.findall(r"^step +\d+  loss ([\d.]+)$", done.stdout, re.M)]
    assert len(losses) == 5
    assert losses[-1] < 0.1 * losses[0]
    assert done.stdout.splitlines()[-1] == "the same weights on all 2 ranks"


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        optimizer.step()\n", ""),  # no falling loss
        ("dcomm.torch.fp16_hook)", "local_only)"),  # ranks that do not meet
    ],
)
def test_ddp_hook_fails_if_it_does_not_train(tmp_path: Path, old: str, new: str) -> None:
    pytest.importorskip("torch")
    hook = """STEPS = 200


def local_only(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
"""
    changed(DDP, tmp_path, old, new)
    wrong = changed(tmp_path / DDP.name, tmp_path, "STEPS = 200\n", hook)
    done = run(*TORCHRUN, wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_ddp_hook_without_a_launcher(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = run(DDP, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("no launcher started this: torchrun --standalone")
