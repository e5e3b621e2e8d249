"""What dcomm promises, and which tests show it: the rows of docs/promises.md, which tools/make_promises.py writes.

A figure is `key: text`: the key of benchmarks/results/reliability.json, and what is said of it, with the names that the
test gave to record_figure (tests/support/figures.py) in braces.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    text: str
    tests: tuple[str, ...]  # path::name; of a C++ check the name in its file
    figures: tuple[str, ...] = ()


MISMATCHES = "{mismatches} mismatches, {silent} without an error, {hangs} hangs, slowest error after {slowest_s} s"

PROMISES = {
    "A rank is lost": (
        Promise(
            "When a rank dies, every wait of the others ends, and the error names it with its pid.",
            (
                "tests/test_death.py::test_a_killed_rank_is_named_by_every_survivor",
                "tests/test_death.py::test_several_ranks_killed_at_once",
                "tests/test_death.py::test_killed_while_a_forked_child_lives_on",
                "tests/cc/death_checks.cc::liveness_sees_a_kill_at_once",
            ),
        ),
        Promise(
            "A frozen rank is not a dead one: the others wait for it, and after their deadline say that it is alive "
            "and where it stands.",
            (
                "tests/test_death.py::test_a_frozen_rank_that_goes_on_harms_nobody",
                "tests/test_death.py::test_a_frozen_rank_is_reported_as_alive",
            ),
        ),
        Promise(
            "A slow rank is waited for; one line warns.",
            ("tests/test_disagreement.py::test_slow_is_fine_and_warns_once",),
        ),
        Promise(
            "A rank that fails in the program's own code, or aborts with a reason, tells its peers: their errors have "
            "its number, the exception and the line.",
            (
                "tests/reliability/test_exceptions.py::test_peers_are_told_what_failed",
                "tests/reliability/test_exceptions.py::test_threads_are_told_the_reason_of_an_abort",
            ),
        ),
        Promise(
            "A rank that leaves after its part in an operation does not fail that operation on the others.",
            (
                "tests/test_processes.py::test_leaving_right_after_the_last_operation_disturbs_nobody",
                "tests/test_disagreement.py::test_a_peer_that_is_done_may_leave",
            ),
        ),
    ),
    "Ranks disagree": (
        Promise(
            "Ranks that call different operations, or one with different arguments, never get a result. Every rank "
            "raises, in this operation or, where it need not hear from all, in its next one, and the text has both "
            "sides.",
            (
                "tests/reliability/test_mismatches.py::test_random_mismatches_of_threads",
                "tests/reliability/test_mismatches.py::test_random_mismatches_of_processes",
                "tests/reliability/test_mismatches.py::test_many_random_mismatches_of_threads",
                "tests/reliability/test_mismatches.py::test_many_random_mismatches_of_processes",
                "tests/test_disagreement.py::test_mismatch_raises_on_every_rank_and_names_both_sides",
            ),
            (
                f"many_mismatches_of_threads: threads: {MISMATCHES}",
                f"many_mismatches_of_processes: processes: {MISMATCHES}",
            ),
        ),
        Promise(
            "A rank that skips a call is named, with the numbers of the operations and the lines that called them.",
            (
                "tests/reliability/test_mismatches.py::test_a_skipped_call_is_named_with_its_line",
                "tests/reliability/test_mismatches.py"
                "::test_a_call_that_one_rank_skips_before_others_is_named_with_both_lines",
            ),
        ),
        Promise(
            "Ranks that use two communicators in opposite order do not wait for ever: the errors name both "
            "communicators and both lines.",
            ("tests/reliability/test_mismatches.py::test_groups_in_opposite_order_are_named_with_their_lines",),
        ),
    ),
    "Programs, processes, threads": (
        Promise(
            "Ctrl-C ends a wait, and the peers are told.",
            ("tests/test_death.py::test_ctrl_c_ends_a_wait", "tests/test_death.py::test_ctrl_c_ends_init"),
        ),
        Promise(
            "A forked child that uses its parent's communicator gets an error, and the parent goes on.",
            (
                "tests/test_processes.py::test_a_forked_child_is_refused_and_the_parent_goes_on",
                "tests/cc/death_checks.cc::fork_guard_closes_everything_in_a_child",
            ),
        ),
        Promise(
            "Two threads in one communicator get an error, different communicators are free.",
            ("tests/test_errors.py::test_two_threads_in_one_communicator",),
        ),
        Promise(
            "Two jobs with one key never mix; ranks of different versions refuse each other and name the versions.",
            (
                "tests/test_processes.py::test_two_jobs_with_one_key",
                "tests/test_processes.py::test_two_versions_in_one_job",
                "tests/cc/meeting_checks.cc::meeting_two_jobs_never_mix",
            ),
        ),
        Promise(
            "Another user's process, or a garbled greeting, does not disturb a job.",
            (
                "tests/cc/meeting_checks.cc::meeting_other_users_are_skipped",
                "tests/cc/meeting_checks.cc::meeting_garbled_hellos_do_not_disturb_the_job",
            ),
        ),
        Promise(
            "Nothing is left behind: no file, segment, socket or process.",
            ("tests/test_processes.py::test_nothing_is_left_behind",),
        ),
        Promise(
            "A full /dev/shm is no obstacle, and never a SIGBUS.",
            ("tests/cc/window_checks.cc::windows_in_a_small_dev_shm",),
        ),
        Promise(
            "`import dcomm` needs NumPy alone: no torch, no GPU, no driver.",
            ("tests/test_import.py::test_needs_numpy_only",),
        ),
    ),
    "The same bits": (
        Promise(
            "A result has the same bytes on every rank.",
            (
                "tests/reliability/test_same_bits.py::test_every_rank_has_the_same_bytes",
                "tests/reliability/test_same_bits.py::test_every_rank_has_the_same_bytes_10000_times",
            ),
            ("many_bits_on_every_rank: {reductions} random reductions, {different} different",),
        ),
        Promise(
            "A result has the same bytes in every launch.",
            (
                "tests/reliability/test_same_bits.py::test_every_launch_gives_the_same_bytes",
                "tests/reliability/test_same_bits.py::test_fifty_launches_give_the_same_bytes",
            ),
            (
                "many_bits_run_to_run: {launches} launches of {ranks} ranks, {algorithms} algorithms, {sizes} sizes: "
                "{different} with more than one SHA-256",
            ),
        ),
        Promise(
            "With `deterministic=True` neither the split of a tensor nor the cores of the ranks change a byte.",
            (
                "tests/reliability/test_same_bits.py::test_splits_and_cores_change_no_byte",
                "tests/test_bits.py::test_two_shot_gives_one_sha_for_any_split",
            ),
            ("bits_of_splits_and_cores: whole and {splits} splits, {placements} placements: {different} different",),
        ),
    ),
    "Right results": (
        Promise(
            "Any count, address, strides, dtype, operation and algorithm: what NumPy computes in float64, within the "
            "documented bounds.",
            ("tests/test_differential.py::test_fixed_seed", "tests/test_differential.py::test_random_seed"),
        ),
        Promise(
            "More than 2^32 elements.",
            ("tests/test_large.py::test_all_reduce", "tests/test_large.py::test_moves"),
        ),
        Promise(
            "NaN wins in min and max wherever it is, and passes through sums; infinity minus infinity is NaN.",
            (
                "tests/test_semantics.py::test_nan_wins_in_min_and_max_wherever_it_is",
                "tests/test_semantics.py::test_a_nan_result_is_the_quiet_nan",
                "tests/test_wire.py::test_infinity_and_nan_pass",
            ),
        ),
        Promise(
            "On a half wire an average divides before the cast: one large gradient does not overflow.",
            ("tests/test_wire.py::test_one_large_gradient_survives_where_torch_overflows",),
        ),
    ),
    "A long life": (
        Promise(
            "Memory, descriptors and threads do not grow, and numbers of operations pass 2^32 unnoticed.",
            ("tests/reliability/test_soak.py::test_soak", "tests/reliability/test_soak.py::test_a_short_soak"),
            (
                "soak: {minutes} minutes, {operations} operations, {splits} splits, {meetings} meetings: "
                "{rss_mib_per_hour} MiB/h (95%: +-{rss_95_half_width}), descriptors and threads constant",
            ),
        ),
    ),
}
