"""``dcomm bench``: nccl-tests' letters, columns and last lines, for ranks of this host."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from dcomm.bench import options as parse
from dcomm.bench import report
from dcomm.bench.collectives import COLLECTIVES
from dcomm.bench.cuda import report as cuda_report
from dcomm.bench.cuda.options import cuda_options
from dcomm.bench.cuda.run import run as run_cuda
from dcomm.bench.dtypes import NAMES
from dcomm.bench.mpi import MpiError
from dcomm.bench.options import OptionError
from dcomm.bench.ranks import RankError
from dcomm.bench.run import print_plain, run, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dcomm.bench.rounds import Progress as Tell

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
_STYLES = {"head": "dim", "row": "", "wrong": "bold red", "good": "green", "bad": "bold red"}
_Flag = typer.Option


@contextmanager
def _progress_bar() -> Iterator[Tell]:
    """A bar on stderr, if that is a terminal; else a line per round."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _, text: print(text, end="", file=sys.stderr, flush=True) if text.endswith("\n") else None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text.strip())


def _print_report(lines: Iterable[report.Line]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal or os.environ.get("NO_COLOR"):
        print_plain(lines)
        return
    for line in lines:
        console.print(Text(line.text, style=_STYLES[line.kind]))


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def bench(
    collective: Annotated[str, typer.Argument(metavar="COLLECTIVE", help=", ".join(COLLECTIVES))],
    ranks: Annotated[int, _Flag("-n", "--ranks", help="rank processes (iterations are --iters)")] = 2,
    minbytes: Annotated[str, _Flag("-b", "--minbytes", help="smallest size: 8, 32K, 2M, 1G")] = "8",
    maxbytes: Annotated[str, _Flag("-e", "--maxbytes", help="largest size")] = "128M",
    stepfactor: Annotated[int, _Flag("-f", "--stepfactor", help="factor between sizes")] = 2,
    stepbytes: Annotated[str, _Flag("-i", "--stepbytes", help="step between sizes, instead of -f")] = "",
    iters: Annotated[int, _Flag(help="timed calls per size and round; 0: 400 below 2 MiB, then 3 batches")] = 0,
    warmup: Annotated[int, _Flag("-w", "--warmup", "--warmup_iters", help="calls before the clock counts")] = 1,
    check: Annotated[int, _Flag("-c", "--check", help="0: do not check results")] = 1,
    op: Annotated[str, _Flag("-o", "--op", help="operations by commas, or all")] = "sum",
    dtype: Annotated[
        str, _Flag("-d", "--dtype", "--datatype", help=f"by commas, or all: {', '.join(NAMES)}")
    ] = "float32",
    root: Annotated[str, _Flag("-r", "--root", help="roots by commas, or all")] = "0",
    average: Annotated[str, _Flag("-a", "--average", help="time over the ranks: 0 rank0, 1 avg, 2 min, 3 max")] = "max",
    rounds: Annotated[int, _Flag("-N", "--rounds", "--run_cycles", help="rounds; everything in turn in each")] = 5,
    timeout: Annotated[float, _Flag("-T", "--timeout", help="seconds for one measurement")] = 300.0,
    algo: Annotated[str, _Flag(help="algorithms by commas, or all")] = "auto",
    wire: Annotated[str, _Flag(help="wire dtypes by commas: none, float16, bfloat16, fp8, fp8_block128")] = "none",
    level: Annotated[str, _Flag(help="who calls, by commas: python, c (no Python between the calls)")] = "python",
    threads: Annotated[bool, _Flag("--threads", help="ranks are threads of one process; best with --level c")] = False,
    compare: Annotated[
        str,
        _Flag(help="peers of the same run, by commas: gloo, mpi, pass; cuda: torch, symm_mem, nccl, gloo, or all"),
    ] = "none",
    in_place: Annotated[bool, _Flag("--in-place", help="in place only, where the collective can")] = False,
    buffers: Annotated[int, _Flag(help="buffers that take turns; 0: one per call of a batch, up to 64 MiB")] = 0,
    max_seconds: Annotated[float, _Flag(help="start no round that would end later")] = 120.0,
    json_file: Annotated[
        str | None, _Flag("-J", "--json", metavar="FILE", help="write everything; - for stdout, without a table")
    ] = None,
    plot: Annotated[Path | None, _Flag(metavar="FILE", help="draw a picture, such as out.png")] = None,
    device: Annotated[str, _Flag(help="cpu, or cuda: ranks that share GPU 0, with CUDA arrays")] = "cpu",
    mode: Annotated[str, _Flag(help="cuda: what the ranks are, by commas: threads, processes")] = "all",
    timing: Annotated[str, _Flag(help="cuda: how calls are timed, by commas: graph (replays), events")] = "all",
    figures: Annotated[bool, _Flag("--check-figures", help="check the promised figures of all_reduce")] = False,
) -> None:
    """Measure COLLECTIVE on this host, with every element of every result checked.

    Starts its own rank processes. Exit status: 0; 1 wrong data, or a rank or a peer failed; 2 a figure or DCOMM_MIN_BW
    (GB/s on average, less a tenth) was missed, or wrong options.
    """
    raise typer.Exit(_run(locals()))


def _options(given: dict[str, Any]) -> parse.Options:
    if given["figures"] and given["collective"] != "all_reduce":
        raise OptionError(f"--check-figures: expected COLLECTIVE all_reduce, got {given['collective']}")
    if given["plot"] is not None and importlib.util.find_spec("matplotlib") is None:
        raise OptionError("--plot: needs matplotlib; pip install 'dcomm[plot]'")
    if given["plot"] is not None and given["collective"] == "barrier":
        raise OptionError("--plot: expected a COLLECTIVE with sizes, got barrier")
    if given["device"] not in ("cpu", "cuda"):
        raise OptionError(f"--device {given['device']}: expected cpu or cuda")
    on_gpu = given["device"] == "cuda"
    if on_gpu and given["figures"]:
        raise OptionError("--check-figures: expected --device cpu; tools/gpu_check.sh has a GPU's")
    for flag in ("mode", "timing"):
        if not on_gpu and given[flag] != "all":
            raise OptionError(f"--{flag}: expected --device cuda")
    dtypes = parse.parse_names(given["dtype"], NAMES)
    return parse.Options(
        collective=given["collective"],
        ranks=given["ranks"],
        min_bytes=parse.parse_nbytes(given["minbytes"]),
        max_bytes=parse.parse_nbytes(given["maxbytes"]),
        factor=given["stepfactor"],
        step_bytes=parse.parse_nbytes(given["stepbytes"]) if given["stepbytes"] else 0,
        iters=given["iters"],
        warmup=given["warmup"],
        check=given["check"] != 0,
        average=parse.parse_average(given["average"]),
        ops=parse.parse_ops(given["op"], dtypes),
        dtypes=dtypes,
        roots=parse.parse_roots(given["root"], given["ranks"]),
        algos=parse.parse_names(given["algo"], parse.algos_of(given["collective"])),
        wires=parse.parse_wires(given["wire"], dtypes[0]),
        levels=parse.parse_names(given["level"], parse.LEVELS),
        compare=() if on_gpu or given["compare"] == "none" else parse.parse_names(given["compare"], parse.PEERS),
        threads=given["threads"],
        in_place_only=given["in_place"],
        buffers=given["buffers"],
        rounds=given["rounds"],
        max_seconds=given["max_seconds"],
        timeout=given["timeout"],
    )


def _run(given: dict[str, Any]) -> int:
    command = f"dcomm bench {shlex.join(_arguments)}"
    try:
        options = _options(given)
        with _progress_bar() as tell:
            if given["device"] == "cuda":
                names = {name: given[name] for name in ("mode", "timing", "compare")}
                found = run_cuda(cuda_options(options, **names), command, tell)
            else:
                found = run(options, command, tell, figures=given["figures"])
    except OptionError as error:
        print(f"dcomm bench: {error}", file=sys.stderr)
        return 2
    except (RankError, MpiError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    shown: Any = cuda_report if given["device"] == "cuda" else report
    if given["json_file"] == "-":
        print(json.dumps(found, indent=1))
    else:
        _print_report(shown.lines(found))
        if given["json_file"] is not None:
            write_json(found, Path(given["json_file"]))
    if given["plot"] is not None:
        from dcomm.bench.plot import write_plot

        write_plot(found, given["plot"])
    return int(shown.exit_status(found))


_arguments: list[str] = []


def main(argv: list[str]) -> int:
    """Run the command; its exit status."""
    _arguments[:] = argv
    try:
        app(args=argv, prog_name="dcomm bench")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0
