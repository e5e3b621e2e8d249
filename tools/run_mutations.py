"""Breaks the protocol on purpose, one rule at a time, and expects a check to notice.

    python tools/run_mutations.py --exe build/thread/dcomm_checks

The executable holds the checks of tests/cc, built with -fsanitize=thread (`make sanitize` builds it): most of these
mistakes give right results on most runs, and only ThreadSanitizer sees them every time. A check notices by a wrong
result, by a data race, or by a wait that reaches its deadline. A mutation that nothing notices is a survivor: it
means that a rule of csrc/base/mutation.h is not tested, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

RACE_EXIT_CODE = 66
TIMEOUT_S = 60
# ThreadSanitizer sees a race only in the runs in which it comes about; most show it in the first.
ATTEMPTS = 5


@dataclass(frozen=True)
class Expectation:
    """The checks that must notice a mutation, each by itself, and what they need in the environment."""

    checks: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


# Jitter lets ranks run ahead of each other: a wait that is too short shows only when it would have been a wait.
JITTER = {"DCOMM_TEST_JITTER": "1"}
CREDIT_CHECKS = ("protocol_push_credits", "protocol_fifo_credits", "protocol_pair_credits")
DIRECT_CHECKS = ("protocol_direct_loans", "protocol_lent_inputs")
# The executor of GPU blocks, on host threads: what these rules protect there.
DIRECT_CUDA_CHECKS = ("cuda_protocol_direct", "cuda_protocol_pulled")
CUDA_CHECKS = ("cuda_protocol_ring", "cuda_protocol_two_shot", "cuda_protocol_tree")
MUTATIONS = {
    "ring_no_lane_sync": Expectation(("protocol_ring_lanes",)),
    "no_credit_wait": Expectation((*CREDIT_CHECKS, "cuda_protocol_broadcast"), JITTER),
    "credit_off_by_one": Expectation((*CREDIT_CHECKS, "cuda_protocol_broadcast"), JITTER),
    "ring_wrong_chunk": Expectation(("protocol_schedules", "protocol_ring_lanes", "cuda_protocol_ring")),
    "two_shot_no_lane_sync": Expectation(("protocol_two_shot_lanes",)),
    "two_shot_no_gather_sync": Expectation(("protocol_two_shot_lanes",)),
    "two_shot_no_reuse_sync": Expectation(("protocol_two_shot_reuse",)),
    "wait_old_epoch": Expectation(("protocol_epochs", *CUDA_CHECKS), JITTER),
    "single_slot": Expectation(("protocol_two_slots",)),
    "relaxed_publish": Expectation(("protocol_release_acquire", *CUDA_CHECKS)),
    "relaxed_arrive": Expectation(("protocol_release_acquire", *CUDA_CHECKS)),
    "tree_no_reuse_sync": Expectation(("protocol_tree_reuse",)),
    "swapped_tree_parent": Expectation(("protocol_schedules",)),
    "exchange_no_lane_sync": Expectation(("protocol_exchange_lanes",)),
    "exchange_no_reuse_sync": Expectation(("protocol_exchange_reuse",)),
    "single_exchange_slot": Expectation(("protocol_two_exchange_slots",)),
    "wrong_tail_op": Expectation(("protocol_tails",)),
    "single_packet_buffer": Expectation(("protocol_packets", "cuda_protocol_packets"), JITTER),
    "stale_packet_tag": Expectation(("protocol_packets", "cuda_protocol_packets"), JITTER),
    "direct_no_ready_wait": Expectation((*DIRECT_CHECKS, "protocol_schedules", *DIRECT_CUDA_CHECKS)),
    "direct_no_done_wait": Expectation((*DIRECT_CHECKS, "protocol_schedules", *DIRECT_CUDA_CHECKS)),
    "direct_no_lane_sync": Expectation(("protocol_direct_loans",)),
    "direct_own_record_only": Expectation(("protocol_lent_by_some",)),
    "run_from_start": Expectation(("protocol_many_arrays",)),
    "exit_ignores_completed": Expectation(("failure_exit_before_a_late_rank",)),
    "no_last_look": Expectation(("failure_what_was_published_before_counts",)),
    "fp8_scale_off": Expectation(("fp8_scales", "protocol_fp8")),
    "fp8_no_nan_scale": Expectation(("fp8_scales", "protocol_fp8")),
    "fp8_owner_keeps_sum": Expectation(("protocol_fp8",)),
    "fp8_block_owner_keeps_sum": Expectation(("cuda_protocol_fp8",)),
    "fp8_chunk_in_block": Expectation(("protocol_fp8", "fp8_schedules")),
    "block_no_publish_sync": Expectation(("cuda_protocol_ring", "cuda_protocol_tree")),
    "block_no_release_sync": Expectation(("cuda_protocol_broadcast",)),
    "block_no_signal_sync": Expectation(("cuda_protocol_two_shot", "cuda_protocol_all_gather", *DIRECT_CUDA_CHECKS)),
    "block_no_arrive_sync": Expectation(("cuda_protocol_ring", "cuda_protocol_broadcast")),
    "block_no_header_check": Expectation(("cuda_processes_notice_in_packets",)),
    "block_no_header_wait": Expectation(("cuda_processes_wait_for_words_after_packets",)),
    "block_no_envelope_check": Expectation(("cuda_process_messages_differ",)),
    "first_reason_stays": Expectation(("failure_of_an_earlier_operation_replaces_that_of_a_later_one",)),
    "block_no_borrow_check": Expectation(("cuda_direct_disagreement_touches_nothing",)),
}


def declared_mutations() -> set[str]:
    """The names in csrc/base/mutation.h; a new one needs an entry above."""
    header = Path(__file__).resolve().parents[1] / "csrc" / "base" / "mutation.h"
    names = set(re.findall(r'case Mutation::\w+:\s*return "(\w+)"', header.read_text()))
    return names - {"none"}


@dataclass(frozen=True)
class Result:
    """How one run of a check ended."""

    noticed: bool
    how: str
    seconds: float


def run_check(command: list[str], mutation: str, check: str, environment: dict[str, str]) -> Result:
    """Runs one check under one mutation ("none" for the baseline)."""
    settings = {
        **os.environ,
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode={RACE_EXIT_CODE}:report_signal_unsafe=0",
        **environment,
    }
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--mutation", mutation, check],
            env=settings,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(True, f"no end within {TIMEOUT_S} s", time.monotonic() - start)
    seconds = time.monotonic() - start
    if done.returncode == 0:
        return Result(False, "passed", seconds)
    if done.returncode == RACE_EXIT_CODE and "WARNING: ThreadSanitizer: data race" in done.stderr:
        return Result(True, "data race", seconds)
    if done.returncode == 1:
        lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        text = lines[0] if lines else ""
        # main.cc prints "FAILED  name: file:line: message".
        message = text.split(": ", 2)[-1]
        return Result(True, message[:70] if message else "failed", seconds)
    raise RuntimeError(f"{check} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")


def working_command(exe: str) -> list[str]:
    """`exe`, without address randomisation where gcc 12's ThreadSanitizer does not start with it."""
    plain = [exe]
    if subprocess.run([*plain, "--list"], capture_output=True, check=False).returncode == 0:
        return plain
    setarch = shutil.which("setarch")
    if setarch is not None:
        quiet = [setarch, "-R", exe]
        if subprocess.run([*quiet, "--list"], capture_output=True, check=False).returncode == 0:
            return quiet
    sys.exit(f"{exe} --list does not run; build it with -fsanitize=thread and check its messages")


def main() -> int:
    """Prints one line for each (mutation, check); 0 when every one was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exe", required=True, help="dcomm_checks, built with -fsanitize=thread")
    parser.add_argument("--only", metavar="MUTATION", help="one mutation instead of all")
    arguments = parser.parse_args()

    if declared_mutations() != set(MUTATIONS):
        difference = ", ".join(sorted(declared_mutations() ^ set(MUTATIONS)))
        sys.exit(f"csrc/base/mutation.h and the table in {__file__} differ: {difference}")
    if arguments.only is not None and arguments.only not in MUTATIONS:
        sys.exit(f"no mutation '{arguments.only}'; one of {', '.join(MUTATIONS)}")
    command = working_command(str(Path(arguments.exe).resolve()))

    num_bad = 0
    start = time.monotonic()
    row = "{:<24} {:<28} {:>6}  {}"
    print(row.format("mutation", "check", "s", "noticed by"))
    runs = sorted({(check, tuple(e.environment.items())) for e in MUTATIONS.values() for check in e.checks})
    for check, environment in runs:
        result = run_check(command, "none", check, dict(environment))
        if result.how.startswith("no end"):  # on a busy machine; what hangs does so again
            result = run_check(command, "none", check, dict(environment))
        verdict = f"FAILS WITHOUT A MUTATION: {result.how}" if result.noticed else "-"
        num_bad += result.noticed
        print(row.format("none", check, f"{result.seconds:.1f}", verdict), flush=True)
    for mutation, expectation in MUTATIONS.items():
        if arguments.only not in (None, mutation):
            continue
        for check in expectation.checks:
            for _ in range(ATTEMPTS):
                result = run_check(command, mutation, check, expectation.environment)
                if result.noticed:
                    break
            num_bad += not result.noticed
            verdict = result.how if result.noticed else "SURVIVED"
            print(row.format(mutation, check, f"{result.seconds:.1f}", verdict), flush=True)
    print(f"{len(MUTATIONS)} mutations, {num_bad} problems, {time.monotonic() - start:.0f} s")
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
