"""recommend() and HookState(policy="auto"): what is chosen given the times, by all ranks alike, and that it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rank_processes import process_values  # noqa: E402
from rank_threads import run_threads  # noqa: E402

import dcomm.torch  # noqa: E402
from dcomm.torch.recommendation import Recommendation, SizeVerdict, buckets_of, choose  # noqa: E402

SCRIPT = Path(__file__).with_name("recommendation_ranks.py")
ENV = {"GLOO_SOCKET_IFNAME": "lo"}
GROUP = {"group": 1.0, "dcomm": 0.98, "float16": 0.97}
DCOMM = {"group": 10.0, "dcomm": 1.0, "float16": 0.97}
NEITHER = "dcomm is not clearly faster, compressing does not pay"
WIRE = {"group": 10.0, "dcomm": 3.0, "float16": 1.0}


@pytest.mark.parametrize(
    ("times", "choice", "reason"),
    [
        (GROUP, "group", NEITHER),
        (DCOMM, "dcomm", "compressing does not pay"),
        (WIRE, "float16", "compressing pays"),
        ({"group": 2.0, "dcomm": 3.0, "float16": 1.0}, "float16", "compressing pays"),
        (
            {"group": 2.0, "dcomm": 3.0, "float16": 1.95},
            "group",
            "dcomm is not clearly faster, compressing does not pay",
        ),
        ({"dcomm": 3.0, "float16": 4.0, "bfloat16": 1.0}, "bfloat16", "compressing pays"),
        ({"dcomm": 3.0}, "dcomm", "the fastest"),
        ({"group": 3.0, "dcomm": 1.0}, "dcomm", "the fastest"),
    ],
)
def test_choices(times: dict[str, float], choice: str, reason: str) -> None:
    assert choose(times) == (choice, reason)


CASES: dict[str, dict[str, Any]] = {
    "dcomm": {"times": {"small": DCOMM, "large": DCOMM}, "hook": "fp16", "views": False},
    "mixed": {"times": {"small": GROUP, "large": WIRE}, "hook": "fp16", "views": True},
    "group": {"times": {"small": GROUP, "large": GROUP}, "hook": "fp16", "views": False},
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    args = {"folder": str(tmp_path_factory.mktemp("two")), "cases": CASES}
    return process_values(2, SCRIPT, "run", args, env=ENV, timeout=100)


@pytest.mark.parametrize("name", CASES)
def test_each_size_goes_its_way(two_ranks: list[Any], name: str) -> None:
    times = CASES[name]["times"]
    expected = {True: choose(times["small"])[0], False: choose(times["large"])[0]}
    has_wire = "float16" in expected.values()
    for value in (values[name] for values in two_ranks):
        assert len({int(count) for count in value["choices"]}) > 1  # several sizes
        assert value["choices"] == {str(n): expected[int(n) < 4000] for n in map(int, value["choices"])}
        assert value["same"] == (not has_wire)
        assert (value["worst"] > 1e-5) == has_wire
        assert value["worst"] < 2e-3
        assert value["pays"] == has_wire
        # Only buckets that are dcomm's are its operations; where all are, one more lends memory to large gradients.
        assert value["last_step"] == sum(expected[count < 4000] != "group" for count in value["sizes"])
    (line,) = two_ranks[0][name]["lines"]
    print(line)
    assert line.startswith("dcomm: policy='auto': 2 ranks, the group is gloo, medians of 5 rounds: ")
    assert two_ranks[1][name]["lines"] == []


def test_recommend(two_ranks: list[Any]) -> None:
    for value in (values["ask"] for values in two_ranks):
        print(value["texts"]["communicator"])
        assert value["ddp"] == value["real"]  # the buckets that DDP has really made
        assert value["tried"] == {
            "group": ["group", "dcomm", "float16"],
            "communicator": ["group", "dcomm", "float16", "bfloat16"],
            "no wire": ["group", "dcomm"],
            "ddp": ["group", "dcomm", "float16"],
        }
        assert all("the group is gloo" in text and "\n" not in text for text in value["texts"].values())


def test_without_a_process_group() -> None:
    def body(comm: dcomm.Communicator) -> Recommendation:
        return dcomm.torch.recommend(torch.nn.Linear(100, 100), comm)

    first, second = run_threads(2, body)
    assert first == second
    assert list(first.verdicts[0].times_ms) == ["dcomm", "float16"]
    assert "no process group to compare with" in str(first)


def test_texts_and_the_nearest_size() -> None:
    verdicts = tuple(
        SizeVerdict(count, "float32", WIRE, choice, "why") for count, choice in ((1 << 20, "a"), (10, "b"))
    )
    found = Recommendation(2, "gloo", verdicts)
    assert str(verdicts[0]) == "4 MiB: dcomm a (group 10 ms, dcomm 3 ms, dcomm float16 1 ms; why)"
    assert [found.choice(count) for count in (1 << 20, 900_000, 5)] == ["a", "a", "b"]
    assert found.choice(10, "float64") == "group"  # nothing was measured


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model is a list: expected a torch\.nn\.Module"):
        dcomm.torch.recommend([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wire_dtype='int8'"):
        dcomm.torch.recommend(torch.nn.Linear(2, 2), allow_wire=("int8",))
    with pytest.raises(ValueError, match="there is no process group"):
        dcomm.torch.recommend(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="comm_or_group is a str"):
        dcomm.torch.recommend(torch.nn.Linear(2, 2), "gloo")
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        buckets_of(torch.nn.Linear(2, 2).requires_grad_(False))
