"""What the training examples show: progress (rich where there is a terminal), the comparison table, the loss curve.

Only rank 0 creates these. rich and matplotlib are optional: without them a notice names the pip extra.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass
class Run:
    """Everything measured in one training; losses are means over the ranks, times are this rank's."""

    name: str
    losses: list[float] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    backward_ms: list[float] = field(default_factory=list)
    no_sync_ms: list[float] = field(default_factory=list)
    tokens_per_step: int = 0
    buffer_bytes: int = 0  # gradients, buckets, partial sums: the most at one moment
    seconds: float = 0.0
    unit: str = "tokens"  # what `tokens_per_step` counts, in tables and bars

    @property
    def median_step_ms(self) -> float:
        return statistics.median(self.step_ms)

    @property
    def communication_share(self) -> float:
        """What gradient exchange adds to a step: (with - without) / step; noise can make it negative.

        "with" is the median of forward and backward as trained, "without" that of some of the same batches
        under `no_sync`. The difference holds every wait: copies, transfer not hidden by the backward pass,
        slower peers.
        """
        without = statistics.median(self.no_sync_ms)
        return (statistics.median(self.backward_ms) - without) / self.median_step_ms

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.median_step_ms * 1e3


class Progress:
    """A rich progress bar on a terminal, else about ten plain lines per training."""

    def __init__(self, run: Run, *, first_step: int, num_steps: int, show: bool) -> None:
        self._run = run
        self._num_steps = num_steps
        self._show = show
        self._bar: Any = None
        if show and sys.stdout.isatty():
            try:
                from rich import progress
            except ImportError:
                say("rich is not installed: plain progress lines (pip install 'dcomm[cli]' brings the bar)")
            else:
                self._bar = progress.Progress(
                    progress.TextColumn("{task.description:>10}"),
                    progress.BarColumn(),
                    progress.MofNCompleteColumn(),
                    progress.TextColumn("{task.fields[status]}"),
                    progress.TimeRemainingColumn(),
                )
                self._task = self._bar.add_task(run.name, total=num_steps, completed=first_step, status="starting")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float) -> None:
        """Shows this rank's loss after `step` steps."""
        if not self._show:
            return
        run = self._run
        status = f"loss {loss:.3f}  {run.tokens_per_second:,.0f} {run.unit}/s"
        if run.no_sync_ms:
            status += f"  comm {run.communication_share:.1%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
        elif step == 1 or step == self._num_steps or step % max(1, self._num_steps // 10) == 0:
            say(f"[{run.name}] step {step}/{self._num_steps}  {status}")

    def note(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(f"[{self._run.name}] {text}", markup=False, highlight=False)
        elif self._show:
            say(f"[{self._run.name}] {text}")


def say(text: str) -> None:
    print(text, flush=True)


def side_by_side(first: Run, second: Run) -> list[str]:
    """Losses and times of two trainings side by side: what both have measured."""
    both = [first, second]
    shares = all(run.no_sync_ms for run in both)
    rows: list[tuple[str, bool, Callable[[Run], str]]] = [
        ("training loss, last 10 steps", True, lambda run: f"{statistics.fmean(run.losses[-10:]):.6f}"),
        ("final validation loss", all(r.val_losses for r in both), lambda run: f"{run.val_losses[-1][1]:.6f}"),
        ("norm of the first gradient", all(r.grad_norms for r in both), lambda run: f"{run.grad_norms[0]:.6f}"),
        ("ms per step, median", True, lambda run: f"{run.median_step_ms:.1f}"),
        ("ms per step, fastest", True, lambda run: f"{min(run.step_ms):.1f}"),
        (
            "ms forward and backward",
            all(r.backward_ms for r in both),
            lambda run: f"{statistics.median(run.backward_ms):.1f}",
        ),
        ("the same under no_sync", shares, lambda run: f"{statistics.median(run.no_sync_ms):.1f}"),
        ("MB of gradients and sums", all(r.buffer_bytes for r in both), lambda run: f"{run.buffer_bytes / 1e6:.1f}"),
        ("communication share", shares, lambda run: f"{run.communication_share:.1%}"),
        (f"{first.unit}/s", True, lambda run: f"{run.tokens_per_second:,.0f}"),
        ("seconds in all", True, lambda run: f"{run.seconds:.1f}"),
    ]
    lines = [f"{'':30}{first.name:>14}{second.name:>14}"]
    lines += [f"{name:30}{cell(first):>14}{cell(second):>14}" for name, measured, cell in rows if measured]
    if not shares:
        return lines
    lines += [
        "communication share = (forward and backward - the same under no_sync) / step, medians of rank 0;",
        "it counts every wait for gradients, slower peers included, and can be negative within noise",
    ]
    return lines


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Over corresponding values; NaN anywhere gives infinity."""
    differences = [abs(a - b) for a, b in zip(first, second, strict=True)]
    return max(math.inf if math.isnan(d) else d for d in differences)


def bounds(
    hooks: set[str], world_size: int, micro_batches: int, amplified_bound: float = 0.0
) -> tuple[float, float, str]:
    """How far two trainings may lie apart: any loss (nats), the first gradient's norm (relative), and why.

    Seen in 300 steps of a small model: 0.003 and 2e-5 for half wires, 4e-7 and 0 for three ranks in float32.
    """
    if any("16" in hook for hook in hooks):
        return 0.03, 1e-3, "gradients are rounded to half precision on the wire"
    if "deterministic" in hooks and micro_batches > 1:
        return 1e-4, 1e-5, "microbatches are summed in another order, which training amplifies"
    if world_size <= 2:
        return 1e-6, 1e-6, "two ranks leave one order to sum in, so equal bits are expected"
    return max(1e-4, amplified_bound), 1e-5, "more than two ranks are summed in another order, which training amplifies"


def compare(
    first: Run, second: Run, world_size: int, micro_batches: int = 1, *, amplified_bound: float = 0.0
) -> tuple[bool, str]:
    """Whether two trainings agree within the bounds, and the table and verdict to print.

    `world_size`: the most ranks that any one sum goes over. Without norms of gradients only the losses are compared.
    `amplified_bound`: for the losses of more than two ranks, of a model that amplifies more than train_gpt.py's.
    """
    loss_bound, norm_bound, reason = bounds({first.name, second.name}, world_size, micro_batches, amplified_bound)
    losses = [run.losses + [loss for _, loss in run.val_losses] for run in (first, second)]
    loss_difference = largest_difference(losses[0], losses[1])
    # Clipping and AdamW hide a common factor, a forgotten division say, from the losses; the norm shows it.
    norms = first.grad_norms[:1], second.grad_norms[:1]
    norm_difference = largest_difference(*norms) / norms[0][0] if norms[0] else 0.0
    agrees = loss_difference <= loss_bound and norm_difference <= norm_bound
    lines = side_by_side(first, second)
    lines.append(f"largest loss difference, {len(first.losses)} steps: {loss_difference:.3g} (bound {loss_bound:g})")
    if norms[0]:
        lines.append(f"relative difference of the first gradient's norm: {norm_difference:.3g} (bound {norm_bound:g})")
    lines.append(f"{reason}: {'ok' if agrees else 'FAILED'}")
    return agrees, "\n".join(lines)


def save_loss_curve(
    runs: Sequence[Run], bigram: float | None, folder: Path, *, ylabel: str = "loss (nats per byte)"
) -> None:
    """Writes loss.png into `folder`, or says what is missing. `bigram`: the level to be beaten, if there is one."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        say("matplotlib is not installed: no loss curve (pip install 'dcomm[plot]' brings it)")
        return
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, run in enumerate(runs):
        # The second line is dashed: equal losses lie on each other and both must show.
        style = "--" if index else "-"
        steps = range(1, len(run.losses) + 1)
        axes.plot(steps, run.losses, style, color=f"C{index}", alpha=0.6, label=f"{run.name}, training")
        if run.val_losses:
            val_steps, val_losses = zip(*run.val_losses, strict=True)
            axes.plot(val_steps, val_losses, f"o{style}", color=f"C{index}", label=f"{run.name}, validation")
    if bigram is not None:
        axes.axhline(bigram, color="gray", linestyle=":", label="bigram, validation")
    axes.set(xlabel="step", ylabel=ylabel)
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "loss.png")
    say(f"loss curve: {folder / 'loss.png'}")
