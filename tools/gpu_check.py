"""Checks and times CUDA collectives of ranks on one GPU, and says which of the promised figures are reached.

    python tools/gpu_check.py PART [--small] [--max-seconds S] [--json FILE]
    python tools/gpu_check.py figures FOLDER... [--json FILE]

Parts (tools/gpu):
correct     every result bit for bit against the host executor's; failures.
timing      large all-reduces beside the floor 2 N S / (bandwidth of a device copy) and beside torch in one process.
graphs      small ones by replay of CUDA graphs, beside the floor of a launch and a flag.
crossovers  every algorithm, 1 KiB to 256 MiB, 2 to 32 ranks: where thresholds belong.
processes   ranks that are processes, both kinds of windows, the death of one; also under MPS where there is one.
hooks       DDP hooks of two processes on the GPU: gradients, and a profile of what runs beside what.
overlap     steps of the GPT on two ranks that are threads, beside ones without communication; a profile.
registered  arrays that all ranks reach beside staged ones; the same weights on any number of ranks.
lists       packing of 200 ResNet-50-shaped tensors beside a device copy and torch._foreach_copy_.

figures reads what the parts wrote (gpu_PART.json) and prints each figure: reached, not reached, or not measured; it
needs no GPU. One GPU says nothing of NVLink. The steps around this script are in gpu_check.sh.

Exit status: 0; 1 wrong results, or a part could not go on; 2 no GPU or bad arguments. A missed figure is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from gpu.figures import PARTS, check_figures, failures, line
from gpu.report import Budget, Report, head


def parse(argv: list[str]) -> argparse.Namespace:
    text = __doc__ or ""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "figures"])
    parser.add_argument("folders", nargs="*", type=Path, help="of figures: a later folder's files go before")
    parser.add_argument("--small", action="store_true", help="correct: few sizes, under compute-sanitizer")
    parser.add_argument("--max-seconds", type=float, default=420, help="what comes later is left out (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--commit", default=os.environ.get("COMMIT", ""), help="where the checkout has no repository")
    options = parser.parse_args(argv)
    if (options.part == "figures") != bool(options.folders):
        parser.error("figures reads folders, at least one; a part takes none")
    return options


def gather_figures(folders: list[Path]) -> dict[str, Any]:
    """Of all parts, from the newest of their files."""
    found: dict[str, Any] = {"figures": [], "parts": {}}
    for part in PARTS:
        paths = [path for folder in folders if (path := folder / f"gpu_{part}.json").is_file()]
        report = json.loads(paths[-1].read_text(encoding="utf-8")) if paths else None
        if report is not None:
            keys = ("machine", "versions", "date", "command", "commit", "failure", "skipped")
            found["parts"][part] = {key: report[key] for key in keys if key in report}
        found["figures"] += check_figures(part, report)
    return found


def about(commit: str) -> dict[str, Any]:
    """The head of a part's report."""
    import dcomm
    from dcomm.bench.cuda.machine import gpu_facts, torch_versions

    (comm,) = dcomm.init_threads(1)
    isa = str(comm._core.isa)
    comm.close()
    return head(shlex.join(sys.argv), commit, gpu_facts(), torch_versions(), isa)


def run_part(options: argparse.Namespace, report: Report, budget: Budget) -> None:
    """The modules are imported here: figures needs neither torch nor a GPU."""
    if options.part == "correct":
        from gpu import correct

        correct.run(report, budget, options.small)
    else:
        import importlib

        importlib.import_module(f"gpu.{options.part}").run(report, budget)


def has_failed(report: dict[str, Any]) -> bool:
    """Wrong results, or errors. Of rivals, wrong ones are their own affair."""
    rows = [row for row in report["rows"] if row.get("what") != "torch"]
    wrong = report.get("num_differing", 0) + sum(row.get("num_wrong", 0) for row in rows)
    return bool(wrong) or bool(failures(report))


def main(argv: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    if options.part == "figures":
        found = gather_figures(options.folders)
        print("\n".join(map(line, found["figures"])))
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    budget = Budget(options.max_seconds)
    import torch

    if not torch.cuda.is_available():
        print("torch.cuda is not available: this script needs a GPU", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the time is over: processes, and MPS, are ended
    report = Report(options.json, about(options.commit), budget)
    print(json.dumps(report.values, indent=1))
    try:
        run_part(options, report, budget)
    except Exception as error:
        traceback.print_exc()
        report.values["failure"] = f"{type(error).__name__}: {error}"[:2000]
    report.values["figures"] = check_figures(options.part, report.values)
    report.save()
    print("\n".join(map(line, report.values["figures"])))
    if budget.skipped:
        print(f"left out, no time: {len(budget.skipped)}, first {budget.skipped[0]}")
    return 1 if has_failed(report.values) else 0


if __name__ == "__main__":
    sys.exit(main())
