"""`dcomm bench` as it is run: columns, last lines, exit status, and that each of its checks can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcomm.__main__ import main
from dcomm.bench.collectives import COLLECTIVES

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("-n", "2", "-e", "512", "-f", "64", "-N", "2")


def environment(**changes: str) -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}, **changes}


def run_bench(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dcomm", "bench", *arguments],
        env=environment(**changes),
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_columns_and_last_lines_are_those_of_nccl_tests() -> None:
    done = run_bench("all_reduce", *SMALL, "--wire", "none,float16", "--level", "python,c")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    heads = next(line for line in lines if "#wrong" in line).split()
    timing = ["time", "algbw", "busbw", "#wrong"]
    assert heads[:14] == ["#", "size", "count", "type", "redop", "root", *timing, *timing]
    assert heads[14:] == ["algo", "wire", "p50", "p99", "p50", "p99"]
    for expected in ("# machine ", "# versions dcomm", "# date ", "# round 2  cores "):
        assert any(line.startswith(expected) for line in lines), expected
    assert "# command  dcomm bench all_reduce -n 2 -e 512 -f 64 -N 2 --wire none,float16 --level python,c" in lines
    assert "# buffers  out of place and in place: 16 in 16 calls a batch from 8 B; average over ranks: max" in lines
    assert "# Out of bounds values : 0 OK" in lines

    rows = rows_of(done.stdout)
    assert [row[0] for row in rows] == ["8"] * 3 + ["512"] * 3
    assert [row[13:15] for row in rows[:3]] == [["auto", "-"], ["auto", "float16"], ["auto/c", "-"]]
    busbw = []
    for row in rows:
        assert row[2:5] == ["float32", "sum", "-1"]
        assert int(row[1]) * 4 == int(row[0])
        for time_us, algbw, of_bus, wrong, p50, p99 in (row[5:9] + row[15:17], row[9:13] + row[17:19]):
            # What rounding took from the printed time, and before that rounding to four digits.
            half_digit = 0.5 * 10.0 ** -len(time_us.partition(".")[2]) + 0.00005
            least, most = (int(row[0]) / (float(time_us) + sign * half_digit) / 1e3 for sign in (1, -1))
            assert least - 0.00506 <= float(algbw) <= most + 0.00506
            assert of_bus == algbw  # two ranks
            assert wrong == "0"
            assert 0 < float(p50) <= float(p99)
            busbw.append(int(row[0]) / float(time_us) / 1e3)
    last = next(line for line in lines if line.startswith("# Avg bus bandwidth    : "))
    assert float(last.rpartition(" ")[2]) == pytest.approx(sum(busbw) / len(busbw), rel=0.01, abs=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            (name, "-n", "3", "-b", "600", "-e", "600", "-N", "1"), marks=pytest.mark.long if number > 3 else ()
        )
        for number, name in enumerate(COLLECTIVES)
    ]
    + [("all_reduce", *SMALL, "--threads", "--level", "c,python"), ("reduce", *SMALL, "-r", "all", "-o", "all")]
    + [
        pytest.param(
            ("all_reduce", "-e", "64", "-f", "8", "-N", "1", "-d", "all", "--algo", "all"), marks=pytest.mark.long
        )
    ]
    + [
        pytest.param((name, "-n", "3", "-b", "60K", "-e", "60K", "-N", "1", "--algo", "all"), marks=pytest.mark.long)
        for name in ("reduce_scatter", "all_gather")
    ],
)
def test_right_results_of_everything(arguments: tuple[str, ...]) -> None:
    done = run_bench(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# Out of bounds values : 0 OK" in done.stdout.splitlines()
    assert ("ranks (threads)" in done.stdout) == ("--threads" in arguments)
    assert rows_of(done.stdout)


def test_json_has_what_the_table_has(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "out.json"
    done = run_bench("broadcast", *SMALL, "-r", "all", "-J", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["machine"]["cores"] >= 1
    assert report["collective"] == "broadcast"
    assert len(report["rounds"]) == 2
    assert [(row["nbytes"], row["root"]) for row in report["rows"]] == [(8, 0), (8, 1), (512, 0), (512, 1)]
    for row in report["rows"]:
        assert row["in_place"] is True
        assert row["num_wrong"] == 0
        assert 0 < row["min_us"] <= row["p50_us"] <= row["p99_us"]
        assert len(row["rounds_us"]) == 2
        assert row["busbw_gbps"] == row["algbw_gbps"]
    table = rows_of(done.stdout)
    assert [row[5:9] for row in table] == [["N/A"] * 4] * 4  # there is no broadcast out of place

    piped = run_bench("barrier", "-N", "1", "--json", "-")
    assert json.loads(piped.stdout)["rows"][0]["nbytes"] == 0


@pytest.mark.parametrize(
    ("arguments", "batch", "message"),
    [
        # Batch 1 and 2 touch the buffers, 3 to 28 are the 8-byte time before the first round.
        (("--level", "python"), "30", "# Out of bounds values : 1 FAILED"),
        (("--level", "python"), "1", "FAILED: 1 wrong elements in the largest all_reduce"),
        (("--level", "c"), "29", "# Out of bounds values : "),
    ],
)
def test_wrong_data_is_exit_status_1(arguments: tuple[str, ...], batch: str, message: str) -> None:
    done = run_bench("all_reduce", *SMALL, *arguments, DCOMM_BENCH_CORRUPT=batch)
    assert done.returncode == 1, done.stdout + done.stderr
    assert message in done.stdout + done.stderr
    if "Out of bounds" in message:
        assert "0 OK" not in done.stdout
        assert sum(int(row[8]) + int(row[12]) for row in rows_of(done.stdout)) > 0
    unseen = run_bench("all_reduce", *SMALL, *arguments, "-c", "0", DCOMM_BENCH_CORRUPT="30")
    assert unseen.returncode == 0  # -c 0 does not look
    assert {row[8] for row in rows_of(unseen.stdout)} == {"N/A"}


def test_a_killed_rank_is_exit_status_1() -> None:
    command = [sys.executable, "-m", "dcomm", "bench", "all_reduce", "-n", "3", "-e", "8", "--iters", "10000000"]
    started = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        end = time.monotonic() + 30
        while len(children.read_text().split()) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(2)
        os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
        said, complained = started.communicate(timeout=60)
    finally:
        started.kill()
        started.wait(30)
    assert started.returncode == 1, said + complained
    assert "FAILED: rank " in complained


def test_plot_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    done = run_bench("all_reduce", *SMALL, "--plot", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert path.stat().st_size > 10_000


def test_a_pass_over_memory_stands_beside_it() -> None:
    done = run_bench("all_reduce", *SMALL, "--compare", "pass")
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(line.endswith("pass us    ratio") for line in done.stdout.splitlines())
    for row in rows_of(done.stdout):
        pass_us, ratio, p50 = float(row[19]), float(row[20].removesuffix("x")), float(row[17])
        assert ratio == pytest.approx(pass_us / p50, rel=0.02, abs=0.01)


def test_gloo_stands_beside_it() -> None:
    done = run_bench("all_reduce", *SMALL, "--compare", "gloo")
    if importlib.util.find_spec("torch") is None:
        assert (done.returncode, done.stderr) == (2, "dcomm bench: --compare gloo: needs torch; pip install torch\n")
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(line.endswith("gloo us    ratio") for line in done.stdout.splitlines())
    for row in rows_of(done.stdout):
        gloo_us, ratio, p50 = float(row[19]), float(row[20].removesuffix("x")), float(row[17])
        assert ratio == pytest.approx(gloo_us / p50, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("foo",), "COLLECTIVE foo: expected one of all_reduce, reduce_scatter, "),
        (("all_reduce", "-n", "1"), "-n 1: expected 2 to 64 ranks"),
        (("all_reduce", "-b", "x"), "'x': expected bytes such as 8, 32K, 2M or 1G"),
        (("all_reduce", "-b", "1M", "-e", "8"), "-b 1048576 -e 8: expected 1 <= -b <= -e"),
        (("all_reduce", "-f", "1"), "-f 1: expected a factor of at least 2, or -i"),
        (("all_reduce", "-d", "float7"), "-d float7: expected one of float32, "),
        (("all_reduce", "-o", "mean"), "-o mean: expected one of sum, avg"),
        (("all_reduce", "-o", "avg", "-d", "int32"), "-o avg -d int32: not defined; expected another op or dtype"),
        (("broadcast", "-r", "2"), "-r 2: expected a rank from 0 to 1"),
        (("broadcast", "-r", "x"), "-r x: expected ranks by commas, or all"),
        (("all_reduce", "-a", "median"), "-a median: expected one of rank0, avg, min, max"),
        (("all_reduce", "--algo", "best"), "--algo best: expected one of auto, "),
        (
            ("broadcast", "--algo", "ring"),
            "--algo: expected COLLECTIVE all_reduce, reduce_scatter, all_gather, got broadcast",
        ),
        (("all_reduce", "--wire", "int8"), "--wire int8: expected none, float16, bfloat16, fp8 or fp8_block128"),
        (("all_reduce", "--wire", "fp8", "-o", "max"), "--wire fp8_block32 -o max: expected sum or avg"),
        (
            ("all_reduce", "--wire", "fp8", "-n", "8"),
            "--wire fp8_block32 -o sum -n 8: there are no inputs whose results",
        ),
        (("all_reduce", "--wire", "float16", "-d", "int32"), "--wire float16: expected -d float32, got int32"),
        (("broadcast", "--level", "c"), "--level c: expected COLLECTIVE all_reduce, got broadcast"),
        (("all_reduce", "--compare", "nccl"), "--compare nccl: expected one of gloo, mpi, pass"),
        (("broadcast", "--compare", "mpi"), "--compare mpi: "),
        (("broadcast", "--compare", "pass"), "--compare pass: expected COLLECTIVE all_reduce, got broadcast"),
        (
            ("all_reduce", "--threads", "--compare", "gloo"),
            "--threads --compare gloo: expected ranks that are processes",
        ),
        (("barrier", "--plot", "out.png"), "--plot: expected a COLLECTIVE with sizes, got barrier"),
        (("barrier", "--check-figures"), "--check-figures: expected COLLECTIVE all_reduce, got barrier"),
        (("all_reduce", "-N", "0"), "--rounds, --max-seconds, -T: expected more than 0"),
    ],
)
def test_a_bad_flag_says_what_is_expected(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"dcomm bench: {message}")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_usage() -> None:
    done = run_bench("--help")
    assert done.returncode == 0
    assert "Usage: dcomm bench" in done.stdout
    for flag in ("-n, --ranks", "-b, --minbytes", "-e, --maxbytes", "-f, --stepfactor", "-i, --stepbytes", "-o, --op"):
        assert flag in done.stdout
    assert run_bench("all_reduce", "--nothing").returncode == 2


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name={missing!r})

sys.meta_path.insert(0, Refuse())
import dcomm.__main__
sys.exit(dcomm.__main__.main(["bench", "all_reduce"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"dcomm bench needs {missing}: pip install 'dcomm[cli]'\n"


@pytest.mark.parametrize(
    ("least", "status", "verdict"), [("1e-9", 0, " OK"), ("100000", 2, " FAILED"), ("", 0, ""), ("fast", 2, None)]
)
def test_a_missed_bandwidth_is_exit_status_2(least: str, status: int, verdict: str | None) -> None:
    done = run_bench("all_reduce", "-e", "8", "-N", "1", DCOMM_MIN_BW=least)
    assert done.returncode == status, done.stdout + done.stderr
    if verdict is None:
        assert done.stderr == "dcomm bench: DCOMM_MIN_BW=fast: expected GB/s such as 10.5\n"
    else:
        line = next(line for line in done.stdout.splitlines() if "Avg bus bandwidth" in line)
        assert line.strip("0123456789.e-") == "# Avg bus bandwidth    : " if not verdict else line.endswith(verdict)


def test_colours_are_for_terminals_and_can_be_refused() -> None:
    assert "\x1b[" in run_bench("barrier", "-N", "1", FORCE_COLOR="1", TERM="xterm").stdout
    assert "\x1b[" not in run_bench("barrier", "-N", "1", FORCE_COLOR="1", TERM="xterm", NO_COLOR="1").stdout
