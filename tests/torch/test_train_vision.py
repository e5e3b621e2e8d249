"""examples/train_vision.py as a user runs it, and how it reads folders of images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from torchrun import run_script  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_vision.py"


@pytest.fixture
def train_vision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import train_vision

    return train_vision


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images each of a red and a blue class, of unequal sizes, one of them grey."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow (requirements-dev.txt)")
    for name, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            picture = image.new("RGB", (9 + number, 12), color)
            (picture.convert("L") if number == 9 else picture).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "red" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.mark.long
def test_digits_and_comparison_with_gloo(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (requirements-dev.txt)")
    done = run_script(EXAMPLE, "--compare", cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    accuracies = re.findall(r"^\[(\S+)\] held-out accuracy ([\d.]+)% of 359 images$", done.stdout, re.MULTILINE)
    assert [name for name, _ in accuracies] == ["gloo", "dcomm-float16"]
    assert all(float(percent) >= 95 for _, percent in accuracies)
    # Some rounding must show, or gradients did not travel as float16.
    difference = re.search(r"largest loss difference, 176 steps: (\S+) \(bound 0.03\)", done.stdout)
    assert difference is not None
    assert 0 < float(difference[1]) <= 0.03
    assert "half precision on the wire: ok" in done.stdout


@pytest.mark.long
def test_float32_wire_has_gloos_bits_and_too_short_a_training_fails(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (requirements-dev.txt)")
    done = run_script(EXAMPLE, "--compare", "--wire", "float32", "--steps", "20", cwd=tmp_path)
    assert "largest loss difference, 20 steps: 0 (bound" in done.stdout, done.stdout
    assert done.stdout.count("FAILED, below 95% (train for more --steps)") == 2
    assert done.returncode == 1


@pytest.mark.long
def test_folder_of_images(tmp_path: Path, photos: Path) -> None:
    arguments = ["--data", str(photos), "--image-size", "8", "--batch-size", "8", "--width", "8", "--steps", "40"]
    done = run_script(EXAMPLE, *arguments, "--lr", "0.01", "--json", "found.json", cwd=tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = json.loads((tmp_path / "found.json").read_text())
    command = [
        "torchrun",
        "--standalone",
        "--nproc-per-node",
        "2",
        "examples/train_vision.py",
        *arguments,
        "--lr",
        "0.01",
    ]
    assert shlex.split(found["command"]) == command
    assert (found["example"], found["ranks"], found["steps"]) == ("train_vision", 2, 40)
    assert f"held-out accuracy {found['values']['dcomm-float16']:.1%} of 4 images" in done.stdout
    assert found["commit"]
    assert "3 x 8 x 8, 2 classes, 16 to train on" in done.stdout
    assert re.search(r"^\[dcomm-float16\] held-out accuracy [\d.]+% of 4 images$", done.stdout, re.MULTILINE)


def test_folder_is_read_in_order(train_vision: ModuleType, photos: Path) -> None:
    images, labels, classes = train_vision.load_folder(photos, 8)
    assert classes == ["blue", "red"]
    assert images.shape == (20, 3, 8, 8)
    assert labels.tolist() == [0] * 10 + [1] * 10
    assert images[0].amax(dim=(1, 2)).tolist() == [0, 0, 1]
    assert images[10].amin(dim=(1, 2)).tolist() == [1, 0, 0]


def test_folders_that_cannot_be_used(train_vision: ModuleType, photos: Path) -> None:
    with pytest.raises(train_vision.UserError, match="there is no such folder"):
        train_vision.load_folder(photos / "green", 8)
    with pytest.raises(train_vision.UserError, match="images of 0 classes"):
        train_vision.load_folder(photos / "red", 8)
    (photos / "red" / "broken.png").write_bytes(b"no image")
    with pytest.raises(train_vision.UserError, match=r"cannot read .*broken\.png"):
        train_vision.load_folder(photos, 8)


def test_ranks_share_an_epoch(train_vision: ModuleType) -> None:
    pixels, labels = torch.zeros(20, 1, 8, 8), torch.arange(20)
    images = train_vision.Images("count", [], (pixels, labels), (pixels, labels))

    def seen(rank: int, step: int) -> list[int]:
        job = train_vision.Job(rank, 2, True, torch.device("cpu"), "gloo")
        args = train_vision.argparse.Namespace(batch_size=5, seed=0)
        return train_vision.batch(images, step, args, job)[1].tolist()

    epochs = [[label for step in steps for rank in (0, 1) for label in seen(rank, step)] for steps in ((0, 1), (2, 3))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert epochs[0] != epochs[1]


def test_missing_package(tmp_path: Path) -> None:
    done = run_script(EXAMPLE, cwd=tmp_path, num_ranks=None, hide="sklearn")
    assert done.returncode == 2
    assert done.stderr == ("error: the digits come with scikit-learn: pip install scikit-learn (or give --data DIR)\n")
