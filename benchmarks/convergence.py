"""Does a compressed wire change what a model learns? The GPT of examples/train_gpt.py, wire by wire, seed by seed.

    python benchmarks/convergence.py                      # what is missing of benchmarks/results/convergence.json
    python benchmarks/convergence.py --check-figures --plot docs/pictures/convergence.png

A run trains from one seed with one wire: 2 rank processes of one thread each, GradientSynchronizer with buckets of
1 MiB, the text and the recipe of examples/train_gpt.py with its defaults, 500 steps. Runs of one seed differ in nothing
but the wire. The file is written after each run, and a run that it holds is not made again: end the script at any time,
start it again. Runs of other settings or another version of torch are refused, not mixed. A wire that this build does
not have is left out, and said.

"Seed noise" is the standard deviation of the last validation loss over the seeds without compression; a wire is within
it if its mean over the seeds is no further from that without compression.

Exit status: 0; 1 a run failed; 2 a figure of --check-figures was not reached, or runs are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import dcomm
from dcomm.bench.machine import describe
from dcomm.torch import GradientSynchronizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from gpt_model import GPT
from gpt_recipe import CLIP_NORM, add_recipe_options, byte_loss, config_of, make_optimizer, set_learning_rate
from text_data import Corpus, bigram_loss, load_corpus, train_batch, val_windows

WIRES: dict[str, dict[str, Any]] = {
    "none": {},
    "float16": {"wire_dtype": "float16"},
    "bfloat16": {"wire_dtype": "bfloat16"},
    "fp8": {"wire_dtype": "fp8"},
    "fp8 + error feedback": {"wire_dtype": "fp8", "error_feedback": True},
}
HALVES = ("float16", "bfloat16")  # of which the figure speaks
RANKS = 2
EVERY = 10  # steps in one number of the training loss
RESULTS = Path(__file__).resolve().parent / "results" / "convergence.json"


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=int, default=500)
    add("--batch-size", type=int, default=4, help="sequences of each rank in a step")
    add("--lr", type=float, default=2e-3)
    add("--seeds", default="0,1,2", help="by commas")
    add("--wires", default=";".join(WIRES), help="by semicolons")
    add("--max-runs", type=int, default=10**9, help="end after so many")
    add("--json", type=Path, default=RESULTS, metavar="FILE", help="read what is there, add what was run")
    add("--plot", type=Path, metavar="FILE", help="draw it")
    add("--check-figures", action="store_true", help="check that half wires are within the noise of the seeds")
    add_recipe_options(parser)
    args = parser.parse_args(argv)
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    args.wires = args.wires.split(";")
    unknown = [wire for wire in args.wires if wire not in WIRES]
    if unknown:
        parser.error(f"--wires {unknown[0]}: expected some of {'; '.join(WIRES)}")
    return args


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """In what runs must be equal to be compared."""
    names = ("steps", "batch_size", "lr", "block_size", "layers", "heads", "width", "warmup", "micro_batches")
    settings = {name: getattr(args, name) for name in (*names, "eval_every", "eval_windows")}
    return {**settings, "data": args.data or "the Python standard library's source", "torch": torch.__version__}


def is_there(wire: str) -> bool:
    """Whether this build has the wire."""
    with dcomm.init_threads(1)[0] as comm:
        try:
            GradientSynchronizer(torch.nn.Linear(1, 1), comm, **WIRES[wire]).close()
        except ValueError:
            return False
    return True


@torch.no_grad()
def validate(model: GPT, windows: torch.Tensor, comm: dcomm.Communicator) -> float:
    """Mean nats per byte, each rank taking its share of the windows."""
    sums = torch.zeros(2, dtype=torch.float64)
    for part in torch.split(windows[comm.rank :: comm.world_size], 16):
        sums += torch.tensor([float(byte_loss(model(part[:, :-1]), part[:, 1:])) * len(part), len(part)])
    comm.all_reduce(sums)
    return float(sums[0] / sums[1])


def train(args: argparse.Namespace, comm: dcomm.Communicator, corpus: Corpus, wire: str, seed: int) -> dict[str, Any]:
    """One run on this rank; the same losses on every rank."""
    torch.manual_seed(seed)
    model = GPT(config_of(args))
    optimizer = make_optimizer(model, args)
    windows = val_windows(corpus.val, num_windows=args.eval_windows, block_size=args.block_size)
    losses = torch.zeros(args.steps, dtype=torch.float64)
    val_losses = []
    sizes = {"batch_size": args.batch_size, "block_size": args.block_size}
    begin = time.perf_counter()
    side = comm.split(0)  # a step's exchange has `comm` for itself
    with GradientSynchronizer(model, comm, bucket_bytes=1 << 20, **WIRES[wire]) as sync:
        for step in range(args.steps):
            inputs, targets = train_batch(corpus.train, seed=seed, step=step, rank=comm.rank, **sizes)
            set_learning_rate(optimizer, args, step)
            loss = byte_loss(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            sync.finish()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            losses[step] = loss.item()
            if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
                val_losses.append([step + 1, validate(model, windows, side)])
    side.all_reduce(losses, "avg")
    side.close()
    means = [float(part.mean()) for part in losses.split(EVERY)]
    return {"train_losses": means, "val_losses": val_losses, "seconds": time.perf_counter() - begin}


def serve(rank: int, args: argparse.Namespace, wire: str, seed: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    corpus = load_corpus(args.data, args.block_size)
    with dcomm.init(rank=rank, world_size=RANKS, store=store, timeout=timedelta(seconds=120)) as comm:
        found = train(args, comm, corpus, wire, seed)
    if rank == 0:
        Path(folder, "run.json").write_text(json.dumps(found), encoding="utf-8")


def make_run(args: argparse.Namespace, wire: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="convergence-") as folder:
        mp.spawn(serve, (args, wire, seed, folder), nprocs=RANKS)  # type: ignore[no-untyped-call]
        found: dict[str, Any] = json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))
    return {"wire": wire, "seed": seed, **found}


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each wire the last validation loss over the seeds, and how far from that without compression."""
    rows = []
    plain = {run["seed"]: run["val_losses"][-1][1] for run in runs if run["wire"] == "none"}
    for wire in WIRES:
        last = {run["seed"]: run["val_losses"][-1][1] for run in runs if run["wire"] == wire}
        if not last:
            continue
        shared = sorted(last.keys() & plain.keys())
        rows.append(
            {
                "wire": wire,
                "seeds": sorted(last),
                "val_loss": statistics.fmean(last.values()),
                "deviation": statistics.stdev(last.values()) if len(last) > 1 else None,
                "difference": statistics.fmean(last[seed] - plain[seed] for seed in shared) if shared else None,
                "seconds": statistics.median(run["seconds"] for run in runs if run["wire"] == wire),
            }
        )
    return rows


def check_figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {row["wire"]: row for row in rows}
    noise = found.get("none", {}).get("deviation")
    figures = []
    for wire in HALVES:
        text = f"{wire}: last validation loss within the noise of {len(found.get('none', {}).get('seeds', []))} seeds"
        row = found.get(wire, {})
        if noise is None or row.get("seeds") != found["none"]["seeds"]:
            figures.append({"figure": text, "measured": "not measured", "reached": False})
        else:
            measured = f"{row['difference']:+.4f}, noise {noise:.4f}"
            figures.append({"figure": text, "measured": measured, "reached": abs(row["difference"]) <= noise})
    return figures


def read_runs(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that a file holds.

    Raises:
        ValueError: They were made with other settings.
    """
    if not path.exists():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if report["settings"].get(name) != value:
            raise ValueError(
                f"{path} has runs with {name}={report['settings'].get(name)!r}, these would have {value!r}: give the "
                "settings of that file, or another --json"
            )
    runs: list[dict[str, Any]] = report["runs"]
    return runs


def write(path: Path, report: dict[str, Any]) -> None:
    """All or nothing: the file is good at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write_plot(report: dict[str, Any], path: Path) -> None:
    """Training and validation losses of each wire, the mean over its seeds, and the differences at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for row in report["rows"]:
        runs = [run for run in report["runs"] if run["wire"] == row["wire"]]
        curves = list(zip(*(run["train_losses"] for run in runs), strict=True))
        steps = [min((number + 1) * EVERY, report["settings"]["steps"]) for number in range(len(curves))]
        left.plot(steps, [statistics.fmean(one) for one in curves], linewidth=1, label=row["wire"])
        right.scatter([row["wire"]] * len(runs), [run["val_losses"][-1][1] for run in runs], s=18)
    left.set(xlabel="step", ylabel=f"training loss, nats per byte, mean of {EVERY} steps", yscale="log")
    left.legend()
    right.set(ylabel="last validation loss, a dot for each seed")
    right.tick_params(axis="x", labelrotation=20)
    figure.suptitle(f"GPT, {report['parameters']:,} parameters, {RANKS} ranks, wires of the gradients")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "benchmarks/convergence.py", *(sys.argv[1:] if argv is None else argv)])
    settings = settings_of(args)
    try:
        runs = read_runs(args.json, settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    wires = [wire for wire in args.wires if is_there(wire)]
    for wire in set(args.wires) - set(wires):
        print(f"{wire}: this build of dcomm has no such wire; left out", file=sys.stderr)
    have = {(run["wire"], run["seed"]) for run in runs}
    wanted = [(wire, seed) for seed in args.seeds for wire in wires if (wire, seed) not in have]
    corpus = load_corpus(args.data, args.block_size)
    windows = val_windows(corpus.val, num_windows=args.eval_windows, block_size=args.block_size)
    bigram = bigram_loss(corpus.train, windows)
    parameters = sum(p.numel() for p in GPT(config_of(args)).parameters())

    def report() -> dict[str, Any]:
        rows = summarise(runs)
        head = describe(command, {"torch": torch.__version__}, "")
        body = {"ranks": RANKS, "settings": settings, "parameters": parameters, "bigram": bigram}
        return {**head, **body, "runs": runs, "rows": rows, "figures": check_figures(rows)}

    for number, (wire, seed) in enumerate(wanted[: args.max_runs], 1):
        print(f"run {number} of {len(wanted)}: {wire}, seed {seed}", file=sys.stderr, flush=True)
        try:
            runs.append(make_run(args, wire, seed))
        except Exception as error:
            print(f"{wire}, seed {seed}: {error}", file=sys.stderr)
            return 1
        print(f"  {runs[-1]['val_losses'][-1][1]:.4f} after {runs[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
        write(args.json, report())
    found = report()
    for row in found["rows"]:
        far = "" if row["difference"] is None else f", {row['difference']:+.4f} from none"
        print(f"{row['wire']:22} {row['val_loss']:.4f} (seeds {row['seeds']}){far}, {row['seconds']:.0f} s a run")
    print(f"{'a bigram model':22} {bigram:.4f}")
    if args.plot and found["rows"]:
        write_plot(found, args.plot)
    if not args.check_figures:
        return 0
    for figure in found["figures"]:
        print(f"{'reached' if figure['reached'] else 'NOT REACHED'}: {figure['figure']}: {figure['measured']}")
    missing = len(wanted) - len(wanted[: args.max_runs])
    return 2 if missing or any(not figure["reached"] for figure in found["figures"]) else 0


if __name__ == "__main__":
    sys.exit(main())
