"""A report as a picture: times and bus bandwidths over the message size. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcomm.bench.text import nbytes_text


def series(report: dict[str, Any]) -> dict[str, list[tuple[int, float, float]]]:
    """Name -> (bytes, p50 in us, busbw in GB/s) by size: dcomm's variants, the best of each peer's."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    several = {key: len({row[key] for row in report["rows"]}) > 1 for key in ("dtype", "redop", "root")}
    for row in report["rows"]:
        if row["lib"] == "dcomm":
            parts = ["dcomm", row["algo"], *([f"{row['wire']} wire"] if row["wire"] else [])]
            parts += ["C level"] if row["level"] == "c" else ["torch"] if row["array"] == "torch" else []
            parts += [str(row[key]) for key, differs in several.items() if differs]
            parts += [row[key] for key in ("mode", "timing") if key in row]
            name = ", ".join([*parts, "in place" if row["in_place"] else "out of place"])
        else:
            name = row["variant"].partition(",")[0] if row["lib"] == "mpi" else row["lib"]
        points = found.setdefault(name, {})
        if row["nbytes"] not in points or row["p50_us"] < points[row["nbytes"]][0]:
            points[row["nbytes"]] = (row["p50_us"], row["busbw_gbps"])
    return {name: [(nbytes, *point) for nbytes, point in sorted(points.items())] for name, points in found.items()}


def write_plot(report: dict[str, Any], path: Path) -> None:
    """Draw; the file's ending decides the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for name, points in series(report).items():
        nbytes, us, busbw = zip(*points, strict=True)
        style = {"marker": "o", "markersize": 3, "linestyle": "-" if name.startswith("dcomm") else "--"}
        axes[0].plot(nbytes, us, label=name, **style)
        axes[1].plot(nbytes, busbw, label=name, **style)
    for axis, title, scale in ((axes[0], "time, us (p50)", "log"), (axes[1], "busbw, GB/s", "linear")):
        axis.set(xscale="log", yscale=scale, xlabel="message", ylabel=title)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: nbytes_text(int(value)) if value >= 1 else ""))
        sizes = sorted({row["nbytes"] for row in report["rows"]} - {0})
        axis.set_xticks(sizes[:: max(1, len(sizes) // 8)], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small")
    machine = report["machine"]
    where = f"{machine['cpu']}, {machine['cores']} CPUs ({report.get('state')})"
    where = f"one {machine['gpu']}" if report.get("device") == "cuda" else where
    figure.suptitle(
        f"{report['collective']}, {report['ranks']} ranks, {where}, {report['date']}, commit {report['commit'][:12]}",
        fontsize="medium",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
