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
            "The same at every named place inside the protocol, in init, split and close too, with 1, 2 and 3 of 4 "
            "ranks killed: all the dead are named, what was finished before is right, and nothing is left behind.",
            (
                "tests/reliability/test_kill_storm.py::test_60_kills",
                "tests/reliability/test_kill_storm.py::test_500_kills",
                "tests/reliability/test_failpoints.py::test_every_failpoint_is_stormed",
                "tests/reliability/test_regressions.py::test_killed_while_the_ranks_meet",
            ),
            (
                "kill_storm: {num_kills} kills, {num_aimed} at failpoints: {num_hangs} hangs, {num_wrong} wrong "
                "results, {num_leaks} leaks; told after {p50_ms} ms (p99 {p99_ms} ms, at most {max_ms} ms); all the "
                "dead known after at most {all_named_max_ms} ms",
            ),
        ),
        Promise(
            "The error says how the rank ended: by which signal, with which status, with or without close().",
            ("tests/reliability/test_exits.py::test_the_others_learn_how_a_rank_left",),
            ("exits_amid_a_wait: {runs} exits: told after at most {max_ms} ms",),
        ),
        Promise(
            "It has the lost ranks, their processes and the last operation completed as attributes too, which outlive "
            "pickling; a timeout has the ranks that did not answer.",
            (
                "tests/test_errors.py::test_ranks_of_an_error_outlive_pickling",
                "tests/test_errors.py::test_a_timeout_has_the_rank_that_did_not_answer",
                "tests/test_errors.py::test_a_lost_rank_is_in_the_error_of_each_kind_of_call",
                "tests/test_processes.py::test_a_rank_that_never_comes_is_named",
                "tests/reliability/test_kill_storm.py::test_60_kills",
                "tests/cc/meeting_checks.cc::meeting_errors_travel_with_their_ranks",
            ),
        ),
        Promise(
            "SIGTERM ends a rank (143 in a shell); the others are told within 1 s that it was SIGTERM.",
            (
                "tests/reliability/test_exits.py::test_sigterm_is_told",
                "tests/reliability/test_exits.py::test_the_others_learn_how_a_rank_left",
            ),
            ("sigterm: {ranks} ranks told after at most {told_ms} ms",),
        ),
        Promise(
            "Who makes and closes communicators again and again keeps no descriptor, thread or memory of them.",
            ("tests/reliability/test_many_lives.py::test_1000_communicators",),
        ),
        Promise(
            "A frozen rank is not a dead one: the others wait for it, and after their deadline say that it is alive "
            "and stopped, and where it stands.",
            (
                "tests/reliability/test_frozen_and_slow.py::test_a_stopped_rank_is_reported_as_alive_and_stopped",
                "tests/reliability/test_frozen_and_slow.py::test_a_stopped_rank_is_reported_after_three_seconds",
                "tests/reliability/test_frozen_and_slow.py::test_a_rank_that_is_continued_harms_nobody",
                "tests/reliability/test_frozen_and_slow.py::test_a_rank_that_is_continued_100_times_harms_nobody",
            ),
            (
                "stopped_rank: reported after {reported_s} s at a timeout of {timeout_s} s",
                "many_continued_ranks: stopped and continued {times} times: {harmless} harmless",
            ),
        ),
        Promise(
            "A slow rank is waited for; one line warns.",
            (
                "tests/test_disagreement.py::test_slow_is_fine_and_warns_once",
                "tests/reliability/test_frozen_and_slow.py::test_slow_is_fine_and_warned_of_once",
            ),
            ("slow_rank: {late_s} s late at a timeout of {timeout_s} s: right, {warnings} warning on each rank",),
        ),
        Promise(
            "A rank whose interpreter does not come to run does not stop what it has queued; a timeout says whether "
            "its main thread computes or is not progressing.",
            (
                "tests/reliability/test_frozen_and_slow.py::test_what_is_queued_goes_on_while_its_rank_holds_the_gil",
                "tests/reliability/test_frozen_and_slow.py::test_the_error_says_what_the_rank_that_is_late_does",
            ),
            ("queued_behind_gil: GIL held for {held_s} s: the others had the sum after {waited_s} s",),
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
                "tests/reliability/test_exits.py::test_an_exit_right_after_the_last_operation",
                "tests/reliability/test_exits.py::test_an_exit_right_after_the_last_operation_1000_times",
                "tests/cc/failure_checks.cc::failure_exit_before_a_late_rank",
                "tests/cc/failure_checks.cc::failure_what_was_published_before_counts",
            ),
            ("exits_right_after_the_last_operation: {runs} exits, {problems} false errors or wrong results",),
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
            (
                "tests/test_death.py::test_ctrl_c_ends_a_wait",
                "tests/test_death.py::test_ctrl_c_ends_init",
                "tests/reliability/test_interrupts.py::test_ctrl_c_at_random_moments",
                "tests/reliability/test_interrupts.py::test_ctrl_c_at_100_random_moments",
            ),
            (
                "many_interrupts: at {times} random moments: KeyboardInterrupt after {median_ms} ms, at most "
                "{worst_ms} ms; the others' errors after at most {peers_worst_ms} ms; {hangs} hangs",
            ),
        ),
        Promise(
            "A torch rank may return from main without destroying its process group.",
            (
                "tests/reliability/test_leaving.py::test_exit_without_destroy",
                "tests/reliability/test_leaving.py::test_exit_without_destroy_30_times",
            ),
        ),
        Promise(
            "The processes that `dcomm bench` starts end with it.",
            ("tests/reliability/test_launcher_killed.py::test_ranks_go_with_their_launcher",),
            ("launcher_killed: {ranks} ranks gone after {gone_ms} ms",),
        ),
        Promise(
            "A forked child that uses its parent's communicator gets an error, holds nothing of it, and the parent "
            "goes on.",
            (
                "tests/reliability/test_forks.py::test_forked_workers_feed_a_rank_until_another_one_is_killed",
                "tests/reliability/test_forks.py::test_forked_workers_feed_the_ranks_for_1000_steps",
                "tests/reliability/test_orphans.py::test_a_child_that_outlives_its_rank_holds_nothing_of_dcomm",
                "tests/test_processes.py::test_a_forked_child_is_refused_and_the_parent_goes_on",
                "tests/cc/death_checks.cc::fork_guard_closes_everything_in_a_child",
            ),
            (
                "many_forked_workers: data loader with 4 workers: {steps} steps, {crashes} crashes",
                "orphan: a child that outlives its rank: {descriptors} descriptors, {mappings} mappings of dcomm",
            ),
        ),
        Promise(
            "Two threads in one communicator get an error, different communicators are free.",
            (
                "tests/test_errors.py::test_two_threads_in_one_communicator",
                "tests/reliability/test_threads.py::test_eight_threads",
                "tests/cc/p2p_checks.cc::split_eight_threads_eight_groups",
            ),
        ),
        Promise(
            "Two jobs with one key never mix; ranks of different versions refuse each other and name the versions.",
            (
                "tests/test_processes.py::test_two_jobs_with_one_key",
                "tests/reliability/test_meeting_two_jobs.py::test_two_jobs_with_one_key",
                "tests/reliability/test_meeting_two_jobs.py::test_two_jobs_with_one_key_100_times",
                "tests/reliability/test_meeting_two_jobs.py::test_two_jobs_with_keys_of_their_own",
                "tests/reliability/test_meeting_versions.py::test_two_versions_in_one_job",
                "tests/cc/meeting_checks.cc::meeting_two_jobs_never_mix",
            ),
            ("two_jobs: {starts} starts, {cross_joins} cross-joins",),
        ),
        Promise(
            "Another user's process, or a garbled greeting, does not disturb a job.",
            (
                "tests/cc/meeting_checks.cc::meeting_other_users_are_skipped",
                "tests/cc/meeting_checks.cc::meeting_garbled_hellos_do_not_disturb_the_job",
                "tests/reliability/test_meeting_foreign_user.py::test_a_foreign_user_is_refused_1000_times",
                "tests/reliability/test_meeting_foreign_user.py::test_names_that_a_foreign_user_holds_are_passed_by",
                "tests/reliability/test_meeting_garbled_hellos.py::test_garbled_hellos",
                "tests/reliability/test_meeting_garbled_hellos.py::test_a_million_garbled_hellos",
            ),
            (
                "foreign_user: {knocks} connections of another user: {refused} refused",
                "many_garbled_hellos: {hellos} mutated hellos: {crashes} crashes, memory +{growth_kib} KiB",
            ),
        ),
        Promise(
            "Nothing is left behind: no file, segment, socket or process.",
            ("tests/test_processes.py::test_nothing_is_left_behind",),
        ),
        Promise(
            "A full /dev/shm is no obstacle, and never a SIGBUS.",
            (
                "tests/cc/window_checks.cc::windows_in_a_small_dev_shm",
                "tests/reliability/test_containers.py::test_a_dev_shm_of_one_megabyte",
            ),
            ("small_shm: {ran} jobs ran, {refused} of the forced fallback refused",),
        ),
        Promise(
            "A system call that fails while ranks meet is a typed error, or done without; nothing is left behind.",
            (
                "tests/reliability/test_failing_calls.py::test_failing_calls_that_make_memory",
                "tests/reliability/test_failing_calls.py::test_every_failing_call",
                "tests/reliability/test_failing_calls.py::test_a_call_that_finds_no_thread_can_be_repeated",
            ),
            (
                "every_failing_call: {calls} calls failed one by one: {typed} typed errors, {went_on} done without, "
                "{crashes} crashes, {left_behind} left behind",
            ),
        ),
        Promise(
            "In a container's conditions (64 MB /dev/shm, read-only files, no root, no capabilities, system calls "
            "refused) deaths and mismatches are told all the same.",
            ("tests/reliability/test_containers.py::test_deaths_and_mismatches_are_told",),
        ),
        Promise(
            "`import dcomm` needs NumPy alone: no torch, no GPU, no driver.",
            (
                "tests/test_import.py::test_needs_numpy_only",
                "tests/reliability/test_bare_import.py::test_import_takes_at_most_150_ms",
                "tests/reliability/test_bare_import.py::test_the_benchmark_runs",
            ),
            ("bare_import: {all_ms} ms, of which NumPy takes {numpy_ms} ms",),
        ),
    ),
    "The same bits": (
        Promise(
            "A result has the same bytes on every rank.",
            (
                "tests/reliability/test_same_bits.py::test_every_rank_has_the_same_bytes",
                "tests/reliability/test_same_bits.py::test_every_rank_has_the_same_bytes_10000_times",
                "tests/reliability/test_instruction_sets.py::test_ranks_of_different_instruction_sets",
            ),
            (
                "many_bits_on_every_rank: {reductions} random reductions, {different} different",
                "instruction_sets: ranks with {tables}: {reductions} reductions, {different} different",
            ),
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
            (
                "tests/reliability/test_soak.py::test_soak",
                "tests/reliability/test_soak.py::test_a_short_soak",
                "tests/reliability/test_soak.py::test_nothing_grows_by_the_call",
                "tests/reliability/test_numbers.py::test_results_are_right",
            ),
            (
                "soak: {minutes} minutes, {operations} operations, {splits} splits, {meetings} meetings: "
                "{rss_mib_per_hour} MiB/h (95%: +-{rss_95_half_width}), descriptors and threads constant",
            ),
        ),
    ),
}
