"""Measures all_reduce on this host, beside its peers, with every element of every result checked.

    python benchmarks/all_reduce.py -n 2 --compare gloo,mpi --wire none,float16 --json results.json
    python benchmarks/all_reduce.py -n 2 --check-figures

The same as `dcomm bench all_reduce`, in plain text and with the standard library and NumPy only. A batch is 16 calls
in place one after the other (4 from 2 MiB up) on one buffer; before each batch it is refilled, outside the clock, with
data whose sums are exact, and afterwards all of it is compared. A time is that of the slowest rank. Everything is
measured in turn in every round, and each round is stamped with the state of the cores. docs/benchmarks.md has the
method.

Exit status: 0; 1 wrong data, a rank or a peer failed; 2 a figure of --check-figures or DCOMM_MIN_BW was not reached,
or the options are wrong.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from dcomm.bench import options as parse
from dcomm.bench import report
from dcomm.bench.cuda import report as cuda_report
from dcomm.bench.cuda.options import cuda_options
from dcomm.bench.cuda.run import run as run_cuda
from dcomm.bench.mpi import MpiError
from dcomm.bench.plot import write_plot
from dcomm.bench.ranks import RankError
from dcomm.bench.run import print_plain, run, write_json


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("-n", "--ranks", type=int, default=2, help="rank processes")
    add("-b", "--minbytes", default="8", help="smallest message")
    add("-e", "--maxbytes", default="128M", help="largest message")
    add("-f", "--stepfactor", type=int, default=8, help="factor between messages")
    add("-d", "--datatype", default="float32", help="dtypes, by commas")
    add("-o", "--op", default="sum", help="operations, by commas")
    add("--wire", default="none", help="wire dtypes, by commas: none, float16, bfloat16, fp8, fp8_block128")
    add("--algo", default="auto", help="algorithms, by commas")
    add("--level", default="python", help="who calls, by commas: python, c")
    add("--threads", action="store_true", help="ranks are threads of one process; best with --level c")
    add("--compare", default="none", help="measured in the same rounds, by commas: gloo, mpi, pass; cuda: all")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: ranks share GPU 0; docs/benchmarks.md")
    add("--iters", type=int, default=0, help="timed calls per size and round; 0: as many as docs/benchmarks.md says")
    add("--rounds", type=int, default=5, help="rounds, all cases in turn in each")
    add("--timeout", type=float, default=300.0, help="seconds for one measurement")
    add("--max-seconds", type=float, default=120.0, help="start no round that would end later")
    add("--plot", type=Path, metavar="FILE", help="draw a picture, such as out.png; needs matplotlib")
    add("--json", type=Path, metavar="FILE", help="write everything here")
    add("--check-figures", action="store_true", help="check the promised figures; implies what they need")
    return parser.parse_args(argv)


def to_options(args: argparse.Namespace) -> parse.Options:
    dtypes = parse.parse_names(args.datatype)
    return parse.Options(
        ranks=args.ranks,
        min_bytes=parse.parse_nbytes(args.minbytes),
        max_bytes=parse.parse_nbytes(args.maxbytes),
        factor=args.stepfactor,
        dtypes=dtypes,
        ops=parse.parse_ops(args.op, dtypes),
        wires=parse.parse_wires(args.wire, dtypes[0]),
        algos=parse.parse_names(args.algo),
        levels=parse.parse_names(args.level),
        compare=() if args.device == "cuda" or args.compare == "none" else parse.parse_names(args.compare),
        threads=args.threads,
        in_place_only=args.device == "cpu",
        buffers=1,
        iters=args.iters,
        rounds=args.rounds,
        max_seconds=args.max_seconds,
        timeout=args.timeout,
    )


def progress(_: float, text: str) -> None:
    if text.endswith("\n"):
        print(text, end="", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    args = parse_args(arguments)
    command = f"python benchmarks/all_reduce.py {shlex.join(arguments)}".strip()
    try:
        if args.device == "cuda":
            found = run_cuda(cuda_options(to_options(args), compare=args.compare), command, progress)
        else:
            found = run(to_options(args), command, progress, figures=args.check_figures)
    except parse.OptionError as error:
        print(f"all_reduce.py: {error}", file=sys.stderr)
        return 2
    except (RankError, MpiError) as error:
        print(f"FAILED: {error}")
        return 1
    shown = cuda_report if args.device == "cuda" else report
    print_plain(shown.lines(found))
    if args.json is not None:
        write_json(found, args.json)
    if args.plot is not None:
        write_plot(found, args.plot)
    if shown.num_wrong(found):
        print(f"FAILED: {shown.num_wrong(found)} wrong elements")
    return shown.exit_status(found)


if __name__ == "__main__":
    sys.exit(main())
