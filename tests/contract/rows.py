"""What SGLang does, row by row, and the tests of this suite that cover it."""

from __future__ import annotations

GENERATE, CONTROL, REFUSALS = "test_generate", "test_control", "test_refusals"
WEIGHTS, EXPERTS = "test_weights", "test_experts"
NOT_USED = "nothing of a run asks for it"

# row -> names of tests without "test_", by module; or why there is none
ROWS: dict[str, dict[str, list[str]] | str] = {
    "errors: body types and JSON, values, schema; 400 and a reason": {
        REFUSALS: ["a_bad_request_is_refused_with_a_reason", "a_body_that_is_no_json_is_refused"]
    },
    "errors: an unknown top-level field is ignored": {
        REFUSALS: ["an_unknown_field_beside_the_sampling_parameters_is_ignored"]
    },
    "errors: an id outside the vocabulary": {REFUSALS: ["an_unknown_token_id_is_refused"]},
    "errors: a request id that is taken": {
        REFUSALS: ["the_id_of_a_running_request_is_refused_and_free_again_after_it"]
    },
    "/generate: POST and PUT, text or ids, one or a batch": {
        GENERATE: [
            "one_request_gives_one_answer_with_all_its_fields",
            "put_is_as_good_as_post",
            "a_text_prompt_is_tokenized",
            "a_batch_is_answered_in_order_each_with_its_own_sampling",
            "one_dictionary_of_sampling_parameters_serves_a_whole_batch",
        ]
    },
    "/generate: temperature, top_p, top_k, seed, n, logit_bias": {
        GENERATE: [
            "temperature_zero_is_the_argmax",
            "top_k_of_one_is_the_argmax",
            "a_tiny_top_p_is_the_argmax",
            "the_same_seed_gives_the_same_tokens_whatever_else_runs",
            "n_gives_so_many_answers_to_one_prompt",
            "a_bias_is_added_to_the_logits",
        ]
    },
    "/generate: stop, stop_token_ids, ignore_eos, no_stop_trim": {
        GENERATE: [
            "a_stop_string_ends_the_response",
            "a_stop_token_ends_the_response_and_is_part_of_it",
            "the_end_token_ends_the_response_unless_ignored",
            "ignoring_the_end_token_ignores_stop_tokens_too",
        ]
    },
    "/generate: penalties, grammars, sessions, LoRA, images, embeddings, hidden states, beams": NOT_USED,
    "/generate: log-probs are of the sampled distribution": {
        GENERATE: [
            "the_two_models_differ_by_far_more_than_the_tolerance",
            "log_probs_are_those_of_the_model_after_temperature_only",
        ]
    },
    "/generate: logprob_start_len": {
        GENERATE: ["prompt_log_probs_come_on_request", "a_text_can_be_scored_without_generating"]
    },
    "/generate: top_logprobs_num, token_ids_logprob, return_text_in_logprobs": {
        GENERATE: ["further_log_probs_come_or_are_refused_but_never_missing"]
    },
    "/generate: routed_experts without its server flag": {GENERATE: ["routed_experts_of_a_dense_model_are_left_out"]},
    "/generate: routed_experts, routed_experts_start_len": {
        EXPERTS: [
            "a_server_says_that_it_returns_experts",
            "experts_are_those_of_transformers_router_from_where_they_are_asked_for",
            "an_aborted_answer_has_the_experts_of_what_it_has",
            "of_a_retracted_answer_the_tokens_of_another_pass_than_its_experts_are_known",
        ]
    },
    "/generate: extra_key is a namespace of the prefix cache": {
        GENERATE: ["a_namespace_of_its_own_keeps_a_prefix_out_of_the_cache", "a_known_prefix_is_taken_from_the_cache"]
    },
    "/generate: streams are cumulative and end with [DONE]": {GENERATE: ["a_stream_grows_and_ends_with_done"]},
    "/generate: a client that goes away": {CONTROL: ["a_client_that_goes_away_aborts_its_request"]},
    "/health, /health_generate, /ready": {
        CONTROL: [
            "an_idle_engine_is_healthy_and_ready",
            "a_paused_engine_is_not_ready_and_is_not_asked_for_its_health",
        ]
    },
    "/model_info, /get_model_info": {CONTROL: ["model_info_names_the_model_and_its_version"]},
    "/server_info, /get_server_info": {
        CONTROL: ["server_info_says_how_many_ranks_an_engine_has"],
        WEIGHTS: ["server_info_keeps_the_version_of_the_start"],
    },
    "/v1/loads": {CONTROL: ["loads_count_what_runs"]},
    "/v1/models": {CONTROL: ["the_list_of_models_says_how_long_a_context_may_be"]},
    "the endpoints that a run needs": {CONTROL: ["no_endpoint_that_a_run_needs_is_missing_and_none_takes_delete"]},
    "/flush_cache": {
        CONTROL: [
            "flushing_an_idle_engine_succeeds_and_a_busy_one_refuses",
            "a_retracted_request_leaves_nothing_to_flush_and_one_held_in_place_does",
        ]
    },
    "/abort_request": {
        CONTROL: [
            "an_aborted_request_answers_with_what_it_has",
            "abort_all_ends_every_request",
            "aborting_nobody_is_no_error_and_a_prefix_is_nobody",
        ]
    },
    "/pause_generation, /continue_generation": {
        CONTROL: [
            "a_pause_holds_everything_and_continue_lets_it_go_on",
            "requests_without_an_end_token_run_to_their_length_over_a_pause",
            "a_pause_that_aborts_ends_what_runs_and_holds_what_comes",
            "abort_is_the_default_mode_of_a_pause",
            "an_unknown_mode_of_pause_is_refused",
        ]
    },
    "/update_weights_from_disk": {
        WEIGHTS: [
            "an_update_from_disk_is_served_and_named",
            "a_bad_path_is_refused_and_the_old_weights_stay",
        ]
    },
    "/begin_weight_update, /end_weight_update": {
        WEIGHTS: ["sessions_do_not_nest", "a_broadcast_outside_a_session_is_refused"]
    },
    "/init_weights_update_group, /destroy_weights_update_group": {WEIGHTS: ["a_group_can_be_left_and_formed_again"]},
    "/update_weights_from_distributed": {
        WEIGHTS: [
            "broadcast_weights_are_served_bit_for_bit",
            "an_update_may_come_in_several_buckets_and_through_one_group_many_times",
        ]
    },
    "/update_weights_from_tensor, /update_weights_from_ipc": NOT_USED,
    "/get_weights_by_name": "400 for Qwen models: /weights_checker takes its place",
    "/update_weight_version": {WEIGHTS: ["the_version_can_be_renamed_while_requests_run"]},
    "/weights_checker": {WEIGHTS: ["the_checker_tells_models_apart_and_is_repeatable"]},
    "/release_memory_occupation, /resume_memory_occupation": NOT_USED,
    "/v1/chat/completions, /v1/completions": "a run's own endpoint for agents asks /generate (sessions/)",
    "an update in flight: not paused": {WEIGHTS: ["an_update_without_a_pause_waits_for_what_runs"]},
    "an update in flight: abort_all_requests": {WEIGHTS: ["an_update_may_abort_what_runs"]},
    "an update in flight: paused, abort": {CONTROL: ["a_pause_that_aborts_ends_what_runs_and_holds_what_comes"]},
    "an update in flight: paused, retract": {WEIGHTS: ["a_retracted_request_goes_on_under_the_new_weights_exactly"]},
    "an update in flight: paused in place, with a flush": {
        WEIGHTS: ["an_update_in_place_that_should_flush_changes_the_weights_and_says_no"]
    },
    "an update in flight: paused in place, without a flush": {
        WEIGHTS: ["requests_held_in_place_keep_their_cache_and_still_report_both_versions"]
    },
    "prefixes of old weights: flushed": {
        WEIGHTS: [
            "a_prefix_from_before_an_update_is_not_reused",
            "a_known_prompt_is_answered_by_the_new_weights_alone_after_an_update_in_any_pause_mode",
        ]
    },
    "prefixes of old weights: kept apart by extra_key": {
        WEIGHTS: ["the_version_as_a_namespace_keeps_old_prefixes_out_without_a_flush"]
    },
    "versions: spans over the output tokens, the last one as weight_version": {
        WEIGHTS: [
            "a_retracted_request_goes_on_under_the_new_weights_exactly",
            "requests_held_in_place_keep_their_cache_and_still_report_both_versions",
        ],
        GENERATE: ["one_request_gives_one_answer_with_all_its_fields"],
    },
}
