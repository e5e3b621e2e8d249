"""`dcomm bench --device cuda` as far as a machine without a GPU can tell: dcomm's rows on an emulated GPU, gloo and
torch's composites on CPU tensors; what is refused, and that its checks can fail. Times of these runs mean nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_gpu import EmulatedGpu
from rank_processes import WORKERS

import dcomm
from dcomm.__main__ import main
from dcomm.bench.case import Measured
from dcomm.bench.cuda import nccl, report, rivals, symm_mem, torch_engine
from dcomm.bench.cuda import run as run_module
from dcomm.bench.cuda.case import CudaCase
from dcomm.bench.cuda.options import CudaOptions, cuda_options
from dcomm.bench.cuda.plan import plan
from dcomm.bench.cuda.rows import make_rows
from dcomm.bench.cuda.worker import CudaWorker
from dcomm.bench.options import OptionError, Options
from dcomm.bench.ranks import RankError
from dcomm.bench.report import num_wrong as _num_wrong_of_cpu

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"DCOMM_CUDA_CHANNELS": "2", "DCOMM_CUDA_SLOT_BYTES": "4096"}
SMALL = Options(min_bytes=64, max_bytes=4096, factor=64, iters=4, rounds=2, timeout=100)
BOTH = CudaOptions(SMALL)


def here() -> str:
    return ""


@pytest.fixture
def measure(emulated_gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A run whose children have emulated GPUs."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    program = (str(WORKERS / "cuda_bench_ranks.py"), str(emulated_gpu.path))

    def run(options: CudaOptions, **changes: Any) -> dict[str, Any]:
        how: dict[str, Any] = {"program": program, "why_not": here, "copy_bytes": 1 << 20, **changes}
        return run_module.run(options, "a command", lambda share, text: None, **how)

    return run


def rows_of(text: list[str], mode: str) -> list[list[str]]:
    """The rows of a mode's table."""
    start = next(index for index, line in enumerate(text) if line.startswith(f"# {mode}: "))
    found = []
    for line in text[start + 4 :]:
        if line.startswith("#"):
            break
        found.append(line.split())
    return found


# ---- Runs ----


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_threads_and_processes(measure: Callable[..., dict[str, Any]], ranks: int) -> None:
    found = measure(replace(BOTH, base=replace(SMALL, ranks=ranks)))
    assert report.exit_status(found) == 0
    ours = {(row["mode"], row["timing"], row["in_place"], row["nbytes"]) for row in found["rows"]}
    assert ours == {
        (mode, timing, in_place, nbytes)
        for mode in ("threads", "processes")
        for timing in ("graph", "events")
        for in_place in (False, True)
        for nbytes in (64, 4096)
    }
    for row in found["rows"]:
        assert row["lib"] == "dcomm"
        assert row["checked"]
        assert row["num_wrong"] == 0
        assert row["p50_us"] > 0
        floor_us = 2 * ranks * row["nbytes"] / found["copy_gbps"] / 1e3
        assert row["floor_us"] == pytest.approx(floor_us, rel=0.05, abs=1e-3)
        assert row["rounds_counted"] == 2
    text = [line.text for line in report.lines(found)]
    for mode in ("threads", "processes"):
        table = rows_of(text, mode)
        assert [row[0] for row in table] == ["64", "64", "4096", "4096"]
        assert {len(row) for row in table} == {22}
        assert [row[15] for row in table] == ["graph", "events"] * 2
        assert {row[8] for row in table} == {row[12] for row in table} == {"0"}
    heads = [line for line in text if "algbw" in line]
    timing = ["time", "algbw", "busbw", "#wrong"]
    assert heads[0].split()[:14] == ["#", "size", "count", "type", "redop", "root", *timing, *timing]
    assert "# not measured: NVLink, PCIe between GPUs, more than one GPU" in text
    assert "# Out of bounds values : 0 OK" in text


@pytest.mark.parametrize(
    "collective", ["reduce_scatter", "all_gather", "broadcast", "reduce", "gather", "scatter", "all_to_all"]
)
def test_other_collectives(measure: Callable[..., dict[str, Any]], collective: str) -> None:
    base = replace(SMALL, collective=collective, ranks=3, roots=(1,), rounds=1, dtypes=("float16",), max_bytes=64)
    found = measure(CudaOptions(base, timings=("events",)))
    assert found["rows"]
    assert {row["mode"] for row in found["rows"]} == {"threads", "processes"}
    assert report.exit_status(found) == 0
    assert not any("floor_us" in row for row in found["rows"])
    assert len(rows_of([line.text for line in report.lines(found)], "threads")) == 1


@pytest.mark.parametrize(
    "base",
    [
        replace(SMALL, dtypes=("bfloat16",), ops=("avg",), algos=("ring",), ranks=4),
        replace(SMALL, wires=(None, "float16"), algos=("two_shot",)),
    ],
)
def test_dtypes_wires_algorithms(measure: Callable[..., dict[str, Any]], base: Options) -> None:
    if "bfloat16" in base.dtypes:
        pytest.importorskip("torch")
    found = measure(CudaOptions(replace(base, rounds=1), modes=("threads",), timings=("events",)))
    assert report.exit_status(found) == 0
    assert {(row["algo"], row["wire"], row["redop"]) for row in found["rows"]} == {
        (algo, wire, op) for algo in base.algos for wire in base.wires for op in base.ops
    }


@pytest.mark.parametrize("mode", ["threads", "processes"])
@pytest.mark.parametrize("batch", [1, 6])
def test_one_flipped_bit_is_exit_status_1(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, mode: str, batch: int
) -> None:
    monkeypatch.setenv("DCOMM_BENCH_CORRUPT", str(batch))
    found = measure(CudaOptions(SMALL, modes=(mode,), timings=("graph",)))
    assert report.num_wrong(found) == 1
    assert report.exit_status(found) == 1
    lines = list(report.lines(found))
    assert [line.kind for line in lines].count("wrong") == 1
    assert any(line.text == "# Out of bounds values : 1 FAILED" for line in lines)
    unseen = measure(CudaOptions(replace(SMALL, check=False), modes=(mode,), timings=("graph",)))
    assert report.exit_status(unseen) == 0


@pytest.mark.long
def test_rivals_stand_beside_it(measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo and the composites on CPU tensors; nccl's children fail, and the run goes on without it."""
    pytest.importorskip("torch")
    monkeypatch.setitem(rivals.RIVALS, "nccl", replace(rivals.RIVALS["nccl"], why_not=here))
    monkeypatch.setitem(
        rivals.RIVALS, "symm_mem", replace(rivals.RIVALS["symm_mem"], why_not=lambda: "no such torch; install it")
    )
    names = ("torch._foreach_add_", "torch stack+sum")  # a compiler takes its time
    monkeypatch.setitem(
        rivals.RIVALS, "torch", replace(rivals.RIVALS["torch"], variants=dict.fromkeys((False, True), names))
    )
    found = measure(CudaOptions(SMALL, compare=tuple(rivals.RIVALS), compare_all=True))
    assert found["absent"] == {"symm_mem": "no such torch; install it", "nccl": "rank 0: RuntimeError: no such GPU (1)"}
    assert {row["lib"] for row in found["rows"]} == {"dcomm", "torch", "gloo"}
    assert {row["num_wrong"] for row in found["rows"]} == {0}
    for row in found["rows"]:
        if row["lib"] != "dcomm":
            assert "rivals" not in row
        elif row["mode"] == "threads":
            assert set(row["rivals"]) == {"torch"}
        else:
            assert set(row.get("rivals", ())) == ({"gloo"} if row["in_place"] else set())
        for name, rival in row.get("rivals", {}).items():
            assert rival["ratio"] == pytest.approx(rival["p50_us"] / row["p50_us"], abs=0.01)
            alike = [
                other["p50_us"]
                for other in found["rows"]
                if (other["lib"], other["nbytes"], other["in_place"]) == (name, row["nbytes"], row["in_place"])
            ]
            assert len(alike) == (4 if name == "torch" else 2)  # variants x timings
            assert rival["p50_us"] == min(alike)
    text = [line.text for line in report.lines(found)]
    assert "# not measured: symm_mem: no such torch; install it" in text
    heads = [line for line in text if "algbw" in line]
    assert [line.split()[23:] for line in heads] == [["torch", "us", "ratio"], ["gloo", "us", "ratio"]]
    assert all(len(row) == 24 for mode in ("threads", "processes") for row in rows_of(text, mode))


def test_a_rival_that_was_named_must_not_fail(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(rivals.RIVALS, "nccl", replace(rivals.RIVALS["nccl"], why_not=here))
    with pytest.raises(RankError, match=r"nccl: rank 0: RuntimeError: no such GPU \(1\)"):
        measure(CudaOptions(SMALL, compare=("nccl",)))


def test_a_variant_that_fails_leaves_the_others(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    original = run_module.plan

    def with_a_bad_one(options: CudaOptions, names: list[str]) -> list[CudaCase]:
        cases = original(options, names)
        theirs = next(case for case in cases if case.lib == "torch")
        return [*cases, replace(theirs, variant="torch stack+sum", count=0, redop="nothing")]

    monkeypatch.setattr(run_module, "plan", with_a_bad_one)
    names = ("torch._foreach_add_",)
    monkeypatch.setitem(
        rivals.RIVALS, "torch", replace(rivals.RIVALS["torch"], variants=dict.fromkeys((False, True), names))
    )
    found = measure(CudaOptions(SMALL, modes=("threads",), compare=("torch",)))
    assert list(found["absent"]) == ["torch (torch stack+sum)"]
    assert {row["variant"] for row in found["rows"] if row["lib"] == "torch"} == {"torch._foreach_add_"}


def test_a_rank_that_fails_ends_the_run(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCOMM_CUDA_WINDOWS", "none")
    with pytest.raises(RankError, match="rank 0: "):
        measure(CudaOptions(SMALL, modes=("processes",)))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_replay_that_does_nothing_is_wrong(in_place: bool) -> None:
    """What the calls before the clock left must not pass for the replays' results."""
    pytest.importorskip("torch")
    from bench_devices import TensorDevice

    class Idle(TensorDevice):
        def capture(self, enqueue: Any, calls: int) -> Any:
            return lambda: None

    case = CudaCase(
        count=100, calls=1, batches=2, lib="torch", variant="torch stack+sum", in_place=in_place, timing="graph"
    )
    with dcomm.init_threads(1)[0] as comm:
        worker = CudaWorker(lambda side: Idle(), comm)
        worker.carry_out("open", None, side="torch", world_size=2, store="")
        assert worker.measure(replace(case, timing="events"))["num_wrong"] == 0
        assert worker.measure(case)["num_wrong"] == 2 * 100


# ---- The command ----


@pytest.fixture
def command(emulated_gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dcomm bench` takes the emulated GPU for this machine's."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    program = (str(WORKERS / "cuda_bench_ranks.py"), str(emulated_gpu.path))
    defaults = {**run_module.run.__kwdefaults__, "program": program, "why_not": here, "copy_bytes": 1 << 20}
    monkeypatch.setattr(run_module.run, "__kwdefaults__", defaults)


COMMAND = ["bench", "all_reduce", "--device", "cuda", "-b", "64", "-e", "4096", "-f", "64", "-N", "1", "--iters", "2"]


def test_command_with_json_and_plot(command: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, picture = tmp_path / "out.json", tmp_path / "out.png"
    assert main([*COMMAND, "--threads", "-J", str(stored), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "# dcomm bench all_reduce: 2 ranks on one GPU" in printed
    assert "# GPU      emulated on the host, driver none, 2 multiprocessors" in printed
    assert "# processes" not in printed
    found = json.loads(stored.read_text())
    assert (found["device"], found["modes"]) == ("cuda", ["threads"])
    assert found["not_measured"][0] == "NVLink"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_command_exit_status(
    command: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DCOMM_MIN_BW", "100000")
    assert main([*COMMAND, "--threads", "--timing", "events"]) == 2
    assert "FAILED" in capsys.readouterr().out
    monkeypatch.setenv("DCOMM_BENCH_CORRUPT", "1")
    assert main([*COMMAND, "--threads", "--timing", "events"]) == 1


def test_without_a_gpu_it_says_what_is_missing_in_one_line() -> None:
    if not torch_engine.why_not():
        pytest.skip("this machine has a GPU")
    for script in (["-m", "dcomm", "bench", "all_reduce"], [str(ROOT / "benchmarks" / "all_reduce.py")]):
        done = subprocess.run(
            [sys.executable, *script, "--device", "cuda"], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert ": --device cuda: this installation of dcomm has no CUDA part" in done.stderr
        assert "DCOMM_CUDA=ON" in done.stderr


def test_why_not_torch(emulated_gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """dcomm has its GPU: what is missing now is torch's."""
    torch = pytest.importorskip("torch")
    if torch.version.cuda is None:
        assert "is a build for the CPU; install one with CUDA" in torch_engine.why_not()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no GPU; `nvidia-smi` shows" in torch_engine.why_not()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_engine.why_not() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs torch" in torch_engine.why_not()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("barrier",), "COLLECTIVE barrier with --device cuda: expected one of all_reduce, "),
        (("sendrecv",), "COLLECTIVE sendrecv with --device cuda: expected one of all_reduce, "),
        (("all_reduce", "-d", "int32"), "-d int32 with --device cuda: expected float32, float16, bfloat16"),
        (("all_reduce", "-o", "max"), "-o max with --device cuda: expected sum, avg"),
        (("all_reduce", "--algo", "direct"), "--algo direct with --device cuda: expected auto, "),
        (("all_reduce", "--mode", "fibres"), "--mode fibres with --device cuda: expected threads, processes"),
        (("all_reduce", "--timing", "clock"), "--timing clock with --device cuda: expected graph, events"),
        (("all_reduce", "--compare", "mpi"), "--compare mpi with --device cuda: expected torch, symm_mem, nccl, gloo"),
        (("all_reduce", "--level", "c"), "--level c: expected --device cpu"),
        (("all_reduce", "--buffers", "2"), "--buffers: expected --device cpu"),
        (("all_reduce", "--check-figures"), "--check-figures: expected --device cpu; tools/gpu_check.sh has"),
        (("all_reduce", "--threads", "--mode", "processes"), "--threads: expected --mode threads, got processes"),
        (("all_reduce", "--threads", "--compare", "gloo"), "--compare gloo: expected --mode processes, where"),
        (("all_reduce", "--mode", "processes", "--compare", "torch"), "--compare torch: expected --mode threads"),
        (("broadcast", "--compare", "nccl"), "--compare with --device cuda: expected COLLECTIVE all_reduce"),
        (("all_reduce", "-n", "1"), "-n 1: expected 2 to 64 ranks"),
    ],
)
def test_a_bad_flag_says_what_is_expected(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments, "--device", "cuda"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"dcomm bench: {message}")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--device", "tpu"), "--device tpu: expected cpu or cuda"),
        (("--mode", "threads"), "--mode: expected --device cuda"),
        (("--timing", "graph"), "--timing: expected --device cuda"),
    ],
)
def test_flags_of_one_device(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "all_reduce", *flags]) == 2
    assert capsys.readouterr().err == f"dcomm bench: {message}\n"


# ---- Rivals ----


def test_a_rival_that_is_not_here_is_refused_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in rivals.RIVALS:
        monkeypatch.setitem(rivals.RIVALS, name, replace(rivals.RIVALS[name], why_not=lambda: "reason; next step"))
    with pytest.raises(OptionError, match="--compare nccl: reason; next step"):
        replace(BOTH, compare=("nccl",)).checked(here).rivals()
    everyone = cuda_options(SMALL, compare="all").checked(here)
    assert everyone.rivals() == ([], dict.fromkeys(rivals.RIVALS, "reason; next step"))
    only_threads = cuda_options(SMALL, compare="all", mode="threads").checked(here)
    assert list(only_threads.rivals()[1]) == ["torch"]


def test_why_not_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    dist = torch.distributed
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert "was built without NCCL; install a build with CUDA" in nccl.why_not()
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for version, reason in (
        ((2, 29, 7), "NCCL 2.29.7 refuses two ranks on a GPU; it takes 2.30: pip install -U nvidia-nccl-cu13"),
        ((2, 30, 3), ""),
        ((3, 0, 0), ""),
    ):
        monkeypatch.setattr(torch.cuda.nccl, "version", lambda version=version: version)
        assert nccl.why_not() == reason


def test_symm_mem_operators_take_what_they_are_given() -> None:
    """Their schemas are registered in a torch without CUDA too."""
    torch = pytest.importorskip("torch")
    assert symm_mem.why_not() == ""
    for in_place, names in symm_mem.VARIANTS.items():
        for name in names:
            schema = getattr(torch.ops.symm_mem, name).default._schema
            given = ["Tensor", "str", "str"] if in_place else ["Tensor", "str", "str", "Tensor"]
            assert [str(argument.type) for argument in schema.arguments] == given
            assert schema.arguments[-1 if not in_place else 0].alias_info.is_write


def test_settings_of_rivals() -> None:
    assert rivals.RIVALS["symm_mem"].settings == {"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1"}
    assert rivals.RIVALS["nccl"].settings == {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
    assert not rivals.RIVALS["torch"].settings
    assert not rivals.RIVALS["gloo"].settings


# ---- Rounds, plans and rows ----


class Told:
    """Groups that measure nothing: a call of a rival fails in round `fails_in`, from 1."""

    def __init__(self, fails_in: int = 0) -> None:
        self.fails_in, self.seen, self.failed = fails_in, list[str](), False

    def measure(self, case: CudaCase, average: Any) -> Measured | None:
        self.seen.append(case.side)
        self.failed |= case.lib != "dcomm" and self.seen.count(case.side) == self.fails_in
        return Measured([1.0], 0) if self.has(case) else None

    def has(self, case: CudaCase) -> bool:
        return case.lib == "dcomm" or not self.failed


def test_rounds_go_on_without_a_rival_that_fails_and_forget_it() -> None:
    ours = CudaCase(count=1, calls=1, batches=1, mode="processes")
    cases = [ours, replace(ours, mode="", lib="gloo")]
    told: list[str] = []
    for fails_in, lengths in ((0, [3, 3]), (2, [3, 0])):
        groups: Any = Told(fails_in)
        options = CudaOptions(replace(SMALL, rounds=3))
        results, num_rounds = run_module._rounds(options, groups, cases, lambda share, text: told.append(text))
        assert [len(found) for found in results] == lengths
        assert num_rounds == 3
        assert groups.seen == ["processes", "gloo"] * 3  # all in turn
    assert "round 3 of 3: 0 s\n" in told
    late = CudaOptions(replace(SMALL, rounds=3, max_seconds=1e-9))
    some: Any = Told()
    assert run_module._rounds(late, some, cases, lambda share, text: None)[1] == 1


def test_plan() -> None:
    options = CudaOptions(replace(SMALL, ranks=4, max_bytes=64 << 20, factor=1 << 20), compare=tuple(rivals.RIVALS))
    cases = plan(options, list(rivals.RIVALS))
    for case in cases:
        assert case.buffers == 1
        assert case.calls == case.chain if case.in_place else case.calls in (2, 20)
        assert case.batches * case.calls >= 4
    theirs = {(case.lib, case.variant, case.timing, case.in_place) for case in cases if case.lib != "dcomm"}
    assert ("gloo", "1t", "graph", True) not in theirs  # it blocks the host
    assert ("gloo", "2t", "events", True) in theirs
    assert {one[3] for one in theirs if one[0] == "nccl"} == {True}
    assert ("symm_mem", "one_shot_all_reduce_out", "graph", False) in theirs
    averages = plan(replace(options, base=replace(options.base, ops=("avg",))), list(rivals.RIVALS))
    assert {case.lib for case in averages} == {"dcomm", "nccl"}


def test_rows_take_the_fastest_right_variant() -> None:
    ours = CudaCase(count=1000, calls=1, batches=1, mode="threads")
    stack = CudaCase(count=1000, calls=1, batches=1, lib="torch", variant="stack")
    cases = [ours, stack, replace(stack, variant="wrong"), replace(stack, timing="events"), replace(stack, lib="gloo")]
    results = [[Measured([us], wrong)] for us, wrong in ((10.0, 0), (30.0, 0), (1.0, 5), (20.0, 0), (2.0, 0))]
    rows = make_rows(cases, results, 2, 4e9)
    assert rows[0]["rivals"] == {"torch": {"p50_us": 20.0, "variant": "stack", "timing": "events", "ratio": 2.0}}
    assert rows[0]["floor_us"] == 4.0
    assert rows[0]["percent_of_floor"] == 40.0
    assert make_rows(cases[:2], [results[0], []], 2, 4e9)[0].get("rivals") is None


def test_wrong_rivals_are_told_and_do_not_fail_the_run() -> None:
    ours = CudaCase(count=1000, calls=1, batches=1, mode="threads")
    theirs = CudaCase(count=1000, calls=1, batches=1, lib="torch", variant="wrong")
    rows = make_rows([ours, theirs], [[Measured([1.0], 0)], [Measured([1.0], 5)]], 2, 4e9)
    found = {"rows": rows, "num_rounds": 5}
    assert report.exit_status(found) == 0
    assert _num_wrong_of_cpu(found) == 5
    assert "# torch: 5 wrong elements; those variants are not compared" in [line.text for line in report.footer(found)]


def test_tensors_of_every_dtype_come_back_as_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchDevice's own conversions, with "cuda" taken for the CPU."""
    pytest.importorskip("torch")
    from pretend_cuda import pretend_cuda

    with pretend_cuda(monkeypatch):
        device = torch_engine.TorchDevice.__new__(torch_engine.TorchDevice)
        device._torch = importlib.import_module("torch")
        for dtype, storage in (("float32", "float32"), ("float16", "float16"), ("bfloat16", "uint16")):
            host = np.arange(1, 8).astype(storage)
            array, other = device.empty(7, dtype), device.empty(7, dtype)
            device.write(array, host)
            device.copy(other, array)
            assert device.read(other).dtype == host.dtype
            assert np.array_equal(device.read(other), host)
            device.clear(other)
            assert set(device.read(other).view(np.uint8).tolist()) == {255}
            assert np.array_equal(device.read(array), host)
        calls: list[int] = []
        assert len(device.times_us(lambda: calls.append(1), 3, lambda: calls.append(0), 0.1)) == 3
        assert calls == [0, 1] * 3
