"""Random mismatches of ranks that are threads, as in test_mismatches.py, with as many other seeds as you like.

    python tests/reliability/mismatch_storm.py --first 21000 --cases 900

Run several at once to have them wait for CPUs. The exit status is 1 when a case went wrong or hung; the last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
from mismatch_tally import of_threads


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--cases", type=int, default=400)
    arguments = parser.parse_args(argv)
    tally = of_threads(range(arguments.first, arguments.first + arguments.cases))
    print("\n".join(tally.found))
    summary = {"cases": arguments.cases, "hangs": tally.hangs, "problems": len(tally.found)}
    print(json.dumps({**summary, "slowest_s": round(tally.slowest_s, 3)}))
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main())
