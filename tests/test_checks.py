"""Runs every check of tests/cc as a test of its own.

The names stand here because pytest wants them before the checks are built; `test_no_check_is_forgotten` compares.
"""

from __future__ import annotations

from types import ModuleType

import pytest

# By source file in tests/cc.
CHECKS = {
    "algo_checks": [
        "algo_random_sequences",
        "algo_every_case",
        "algo_uneven_lanes",
        "algo_bits_ignore_splits_channels_slots",
        "algo_ring_and_two_shot_differ",
    ],
    "cuda_block_checks": [
        "cuda_two_shot_matches_host_unrolled",
        "cuda_two_shot_matches_host_any",
        "cuda_ring_matches_host",
        "cuda_two_shot_many_ranks",
        "cuda_algorithms_alternate",
        "cuda_missing_rank_ends_the_grid",
        "cuda_stop_word_ends_the_grid",
        "cuda_plan_uses_all_channels",
    ],
    "cuda_group_checks": [
        "cuda_group_launches_once_for_all",
        "cuda_group_of_one",
        "cuda_group_mismatch_raises_on_all",
        "cuda_group_deadline_names_the_missing",
        "cuda_group_deadline_of_one_ends_all",
        "cuda_group_reports_what_kernels_report",
        "cuda_group_synchronize_check",
        "cuda_group_refusals",
        "cuda_group_too_many_ranks",
        "cuda_group_stop_and_leave",
        "cuda_group_interrupt",
        "cuda_group_two_threads_as_one_rank",
        "cuda_group_options_from_environment",
        "cuda_loader_without_cuda_part",
    ],
    "death_checks": [
        "liveness_tells_goodbye_from_death",
        "liveness_ends_of_both_sides_at_once_are_goodbyes",
        "liveness_reads_a_goodbye_behind_a_reset",
        "liveness_garbage_counts_as_death",
        "liveness_thread_has_a_name_and_takes_no_signals",
        "liveness_sees_a_kill_at_once",
        "liveness_sees_a_kill_although_a_worker_holds_the_socket",
        "liveness_of_processes_tells_goodbye_from_exit",
        "fork_guard_closes_everything_in_a_child",
    ],
    "failure_checks": [
        "failure_abort_ends_every_wait",
        "failure_of_later_operation_is_not_ours",
        "failure_peer_exit_ends_every_wait",
        "failure_exit_after_broadcast_fails_the_next_only",
        "failure_exit_right_after_all_reduce",
        "failure_timeout_names_whom_we_waited_for",
        "failure_mismatch_same_algorithm",
        "failure_mismatch_other_operation",
        "failure_mismatch_seen_in_next_operation",
        "failure_mismatch_seen_by_a_rank_left_behind",
        "failure_interrupt_and_stall_warning",
    ],
    "kernel_checks": [
        "kernel_table_selection",
        "kernel_conversions_all_halves",
        "kernel_conversions_midpoints",
        "kernel_conversions_random",
        "kernel_encode_decode",
    ],
    "p2p_checks": [
        "p2p_schedule_in_random_orders",
        "p2p_schedule_needs_its_credits",
        "p2p_lanes_and_channels",
        "p2p_random_messages_queued_in_random_orders",
        "p2p_complex_and_other_dtypes",
        "p2p_message_too_large_to_stash",
        "split_threads_many_times",
        "split_processes_share_one_mesh",
    ],
    "kernel_reduce_checks": [
        "kernel_reduce_against_reference",
    ],
    "meeting_checks": [
        "meeting_version_mismatch_is_named_by_all",
        "meeting_other_mismatches_are_named_by_all",
        "meeting_hello_survives_a_round_trip_and_nothing_else",
        "meeting_garbled_hellos_do_not_disturb_the_job",
        "meeting_second_claim_to_a_rank_is_refused",
        "meeting_rank_of_another_launcher_yields_its_seat",
        "meeting_ranks_of_different_launchers_can_be_one_job",
        "meeting_another_rank_0_gives_its_ranks_away",
        "meeting_two_jobs_never_mix",
        "meeting_rank_0_takes_over_from_a_vanishing_one",
        "meeting_other_users_are_skipped",
    ],
    "mesh_checks": [
        "mesh_of_1_rank",
        "mesh_of_2_ranks",
        "mesh_of_3_ranks",
        "mesh_of_8_ranks",
        "mesh_messages_up_to_1_mib",
        "mesh_by_exact_token",
        "mesh_timeout_names_missing_ranks",
        "mesh_timeout_of_one_rank_is_a_timeout_of_all",
        "mesh_timeout_of_a_collective_names_the_silent_rank",
        "mesh_interrupted_rank_is_named_by_all",
        "mesh_rank_lost_in_the_meeting_is_named_at_once",
        "mesh_rank_lost_after_the_meeting_is_named_at_once",
        "mesh_different_collectives_are_an_error",
    ],
    "mutation_checks": [
        "protocol_ring_lanes",
        "protocol_push_credits",
        "protocol_fifo_credits",
        "protocol_two_shot_lanes",
        "protocol_two_shot_reuse",
        "protocol_epochs",
        "protocol_two_slots",
        "protocol_release_store",
    ],
    "partition_checks": [
        "partition_covers_everything_once",
        "partition_chunks_ignore_tuning",
        "ring_passes_on_what_it_received",
        "canonical_counter_is_the_tree",
        "window_places_are_disjoint",
    ],
    "schedule_checks": [
        "schedule_small_worlds",
        "schedule_large_worlds",
        "schedule_broadcasts_run_ahead",
        "schedule_costs_match_design",
        "schedule_algorithms_differ",
    ],
    "verifier_checks": [
        "verifier_reports_wrong_chunk",
        "verifier_reports_missing_terms",
        "verifier_reports_too_few_slots",
        "verifier_reports_missing_credits",
        "verifier_reports_lost_messages",
        "verifier_reports_single_slot",
        "verifier_reports_input_read_after_result",
    ],
    "window_checks": [
        "windows_on_the_heap",
        "windows_of_memfd_are_shared",
        "windows_of_dev_shm_are_shared_and_leave_no_name",
        "windows_are_shared_between_processes",
        "windows_are_sealed",
        "windows_of_a_peer_are_checked",
        "windows_do_not_exist_in_a_forked_child",
        "windows_in_a_small_dev_shm",
    ],
}
NAMES = [name for names in CHECKS.values() for name in names]


def test_no_check_is_forgotten(checks: ModuleType) -> None:
    built = checks.names()
    assert sorted(built) == sorted(NAMES), "keep the list above in step with tests/cc/*_checks.cc"


@pytest.mark.parametrize("name", NAMES)
def test_check(checks: ModuleType, name: str) -> None:
    checks.run(name)
