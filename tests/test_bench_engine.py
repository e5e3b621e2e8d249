"""The parts of the benchmark engine: exact inputs, what each collective must give, peers, figures."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dcomm import _core
from dcomm.bench import exact, mpi
from dcomm.bench.buffers import Sequence
from dcomm.bench.calls import dcomm_call, memory_pass
from dcomm.bench.case import Case, Measured
from dcomm.bench.collectives import COLLECTIVES, bus_factor, input_count, pieces
from dcomm.bench.figures import check_figures
from dcomm.bench.options import Options
from dcomm.bench.plan import counts, mpi_cases, nbytes_of, plan, sizes
from dcomm.bench.ranks import RankError, Ranks
from dcomm.bench.rounds import Plan, chosen_rounds
from dcomm.bench.summary import summarise

Array = npt.NDArray[Any]
REDUCERS: dict[str, Any] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def reduce_in_order(values: list[Array], op: str) -> Array:
    """Rank after rank, each partial result rounded to the type, as a ring would."""
    total = values[0]
    for value in values[1:]:
        total = REDUCERS["sum" if op == "avg" else op](total, value)
    return total / total.dtype.type(len(values)) if op == "avg" else total


@pytest.mark.parametrize("world_size", [2, 3, 4, pytest.param(8, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("dtype", "op", "wanted"),
    [
        *((dtype, op, 16) for dtype in ("float64", "float32", "float16") for op in ("sum", "avg", "min", "max")),
        *((dtype, "prod", 1) for dtype in ("float64", "float32", "float16", "int32", "uint8")),
        *(
            (dtype, op, 16)
            for dtype in ("int8", "uint8", "int32", "int64")
            for op in ("sum", "min", "max", "band", "bor")
        ),
        *((dtype, "bxor", 1) for dtype in ("int8", "int64")),
        ("complex64", "sum", 4),
        ("complex128", "avg", 4),
    ],
)
def test_results_are_exact_in_every_order(world_size: int, dtype: str, op: str, wanted: int) -> None:
    chain = exact.exact_chain(world_size, wanted, dtype, op)
    assert chain >= 1
    made = exact.make(dtype, dtype, op, world_size, chain)
    assert made.reduced is not None
    assert len({period.tobytes() for period in made.inputs}) == world_size  # no rank is taken for another
    for order in (made.inputs, made.inputs[::-1], made.inputs[1:] + made.inputs[:1]):
        values = list(order)
        with np.errstate(over="raise" if op != "prod" else "ignore"):
            for _ in range(chain):
                values = [reduce_in_order(values, op)] * world_size
        assert values[0].dtype == made.reduced.dtype == np.dtype(dtype)
        assert values[0].tobytes() == made.reduced.tobytes()


@pytest.mark.parametrize("op", ["sum", "prod", "min", "max", "bxor"])
def test_bool_is_reduced_by_its_definition(op: str) -> None:
    made = exact.make("bool", "bool", op, 4, 1)
    stacked = np.array(made.inputs)
    right = {
        "sum": stacked.any(axis=0),
        "max": stacked.any(axis=0),
        "prod": stacked.all(axis=0),
        "min": stacked.all(axis=0),
        "bxor": stacked.sum(axis=0) % 2 == 1,
    }[op]
    assert np.array_equal(made.reduced, right)
    assert 0 < right.sum() < right.size
    for rank in range(4):  # each rank is missed where it is left out
        others = np.delete(stacked, rank, axis=0)
        without = {"sum": others.any(axis=0), "max": others.any(axis=0), "prod": others.all(axis=0)}
        assert not np.array_equal(without.get(op, others.all(axis=0)), right)


def test_a_reduce_in_place_is_not_repeated_on_one_buffer() -> None:
    """Its root alone has the result, so that a second one sums something else."""
    for collective, chain in (("reduce", 1), ("all_reduce", 16)):
        options = Options(collective=collective, min_bytes=64, max_bytes=64, buffers=1)
        assert {case.chain for case in plan(options) if case.in_place} == {chain}


def test_what_cannot_be_exact_is_refused() -> None:
    assert exact.exact_chain(64, 1, "bfloat16") == 1
    with pytest.raises(ValueError, match="60 calls of sum on 2 ranks are not exact in float16"):
        exact.make("float32", "float16", "sum", 2, 60)


def test_a_sequence_repeats_its_period_and_sees_every_wrong_bit() -> None:
    period = np.arange(101, dtype=np.int32)
    count = (1 << 18) + 77
    target = np.zeros(count, np.int32)
    sequence = Sequence(period)
    sequence.fill(target, 5)
    assert np.array_equal(target, (np.arange(count) + 5) % 101)
    assert sequence.num_wrong(target, 5) == 0
    target[count - 1] ^= 1
    target[0] ^= 1
    assert sequence.num_wrong(target, 5) == 2
    assert sequence.num_wrong(target, 6) > count // 2


def uneven_result(ins: list[Array], rank: int) -> Array:
    """Every rank deals out its input: nothing for itself, two blocks for the next rank, one for each of the others."""
    n = len(ins)
    found = []
    for source, x in enumerate(ins):
        blocks = list(np.split(x, n))
        for peer in range(n):
            num_blocks = 0 if peer == source else 2 if peer == (source + 1) % n else 1
            dealt = [blocks.pop(0) for _ in range(num_blocks)]
            if peer == rank:
                found += dealt
        assert not blocks
    return np.concatenate(found)


def model(name: str, ins: list[Array], root: int) -> list[Array]:
    """Every collective's result on every rank, written down in NumPy."""
    n, nothing = len(ins), np.zeros(0, np.int64)
    total = np.sum([x for x in ins if x.size], axis=0)
    mine = [root == rank for rank in range(n)]
    return {
        "all_reduce": lambda: [total] * n,
        "reduce_scatter": lambda: list(np.split(total, n)),
        "all_gather": lambda: [np.concatenate(ins)] * n,
        "broadcast": lambda: [ins[root]] * n,
        "reduce": lambda: [total if own else nothing for own in mine],
        "gather": lambda: [np.concatenate(ins) if own else nothing for own in mine],
        "scatter": lambda: list(np.split(ins[root], n)),
        "all_to_all": lambda: [np.concatenate([np.split(x, n)[rank] for x in ins]) for rank in range(n)],
        "all_to_all_uneven": lambda: [uneven_result(ins, rank) for rank in range(n)],
        "sendrecv": lambda: [ins[rank - 1] for rank in range(n)],
        "sendrecv_any": lambda: [ins[rank - 1] for rank in range(n)],
        "barrier": lambda: [nothing] * n,
    }[name]()


@pytest.mark.parametrize("name", COLLECTIVES)
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_pieces_of_a_result_are_those_of_the_collective(name: str, world_size: int) -> None:
    count, root = 7, world_size - 1
    sequences = [np.arange(100, dtype=np.int64) * (rank + 1) + 1000 * rank for rank in range(world_size)]
    ins = [sequence[: input_count(name, count, rank, root, world_size)] for rank, sequence in enumerate(sequences)]
    reduced = np.sum(sequences, axis=0)
    for rank, right in enumerate(model(name, ins, root)):
        parts = [
            (reduced if piece.source is None else sequences[piece.source])[piece.start : piece.start + piece.length]
            for piece in pieces(name, count, rank, root, world_size)
        ]
        assert np.array_equal(np.concatenate([*parts, np.zeros(0, np.int64)]), right)


def test_bus_bandwidth_factors_are_those_of_nccl_tests() -> None:
    found = {name: bus_factor(name, 4) for name in COLLECTIVES}
    quarter = dict.fromkeys(("reduce_scatter", "all_gather", "gather", "scatter", "all_to_all"), 0.75)
    ones = dict.fromkeys(("broadcast", "reduce", "all_to_all_uneven", "sendrecv", "sendrecv_any"), 1.0)
    assert found == {**quarter, **ones, "all_reduce": 1.5, "barrier": 0.0}


def test_sizes_and_counts() -> None:
    assert sizes(Options(min_bytes=8, max_bytes=64, factor=2)) == [8, 16, 32, 64]
    assert sizes(Options(min_bytes=8, max_bytes=30, step_bytes=10)) == [8, 18, 28]
    scattered = Options("all_gather", ranks=4, min_bytes=8, max_bytes=64, factor=2)
    assert counts(scattered, "float32") == [1, 2, 4]  # 8 and 16 bytes are both one element of each rank
    assert nbytes_of(Case(2, 1, 1, "all_gather"), 4) == 32
    assert nbytes_of(Case(2, 1, 1, "broadcast"), 4) == 8


def test_every_call_of_a_batch_has_a_buffer_until_memory_says_no() -> None:
    cases = {(case.count * 4, case.in_place): case for case in plan(Options(factor=8))}
    assert (cases[8, False].buffers, cases[8, False].calls) == (16, 16)
    assert (cases[16 << 20, True].buffers, cases[16 << 20, True].calls) == (4, 4)
    assert (cases[128 << 20, False].buffers, cases[128 << 20, False].calls) == (1, 1)  # a result is seen once
    assert (cases[128 << 20, True].buffers, cases[128 << 20, True].calls) == (1, 4)
    one = {case.count * 4: case for case in plan(Options(factor=8, buffers=1, in_place_only=True))}
    assert (one[8].calls, one[8].chain, one[8].batches) == (16, 16, 25)
    assert (one[2 << 20].calls, one[2 << 20].chain, one[2 << 20].batches) == (4, 4, 3)
    assert all(case.lib == "mpi" and case.level == "c" for case in mpi_cases(list(one.values())))


class Recorder:
    """Has the signatures of the communicator and says what was called."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.called: list[tuple[Any, ...]] = []

    def all_reduce(
        self, x: Any, op: str = "sum", *, out: Any = None, wire_dtype: Any = None, algo: str = "auto"
    ) -> None:
        self.called.append(("all_reduce", x, op, out, wire_dtype, algo))

    def reduce_scatter(self, x: Any, op: str = "sum", *, out: Any = None) -> None:
        self.called.append(("reduce_scatter", x, op, out))

    def all_gather(self, x: Any, *, out: Any = None) -> None:
        self.called.append(("all_gather", x, out))

    def broadcast(self, x: Any, src: int = 0) -> None:
        self.called.append(("broadcast", x, src))

    def reduce(self, x: Any, op: str = "sum", *, dst: int = 0, out: Any = None) -> None:
        self.called.append(("reduce", x, op, dst, out))

    def gather(self, x: Any, *, dst: int = 0, out: Any = None) -> None:
        self.called.append(("gather", x, dst, out))

    def scatter(self, x: Any, *, src: int = 0, out: Any = None) -> None:
        self.called.append(("scatter", x, src, out))

    def all_to_all(self, x: Any, *, out: Any = None, **counts: list[int]) -> None:
        self.called.append(("all_to_all", x, out, *counts.values()))

    def send(self, x: Any, dst: int, *, tag: int = 0) -> None:
        self.called.append(("send", x, dst))

    def recv(self, x: Any, src: int, *, tag: int = 0) -> None:
        self.called.append(("recv", x, src))

    def recv_any(self, x: Any, *, tag: int = 0) -> int:
        self.called.append(("recv_any", x))
        return 0

    def barrier(self) -> None:
        self.called.append(("barrier",))


@pytest.mark.parametrize(
    ("case", "rank", "right"),
    [
        (Case(1, 1, 1, wire="float16", algo="ring"), 0, [("all_reduce", "x", "sum", None, "float16", "ring")]),
        (Case(1, 1, 1, redop="avg", in_place=False), 0, [("all_reduce", "x", "avg", "out", None, "auto")]),
        (Case(1, 1, 1, "reduce_scatter", in_place=False), 0, [("reduce_scatter", "x", "sum", "out")]),
        (Case(1, 1, 1, "all_gather", in_place=False), 0, [("all_gather", "x", "out")]),
        (Case(1, 1, 1, "broadcast", root=2), 0, [("broadcast", "x", 2)]),
        (Case(1, 1, 1, "reduce", root=0, in_place=False), 0, [("reduce", "x", "sum", 0, "out")]),
        (Case(1, 1, 1, "reduce", root=0, in_place=False), 1, [("reduce", "x", "sum", 0, None)]),
        (Case(1, 1, 1, "gather", root=1, in_place=False), 1, [("gather", "x", 1, "out")]),
        (Case(1, 1, 1, "gather", root=1, in_place=False), 0, [("gather", "x", 1, None)]),
        (Case(1, 1, 1, "scatter", root=1, in_place=False), 1, [("scatter", "x", 1, "out")]),
        (Case(1, 1, 1, "scatter", root=1, in_place=False), 0, [("scatter", None, 1, "out")]),
        (Case(1, 1, 1, "all_to_all", in_place=False), 0, [("all_to_all", "x", "out")]),
        (Case(1, 1, 1, "sendrecv", in_place=False), 0, [("send", "x", 1), ("recv", "out", 2)]),
        (Case(1, 1, 1, "sendrecv", in_place=False), 1, [("recv", "out", 0), ("send", "x", 2)]),
        (Case(1, 1, 1, "sendrecv_any", in_place=False), 1, [("recv_any", "out"), ("send", "x", 2)]),
        (
            Case(5, 1, 1, "all_to_all_uneven", in_place=False),
            1,
            [("all_to_all", "x", "out", [5, 0, 10], [10, 0, 5])],
        ),
        (Case(0, 1, 1, "barrier"), 0, [("barrier",)]),
    ],
)
def test_calls_are_those_of_the_communicator(case: Case, rank: int, right: list[tuple[Any, ...]]) -> None:
    comm = Recorder(rank, 3)
    dcomm_call(comm, case, "x", "out")()
    assert comm.called == right


def test_the_rank_that_recv_any_names_is_checked() -> None:
    case = Case(1, 1, 1, "sendrecv_any", in_place=False)
    with pytest.raises(RankError, match="rank 0 has sent: expected 2"):
        dcomm_call(Recorder(0, 3), case, "x", "out")()


def test_the_time_of_a_batch_is_averaged_as_asked() -> None:
    with Ranks(2) as ranks:
        ranks.receive()
        case = Case(2, 4, 3)
        assert len(ranks.measure(case, lambda times: float(len(times))).us) == 3
        assert ranks.measure(case, lambda times: float(len(times))).us == [2.0] * 3


def test_the_core_times_what_it_is_told(tmp_path: Path) -> None:
    with Ranks(2) as ranks:
        ranks.receive()
        for case in (Case(1000, 16, 5, level="c"), Case(1000, 8, 5, level="c", buffers=4, in_place=False)):
            found = ranks.measure(case)
            assert found.num_wrong == 0
            assert len(found.us) == 5
            assert all(0 < us < 1e6 for us in found.us)
    with pytest.raises(ValueError, match="at least one buffer"):
        comm = _core.Communicator.of_threads(1)[0]
        _core.time_all_reduce(comm, [], 0, 0, 8, 1, 0, 0, 0, 0, 1, 1, 0)


def measured(case: Case, us: float, rounds: int = 5) -> tuple[Case, list[Measured]]:
    return case, [Measured([us, us, us * 3], 0)] * rounds


def test_rows_have_their_peers_beside_them() -> None:
    ours = Case(2, 16, 3, level="c")
    other = replace(ours, count=4)
    found = [
        measured(ours, 2.0),
        measured(other, 1.0),
        measured(replace(ours, lib="gloo", variant="1t", threads=1, level="python"), 50.0),
        measured(replace(ours, lib="gloo", variant="2t", threads=2, level="python"), 40.0),
        measured(replace(ours, lib="mpi", variant="Open MPI 4.1.4, default"), 3.0),
        measured(replace(ours, lib="mpi", variant="Open MPI 4.1.4, vader-cma"), 1.0),
        measured(replace(ours, lib="mpi", variant="MPICH 4.0.2, default"), 8.0),
    ]
    rows = summarise([case for case, _ in found], [results for _, results in found], [[0, 2, 4]] * len(found), 2)
    assert rows[0]["p50_us"] == 2.0
    assert rows[0]["time_us"] == pytest.approx(10 / 3, abs=1e-4)
    assert (rows[0]["gloo_us"], rows[0]["gloo_threads"], rows[0]["ratio"]) == (40.0, 2, 20.0)
    assert rows[0]["mpi"]["Open MPI 4.1.4"] == {"p50_us": 1.0, "settings": "vader-cma"}
    assert (rows[0]["best_mpi"], rows[0]["mpi_ratio"]) == ("Open MPI 4.1.4", 0.5)
    assert "mpi" not in rows[1]
    assert "ratio" not in rows[1]


def test_a_round_has_a_segment_for_each_size_and_each_mpi() -> None:
    sizes = [Case(2, 16, 3), Case(2, 16, 3, level="c"), Case(64, 16, 3), Case(128, 16, 3), Case(128, 16, 3, lib="gloo")]
    mpi: Any = [(None, [Case(2, 16, 3), Case(64, 16, 3)])] * 2
    ranks: Any = None
    plan = Plan(ranks, sizes, mpi, "max")
    assert plan.segments == [0, 0, 1, 2, 2, 3, 3, 4, 4]


def test_only_what_was_measured_in_one_state_counts() -> None:
    stamps = [{"segments": names} for names in (["near", "far"], ["near", "near"], ["mixed", "near"], ["far", "mixed"])]
    assert chosen_rounds(stamps) == ("near", [[0, 1], [1, 2]])
    assert chosen_rounds([{"segments": ["mixed"]}] * 2) == ("mixed", [[0, 1]])
    case = Case(2, 16, 3)
    found = [Measured([us], 0) for us in (1.0, 9.0, 2.0)]
    counted, none = summarise([case, replace(case, count=4)], [found, found], [[1], []], 2)
    assert (counted["p50_us"], counted["rounds_counted"]) == (9.0, 1)
    assert (none["p50_us"], none["rounds_counted"]) == (2.0, 0)


def test_figures_are_missed_where_they_are() -> None:
    def report(factor: float) -> dict[str, Any]:
        rows = []
        for exponent in range(9):
            nbytes = 8 << (3 * exponent)
            base = {"lib": "dcomm", "nbytes": nbytes, "wire": None, "array": "numpy", "level": "python"}
            peer = {"best_mpi": "M", "mpi": {"M": {"p50_us": 1.0}}}
            us = 0.9 * factor
            rows += [{**base, "p50_us": us, "p90_us": us, "ratio": 200 / factor}]
            rows += [{**base, "wire": "float16", "p50_us": 0.5 * factor**2, "ratio": 200.0}]
            rows += [{**base, "level": "c", "p50_us": 0.15 * factor**2, **peer}]
        rows += [{**rows[0], "array": "torch", "p50_us": 1.4 * factor}]
        return {"ranks": 2, "rounds": [{"flag_ns": [100.0, 110.0]}], "rounds_used": [0], "rows": rows}

    good, bad = check_figures(report(1.0)), check_figures(report(50.0))
    assert all(figure["reached"] for figure in good)
    assert not any(figure["reached"] for figure in bad)
    texts = [figure["figure"] for figure in good]
    assert len(texts) == 6 + 4 + 3 + 9
    assert texts[0] == "8 B: at least 100 times as fast as gloo"
    assert "8 B from C++: p50 at most 1.5 cache-line round trips" in texts
    assert "128 MiB from C++: not slower than the best MPI" in texts
    four = check_figures({**report(1.0), "ranks": 4})
    assert len(four) == 6 + 9 + 6
    assert all(figure["reached"] for figure in four)


# ---- The MPI program, with an MPI of one rank that this file makes -----------------------------------------

STUB = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef int MPI_Datatype, MPI_Op, MPI_Comm;
enum { MPI_COMM_WORLD, MPI_DATATYPE_NULL = 0, MPI_OP_NULL = 0, MPI_LONG = 8 };
enum { MPI_FLOAT = 4, MPI_DOUBLE = 8, MPI_INT8_T = 1, MPI_UINT8_T = 1, MPI_INT32_T = 4, MPI_INT64_T = 8 };
enum { MPI_SUM, MPI_PROD, MPI_MIN, MPI_MAX, MPI_BAND, MPI_BOR, MPI_BXOR };
#define MPI_IN_PLACE ((void*)0)
static int MPI_Init(int* c, char*** v) { return c == 0 && v == 0; }
static int MPI_Finalize(void) { return 0; }
static int MPI_Abort(MPI_Comm c, int code) { exit(code + c); }
static int MPI_Comm_rank(MPI_Comm c, int* rank) { return *rank = c; }
static int MPI_Barrier(MPI_Comm c) { return c; }
static int MPI_Type_size(MPI_Datatype t, int* size) { *size = t; return 0; }
static int MPI_Reduce(const void* in, void* out, int n, MPI_Datatype t, MPI_Op o, int root, MPI_Comm c) {
  memcpy(out, in, (size_t)(n * t));
  return o + root + c;
}
static int MPI_Allreduce(const void* in, void* out, int n, MPI_Datatype t, MPI_Op o, MPI_Comm c) {
  if (in != MPI_IN_PLACE) memcpy(out, in, (size_t)(n * t));
  if (getenv("STUB_WRONG") && n > 100) ((char*)out)[t * 50] ^= 1;
  return o + c;
}
"""


@pytest.fixture
def stub_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH has an Open MPI whose ranks are all rank 0."""
    (tmp_path / "mpi.h").write_text(STUB)
    scripts = {
        "mpicc.openmpi": f'exec cc -I{tmp_path} "$@"',
        "mpirun.openmpi": '[ "$1" = --version ] && echo "mpirun (Open MPI) 9.8.7" && exit\n'
        'while [ "$1" != -n ]; do shift; done; shift 2; exec "$@"',
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("I_MPI_ROOT", raising=False)
    return tmp_path


def test_the_mpi_program_checks_every_element(stub_mpi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (library,) = [library for library in mpi.find_libraries() if library.version == "9.8.7"]
    monkeypatch.setattr(mpi, "find_libraries", lambda: [library])
    with mpi.Peers(1, timeout_s=30) as peers:
        (variant,) = peers.variants
        assert variant.title == "Open MPI 9.8.7, default"
        cases = [
            Case(count, 4, 3, lib="mpi", level="c", dtype=dtype, redop=op, in_place=in_place, buffers=4)
            for count in (2, 5000)
            for dtype, op in (("float32", "sum"), ("int64", "bxor"), ("uint8", "max"))
            for in_place in (True, False)
        ]
        found = peers.measure(variant, peers.cases(variant, cases))
        assert [(len(one.us), one.num_wrong) for one in found] == [(3, 0)] * len(cases)
        monkeypatch.setenv("STUB_WRONG", "1")
        wrong = [one.num_wrong for one in peers.measure(variant, cases)]
        assert wrong == [0] * 6 + [4 * (3 + 1)] * 6  # one element, in each buffer of each batch, warm-up too
        monkeypatch.setattr(peers, "_inputs", lambda case: (Path("/nowhere"), 9))
        with pytest.raises(mpi.MpiError, match=r"exit status 3: .*cannot read: /nowhere"):
            peers.measure(variant, cases)


def test_an_mpi_that_hangs_is_ended(stub_mpi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi, "find_libraries", lambda: [mpi.Library("Open MPI", "9", ("cc", f"-I{stub_mpi}"), "sleep")])
    with mpi.Peers(1, timeout_s=0.5) as peers, pytest.raises(mpi.MpiError, match="no end within"):
        peers._run(peers.variants[0], ["sleep", "60"])


def test_without_an_mpi_it_says_what_to_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dcomm", "bench", "all_reduce", "--compare", "mpi"]
    clean = {key: value for key, value in os.environ.items() if key != "I_MPI_ROOT"}
    done = subprocess.run(
        command, env={**clean, "PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "dcomm bench: --compare mpi: no MPI found; run benchmarks/install_peers.sh\n"


@pytest.fixture
def make_tables() -> Any:
    spec = importlib.util.spec_from_file_location("make_tables", Path(__file__).parents[1] / "tools" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


_MEASURED_ON = {"ranks": 2, "machine": {"cpu": "C", "cores": 2, "kernel": "6", "isa": "avx2"}, "versions": {}}
_MEASURED_ON |= {"rounds": [{}], "rounds_used": [0], "state": "near", "date": "D", "commit": "c", "command": "x"}


def test_a_mpi_table_is_made_of_the_rows(make_tables: Any) -> None:
    case = Case(2, 16, 3, level="c")
    peers = [replace(case, lib="mpi", variant=f"{name}, default") for name in ("Open MPI 4", "MPICH 4")]
    rows = summarise([case, *peers], [[Measured([us], 0)] for us in (1.0, 3.0, 2.0)], [[0]] * 3, 2)
    text = list(make_tables.mpi_table({**_MEASURED_ON, "rows": rows}))
    assert text[0] == "| message | dcomm | p90 | MPICH 4 | Open MPI 4 | best MPI / dcomm | #wrong |"
    assert text[2] == "| 8 B | 1 us | 1 us | 2 us (default) | 3 us (default) | 2.00x | 0 |"
    with pytest.raises(make_tables.TableError, match="--level c --compare mpi"):
        list(make_tables.mpi_table({**_MEASURED_ON, "rows": []}))


def test_a_table_of_wires_compares_each_with_the_wider_one(make_tables: Any) -> None:
    cases, measured = [], []
    for count, times in ((1 << 8, (8.0, 9.0, 9.0)), (1 << 18, (600.0, 400.0, 380.0))):
        for wire, us in zip((None, "float16", "fp8_block32"), times, strict=True):
            cases.append(Case(count, 16, 3, wire=wire))
            measured.append(Measured([us], 0))
    text = list(
        make_tables.wires_table({**_MEASURED_ON, "rows": summarise(cases, [[one] for one in measured], [[0]] * 6, 2)})
    )
    assert text[0] == "| message | float32 | float16 | fp8_block32 | float16 over float32 | fp8_block32 over float16 |"
    assert text[2] == "| 1 KiB | 8 us | 9 us | 9 us | 0.89x | 1.00x |"
    assert text[3] == "| 1 MiB | 600 us | 400 us | 380 us | 1.50x | 1.05x |"
    assert text[5] == "* float16 at least 1.2x as fast as float32 from 1 MiB on: reached, 1.50x at least."
    assert text[6] == "* fp8_block32 at least 1.1x as fast as float16 from 1 MiB on: not reached, 1.05x at least."
    with pytest.raises(make_tables.TableError, match="--wire none,float16,fp8"):
        list(make_tables.wires_table({**_MEASURED_ON, "rows": []}))


@pytest.mark.parametrize(
    ("ranks", "op", "chain"), [(2, "sum", 8), (3, "sum", 1), (4, "sum", 1), (5, "sum", 1), (4, "avg", 1)]
)
def test_inputs_for_fp8_wires_are_exact(ranks: int, op: str, chain: int) -> None:
    assert exact.exact_chain(ranks, 8, "fp8_block32", op) == chain
    made = exact.make("float32", "fp8_block32", op, ranks, chain)
    for values in (*made.inputs, made.reduced):
        significands = np.frexp(np.asarray(values))[0] * 16
        assert (significands == np.rint(significands)).all()
        assert np.abs(values).max() / np.abs(values).min() <= 2**14


@pytest.mark.parametrize("in_place", [False, True])
def test_a_pass_reads_and_writes_everything(in_place: bool) -> None:
    x = np.arange(1000, dtype=np.int32)
    before, out = x.copy(), x if in_place else np.zeros_like(x)
    memory_pass(x, out)()
    assert (out == ~before).all()
