"""What dcomm's backend need not pass, with the reason and the error that the test then ends with; and silent tests."""

from __future__ import annotations

_MONITORED = (
    "torch's monitored_barrier raises for any backend but gloo before it asks the group; "
    "dcomm.torch.monitored_barrier takes its place",
    "ValueError: monitored_barrier is only implemented for GLOO backend",
)

# A test here that passes is an error too: then it belongs here no longer.
NOT_APPLICABLE: dict[str, tuple[str, str]] = {
    "test_monitored_barrier_gloo": _MONITORED,
    "test_monitored_barrier_gloo_subgroup": _MONITORED,
    "test_monitored_barrier_failure_order": _MONITORED,
    "test_monitored_barrier_wait_all_ranks": _MONITORED,
}

# Tests that pass without one operation of the backend. One that is not here must run some; one that is here, none.
SILENT: dict[str, str] = {
    "test_Backend_enum_class": "names of backends",
    "test_DistributedDataParallel_requires_grad": "a module without parameters that DDP refuses",
    "test_all_reduce_coalesced_max_complex_unsupported": "refused by torch",
    "test_all_reduce_complex_unsupported_ops": "refused by torch",
    "test_destroy_full_group": "makes and destroys a group",
    "test_destroy_group": "makes and destroys a group",
    "test_dump_DDP_relevant_env_vars": "environment variables",
    "test_get_backend": "names of backends",
    "test_get_rank": "ranks write files",
    "test_get_rank_size_full_group": "numbers of a group",
    "test_get_rank_size_group": "numbers of a group",
    "test_monitored_barrier_gloo_rank_0_timeout": "the barrier ends before any rank is asked",
    "test_new_subgroups_with_group_param": "makes groups",
}
