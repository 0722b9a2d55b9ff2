"""Which rows the synthetic engine keeps, too: those that need no model. Without it they would be said, and not tested."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from benchmarks.lib.synthetic.batch import Latency
from benchmarks.lib.synthetic_engine import SyntheticEngine
from contract.client import Engine

QUICK = Latency(step_s=0.0005, step_request_s=0.0, prefill_token_s=0.0)
KEPT = frozenset(
    [
        "test_a_bad_request_is_refused_with_a_reason",
        "test_a_body_that_is_no_json_is_refused",
        "test_a_broadcast_outside_a_session_is_refused",
        "test_a_client_that_goes_away_aborts_its_request",
        "test_a_pause_that_aborts_ends_what_runs_and_holds_what_comes",
        "test_a_retracted_request_leaves_nothing_to_flush_and_one_held_in_place_does",
        "test_abort_all_ends_every_request",
        "test_abort_is_the_default_mode_of_a_pause",
        "test_aborting_nobody_is_no_error_and_a_prefix_is_nobody",
        "test_an_idle_engine_is_healthy_and_ready",
        "test_an_unknown_field_beside_the_sampling_parameters_is_ignored",
        "test_an_unknown_mode_of_pause_is_refused",
        "test_an_unknown_token_id_is_refused",
        "test_flushing_an_idle_engine_succeeds_and_a_busy_one_refuses",
        "test_loads_count_what_runs",
        "test_model_info_names_the_model_and_its_version",
        "test_one_dictionary_of_sampling_parameters_serves_a_whole_batch",
        "test_requests_without_an_end_token_run_to_their_length_over_a_pause",
        "test_server_info_says_how_many_ranks_an_engine_has",
        "test_sessions_do_not_nest",
        "test_the_id_of_a_running_request_is_refused_and_free_again_after_it",
    ]
)


@asynccontextmanager
async def synthetic_engine() -> AsyncIterator[Engine]:
    """One of its own for each test."""
    made = SyntheticEngine(latency=QUICK, vocab_size=512, context_length=4096)
    await made.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Engine("synthetic", made.url, Path("synthetic"), Path("other"), session)
    finally:
        if made.alive:
            made.die()
