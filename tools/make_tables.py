"""Writes the Markdown tables of README.md and docs/ from the measurements in benchmarks/results/.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`. NAME is the stem of a JSON file that
benchmarks/all_reduce.py or `dcomm bench all_reduce --json` wrote (its times by size, called from Python), or STEM.mpi
(called from C, beside each MPI), STEM.wires (its wires beside each other), STEM.algos (algorithms, on each wire),
STEM.rounds (the states of the cores) or STEM.figures (what was promised and what was reached); STEM.steps is of
benchmarks/ddp_step.py, STEM.fused of benchmarks/bucket.py, STEM.direct of benchmarks/direct.py, STEM.volumes of
benchmarks/communication_volume.py, STEM.backend of benchmarks/torch_backend.py, STEM.fsdp of benchmarks/fsdp_step.py,
STEM.convergence of benchmarks/convergence.py, STEM.examples of benchmarks/examples.py.

    python tools/make_tables.py            # rewrite the tables
    python tools/make_tables.py --check    # change nothing; exit 1 if a table is not what the measurements say

Exit 2: a table has no measurement, or a marker has no end. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKED = re.compile(r"(<!-- table:([\w.-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)
OPENING = re.compile(r"<!-- table:[\w.-]+ -->")
UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


class TableError(Exception):
    """A table that cannot be made; the message says what to do."""


def size_text(nbytes: int) -> str:
    factor, unit = next(pair for pair in UNITS if nbytes >= pair[0])
    return f"{nbytes // factor} {unit}"


def time_text(us: float) -> str:
    if us >= 1000:
        return f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1000:.0f} ms"
    return f"{us:.3g} us" if us < 100 else f"{us:.0f} us"


def ratio_text(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def markdown(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "|".join("---" if index == 0 else "---:" for index in range(len(heads))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def variant_name(row: dict[str, Any]) -> str:
    algo = "" if row["algo"] == "auto" else f" {row['algo']}"
    wire = f", {row['wire']} wire" if row["wire"] else ""
    return f"dcomm{algo}{wire}"


def origin(report: dict[str, Any]) -> str:
    """Where, when and how it was measured."""
    machine, versions = report["machine"], report["versions"]
    isa = f", {machine['isa']} kernels" if machine["isa"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}{isa}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"{report['date']}, commit {report['commit'][:12]}{'+changes' * report['commit'].endswith('+changes')}; "
        f"`{report['command']}`"
    )


def provenance(report: dict[str, Any]) -> str:
    counted = [row["rounds_counted"] for row in report["rows"]]
    return (
        f"{report['ranks']} ranks, {report['rows'][0]['dtype']}, sum, in place ({report['state']}, {min(counted)} to "
        f"{max(counted)} of {len(report['rounds'])} rounds); {origin(report)}"
    )


def of_dcomm(report: dict[str, Any], level: str) -> list[dict[str, Any]]:
    """The rows of dcomm in place on NumPy arrays that were called from Python, or from C."""
    plain = {"lib": "dcomm", "level": level, "array": "numpy", "in_place": True}
    older = {"level": "python", "array": "numpy", "in_place": True}  # measurements that do not say so
    return [row for row in report["rows"] if all({**older, **row}[key] == value for key, value in plain.items())]


def busbw_text(row: dict[str, Any]) -> str:
    """Of the p50 in the same line; the measured one may be of the mean."""
    return f"{row['busbw_gbps'] * row.get('time_us', row['p50_us']) / row['p50_us']:.2f} GB/s"


def sizes_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per message: p50 of each variant, bandwidth, p90 and ratio of the first one, the peer's best."""
    ours = of_dcomm(report, "python")
    names = list(dict.fromkeys(variant_name(row) for row in ours))
    has_peer = any("ratio" in row for row in ours)
    heads = ["message", *names, "p90", "busbw", *(["gloo", "gloo / dcomm"] if has_peer else []), "#wrong"]
    lines = []
    for nbytes in dict.fromkeys(row["nbytes"] for row in ours):
        here = {variant_name(row): row for row in ours if row["nbytes"] == nbytes}
        first = here[names[0]]
        cells = [size_text(nbytes), *(time_text(here[name]["p50_us"]) for name in names)]
        cells += [time_text(first["p90_us"]), busbw_text(first)]
        if has_peer:
            cells += [time_text(first["gloo_us"]), ratio_text(first["ratio"])]
        num_wrong = sum(row["num_wrong"] for row in report["rows"] if row["nbytes"] == nbytes)
        lines.append([*cells, str(num_wrong)])
    yield from markdown(heads, lines)
    yield ""
    yield provenance(report)


# Each wire is promised to be so many times as fast as the next wider one, from 1 MiB on.
_WIRE_GAINS = {"float16": ("float32", 1.2), "fp8_block32": ("float16", 1.1), "fp8_block128": ("float16", 1.1)}


def wires_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per message: p50 on each wire, and how many times as fast the narrower one is."""
    found = {(row["nbytes"], row["wire"] or row["dtype"]): row["p50_us"] for row in of_dcomm(report, "python")}
    sizes = list(dict.fromkeys(nbytes for nbytes, _ in found))
    wires = list(dict.fromkeys(wire for _, wire in found))
    gains = {wire: gain for wire, gain in _WIRE_GAINS.items() if wire in wires and gain[0] in wires}
    if not gains:
        raise TableError("no two wires to compare: measure with --wire none,float16,fp8")
    lines = []
    for nbytes in sizes:
        cells = [time_text(found[nbytes, wire]) for wire in wires]
        ratios = [found[nbytes, wider] / found[nbytes, wire] for wire, (wider, _) in gains.items()]
        lines.append([size_text(nbytes), *cells, *(f"{ratio:.2f}x" for ratio in ratios)])
    passes = {row["nbytes"]: row["pass_us"] for row in of_dcomm(report, "python") if "pass_us" in row}
    for nbytes, line in zip(sizes, lines, strict=True):
        line.extend([time_text(passes[nbytes])] if passes else [])
    heads = [*wires, *(f"{wire} over {wider}" for wire, (wider, _) in gains.items()), *(["one pass"] if passes else [])]
    yield from markdown(["message", *heads], lines)
    yield ""
    for wire, (wider, least) in gains.items():
        large = {n: found[n, wider] / found[n, wire] for n in sizes if n >= 1 << 20}
        worst = min(large, key=lambda nbytes: large[nbytes], default=None)
        if worst is not None:
            verdict = f"{'reached' if large[worst] >= least else 'not reached'}, {large[worst]:.2f}x at least"
            yield f"* {wire} at least {least}x as fast as {wider} from 1 MiB on: {verdict}."
    yield ""
    yield provenance(report)


def algos_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per message: p50 of each algorithm on each wire, and of a pass over the array."""
    found: dict[int, dict[str, str]] = {}
    for row in of_dcomm(report, "python"):
        cells = found.setdefault(row["nbytes"], {})
        cells[f"{row['algo']}, {row['wire'] or row['dtype']}"] = time_text(row["p50_us"])
        if "pass_us" in row:
            cells["one pass"] = time_text(row["pass_us"])
    heads = list(dict.fromkeys(head for cells in found.values() for head in cells if head != "one pass"))
    heads += ["one pass"] if any("one pass" in cells for cells in found.values()) else []
    yield from markdown(["message", *heads], [[size_text(n), *(c.get(h, "") for h in heads)] for n, c in found.items()])
    yield ""
    yield provenance(report)


def mpi_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per message: dcomm called from C, and each MPI with the fastest of its settings."""
    ours = [row for row in of_dcomm(report, "c") if "mpi" in row]
    if not ours:
        raise TableError("no row has an MPI beside it: measure with --level c --compare mpi")
    names = sorted({name for row in ours for name in row["mpi"]})
    lines = []
    for row in ours:
        others = [row["mpi"].get(name) for name in names]
        cells = [size_text(row["nbytes"]), time_text(row["p50_us"]), time_text(row["p90_us"])]
        cells += [f"{time_text(other['p50_us'])} ({other['settings']})" if other else "-" for other in others]
        cells.append(ratio_text(row["mpi_ratio"]) if row["mpi_ratio"] >= 10 else f"{row['mpi_ratio']:.2f}x")
        same = [one for one in report["rows"] if one["nbytes"] == row["nbytes"] and one["level"] == "c"]
        lines.append([*cells, str(sum(one["num_wrong"] for one in same))])
    yield from markdown(["message", "dcomm", "p90", *names, "best MPI / dcomm", "#wrong"], lines)
    yield ""
    yield provenance(report)


def rounds_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per round: the states of the cores in it."""
    lines = []
    for number, stamp in enumerate(report["rounds"], 1):
        ranges = [f"{min(stamp[key]):g} to {max(stamp[key]):g}" for key in ("flag_ns", "read_gbps", "eight_byte_us")]
        counted = stamp["segments"].count(report["state"])
        lines.append([str(number), stamp["state"], *ranges, f"{counted} of {len(stamp['segments'])}"])
    yield from markdown(["round", "state", "flag round trip ns", "dirty lines GB/s", "8 B us", "parts counted"], lines)


def figures_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per promised figure."""
    lines = [
        [figure["figure"], figure["measured"], "yes" if figure["reached"] else "**no**"]
        for figure in report.get("figures", [])
    ]
    yield from markdown(["figure", "measured", "reached"], lines)


def steps_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per workload and variant of benchmarks/ddp_step.py."""
    lines = []
    in_passes = any(one.get("in_passes") for one in report["workloads"].values())
    for one in report["workloads"].values():
        for name, row in one["rows"].items():
            weights = one["weights"].get(name, {})
            cells = [one["title"] if not lines or lines[-1][-1] != one["title"] else "", name]
            cells.append(f"{row['step_ms']:.1f}")
            cells.append(f"{row['exposed']:.1%}" if "exposed" in row else "")
            cells.append(f"{row['over_gloo']:.2f}x" if "over_gloo" in row else "")
            cells.append(f"{weights['distance_from_gloo']:.0e}" if "distance_from_gloo" in weights else "")
            if in_passes:
                cells[3:] = [f"{row['of_pass']:.3f}"]
            lines.append([*cells, one["title"]])
    heads = ["workload", "variant", "step ms", "exposed", "vs ddp + gloo", "distance"]
    if in_passes:
        heads[3:] = ["of its pass"]
    yield from markdown(heads, [line[:-1] for line in lines])
    yield ""
    counted = [f"{name}: {one['state']}, {one['rounds_counted']}" for name, one in report["workloads"].items()]
    yield f"{report['ranks']} ranks, 1 thread each ({'; '.join(counted)}); {origin(report)}"


def fused_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per wire of benchmarks/bucket.py, in milliseconds."""
    lines = [
        [
            "float32" if row["wire"] == "none" else row["wire"],
            f"{row['fused']:.1f}",
            f"{row['whole']:.1f}",
            f"{min(row['packed'], row.get('packed-half', row['packed'])):.1f}",
            f"{row['gloo']:.0f}",
            ratio_text(row["over_packed"]),
            ratio_text(row["over_gloo"]),
        ]
        for row in report["rows"]
    ]
    heads = ["wire", "fused, ms", "one array of that size", "packed", "gloo", "packed / fused", "gloo / fused"]
    yield from markdown(heads, lines)
    yield ""
    counted = f"{report['state']}, {report['rounds_counted']} of {len(report['eight_byte_us']) - 1} rounds"
    size = f"{report['num_tensors']} tensors, {report['count']} elements"
    yield f"{size}, {report['ranks']} ranks ({counted}); {origin(report)}"


def direct_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per bucket size, hot and cold, of benchmarks/direct.py, in milliseconds; a column per way and state."""
    states = [state for state in ("near", "far") if any(row["state"] == state for row in report["rows"])]
    columns = [(algo, state) for state in states for algo in ("direct", "staged")]
    found = {(row["when"], row["bucket_bytes"], row["algo"], row["state"]): row for row in report["rows"]}
    lines = []
    for when, bucket_bytes in dict.fromkeys((row["when"], row["bucket_bytes"]) for row in report["rows"]):
        rows = [found.get((when, bucket_bytes, *column)) for column in columns]
        cells = [f"{row['ms']:.1f} ({row['rounds']})" if row else "-" for row in rows]
        lines.append([f"{when}, {size_text(bucket_bytes)}", *cells])
    yield from markdown(["buckets", *(f"{algo}, {state}, ms (rounds)" for algo, state in columns)], lines)
    yield ""
    yield f"{report['ranks']} ranks, {4 * report['count'] >> 20} MiB of float32; {origin(report)}"


def volumes_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per kind of parallelism of benchmarks/communication_volume.py."""
    lines = [
        [
            row["what"],
            str(row["ranks"]),
            f"{row['measured_bytes'] / 1e6:.3f}",
            f"{row['expected_bytes'] / 1e6:.3f}",
        ]
        for row in report["volumes"]
    ]
    yield from markdown(["kind", "ranks", "sent by a rank, MB", "formula, MB"], lines)
    yield ""
    yield origin(report)


def backend_table(report: dict[str, Any]) -> Iterator[str]:
    """Medians of benchmarks/torch_backend.py: a line per call and per step."""
    groups = report["latency_us"]
    lines = [[f"8 B, {call}", *(time_text(each[call]) for each in groups.values())] for call in groups["dcomm"]]
    blank = [""] * (len(groups) - 1)
    lines += [[f"step, {name}", f"{ms:.1f} ms", *blank] for name, ms in report["step_ms"].items()]
    yield from markdown(["", *groups], lines)
    yield ""
    yield f"{report['ranks']} ranks; {origin(report)}"


def fsdp_table(report: dict[str, Any]) -> Iterator[str]:
    """Medians of benchmarks/fsdp_step.py, in milliseconds, and how much less time the direct way takes."""
    ways = ("direct", "staged", "gloo")
    lines = [
        [row["what"], *(f"{row[way]:.2f}" for way in ways), *(ratio_text(row[way] / row["direct"]) for way in ways[1:])]
        for row in report["rows"]
    ]
    heads = ["", *(f"{way}, ms" for way in ways), *(f"{way} / direct" for way in ways[1:])]
    yield from markdown(heads, lines)
    yield ""
    yield f"{report['ranks']} ranks; {origin(report)}"


def examples_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per training of benchmarks/examples.py: what it came to on gloo and on dcomm."""
    lines = []
    for one in report["examples"]:
        theirs, ours = one["values"].values()
        ((beside, value),) = one["beside"].items()
        cells = [f"`{one['command'].partition('examples/')[2]}`", str(one["ranks"]), one["measure"], f"{theirs:.4f}"]
        lines.append([*cells, f"{ours:.4f}", f"{beside} {value:.4f}", f"{one['largest_loss_difference']:.1g}"])
    heads = ["example", "ranks", "measure", "gloo", "dcomm", "beside", "largest difference of a step's loss"]
    yield from markdown(heads, lines)
    yield ""
    yield origin(report)


def convergence_table(report: dict[str, Any]) -> Iterator[str]:
    """One line per wire of benchmarks/convergence.py: the last validation loss, and how far from no compression."""
    lines = []
    for row in report["rows"]:
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.4f}"
        difference = "" if row["difference"] is None else f"{row['difference']:+.4f}"
        cells = [row["wire"], str(len(row["seeds"])), f"{row['val_loss']:.4f}", deviation, difference]
        lines.append([*cells, f"{row['seconds']:.0f} s"])
    lines.append(["a bigram model", "", f"{report['bigram']:.4f}", "", "", ""])
    yield from markdown(["wire", "seeds", "last validation loss", "deviation", "from none", "a run"], lines)
    yield ""
    size = f"{report['parameters']:,} parameters, {report['settings']['steps']} steps"
    yield f"GPT, {size}; {report['ranks']} ranks, 1 thread each; {origin(report)}"


KINDS = {
    "": sizes_table,
    "mpi": mpi_table,
    "wires": wires_table,
    "algos": algos_table,
    "rounds": rounds_table,
    "figures": figures_table,
    "steps": steps_table,
    "fused": fused_table,
    "direct": direct_table,
    "volumes": volumes_table,
    "backend": backend_table,
    "fsdp": fsdp_table,
    "convergence": convergence_table,
    "examples": examples_table,
}


def table(name: str, results: Path) -> str:
    stem, _, kind = name.partition(".")
    if kind not in KINDS:
        raise TableError(f"table:{name}: expected STEM or STEM.KIND, KIND one of {', '.join(filter(None, KINDS))}")
    path = results / f"{stem}.json"
    if not path.exists():
        raise TableError(f"table:{name}: {path} is missing; a script in benchmarks/ writes it with --json")
    report = json.loads(path.read_text(encoding="utf-8"))
    return "\n".join(KINDS[kind](report)) + "\n"


def rewritten(text: str, results: Path) -> str:
    """The page with every table made anew."""
    if len(OPENING.findall(text)) != len(MARKED.findall(text)):
        raise TableError("a table marker has no `<!-- /table -->`")
    return MARKED.sub(lambda match: match[1] + table(match[2], results) + match[4], text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page would change")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    pages = [args.root / "README.md", *sorted((args.root / "docs").glob("*.md"))]
    stale = 0
    for page in pages:
        if not page.exists():
            continue
        before = page.read_text(encoding="utf-8")
        try:
            after = rewritten(before, args.root / "benchmarks" / "results")
        except TableError as error:
            print(f"{page.relative_to(args.root)}: {error}", file=sys.stderr)
            return 2
        if after != before:
            stale += 1
            print(f"{page.relative_to(args.root)}: {'differs from the measurements' if args.check else 'rewritten'}")
            if not args.check:
                page.write_text(after, encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
