"""Which keys of a run may change when it is resumed: every key of ``config/schema/`` is decided here, one by one.

Promises: pure; a key that nobody has decided is found by a test. A run that goes on keeps what its prompts, its record
and its checkpoint were made with (``FIXED``, and why); everything else (``FREE``) counts from the next launch on.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.toml import dump
from miles_async.config.words import NONE

_MODEL = "the checkpoint holds that model"
_PROMPTS = "it decides which prompt lies at which position, and the positions are on record"
_ON_RECORD = "groups that are on record, to be trained, were made with it"
_ADAPTERS = "the checkpoint holds those adapters"
_REPLAYED = "the steps so far are those of that record"
_OPTIMIZER = "the checkpoint holds the optimizer's state and settings"

FIXED: dict[str, str] = {
    "model.hf_checkpoint": _MODEL,
    "model.dtype": _MODEL,
    "model.model_provider": _MODEL,
    "data.prompt_weights": _PROMPTS,
    "data.data_source": _PROMPTS,
    "data.rollout_shuffle": _PROMPTS,
    "data.rollout_max_prompt_len": _PROMPTS,
    "run.seed": "the order of the prompts and the seeds of all samples follow from it",
    "rollout.rollout_batch_size": "batches that are on record have so many groups",
    "rollout.n_samples_per_prompt": "the seeds of samples are numbered by it, and no two samples share one",
    "rollout.rollout_temperature": "the log-probs of groups that are on record are of it",
    "algorithm.loss_type": _ON_RECORD,
    "algorithm.use_opd": _ON_RECORD,
    "algorithm.opd_log_prob_top_k": _ON_RECORD,
    "rollout.routing_replay": _ON_RECORD,
    "algorithm.keep_old_actor": "checkpoints hold the weights of earlier versions with it, and only then",
    "bus.payload_dir": "the groups that are on record lie there",
    "learner.train_backend": "the checkpoint is one of that backend",
    "learner.lora_rank": _ADAPTERS,
    "learner.lora_alpha": _ADAPTERS,
    "learner.lora_targets": _ADAPTERS,
    "learner.optimizer": _OPTIMIZER,
    "learner.adam_beta1": _OPTIMIZER,
    "learner.adam_beta2": _OPTIMIZER,
    "learner.adam_eps": _OPTIMIZER,
    "learner.use_distributed_optimizer": _OPTIMIZER,
    "learner.freeze_moe_router": _OPTIMIZER,
    "learner.fp32_parameters": "the checkpoint holds them as float32, and only them",
    "replay.run": _REPLAYED,
    "replay.from_step": _REPLAYED,
}

# section to keys. data.prompt_data and how its rows are read: the dealer refuses other prompts than it has dealt, so that a
# file may be moved
FREE: dict[str, str] = {
    "model": "device parity_check",
    "data": """prompt_data input_key label_key metadata_key tool_key apply_chat_template apply_chat_template_kwargs
        chat_template_path""",
    "run": """num_steps target_reward watchdog_s watchdog_exit heartbeat_timeout_s bus_lease_s stop_timeout_s drain_timeout_s
        max_restarts restart_window_s restart_backoff_s""",
    "rollout": """over_sampling_batch_size rollout_max_response_len rollout_top_p rollout_top_k rollout_stop
        rollout_stop_token_ids num_workers max_groups_in_flight max_samples_in_flight request_per_sample adaptive_in_flight
        request_timeout_s lease_s max_attempts rollout_function generate_function max_turns tool_call_parser
        execute_tool_function tool_timeout_s agent_function agent_timeout_s partial_rollout
        mask_offpolicy_in_partial_rollout opd_teacher_urls dynamic_sampling_filter sample_filter buffer_filter""",
    "reward": """rm_type rm_types rm_weights reward_key group_rm rm_url timeout_s num_processes reward_post_process""",
    "staleness": "policy max_lag hard_bound too_old capacity elastic_cap elastic_admit_lag",
    "algorithm": """policy_loss correction old_log_probs grpo_std_normalization disable_rewards_normalization
        normalize_advantages gamma lambd eps_clip eps_clip_high eps_clip_c loss_aggregation loss_constant
        entropy_coef kl_loss_type use_kl_loss kl_loss_coef use_unbiased_kl kl_coef ref_load ref_update_interval opd_kl_coef
        opd_top_k_strategy opd_top_k_weight
        tis_clip tis_clip_low mis_level mis_mode mis_upper mis_lower mis_batch_normalize rs_level rs_upper rs_lower
        rs_veto_threshold opsm_delta m2po_threshold dppo_tv_threshold dppo_kl_coef mismatch_warn""",
    "critic": "critic_load critic_save critic_lr critic_lr_warmup_steps value_clip num_critic_only_steps",
    "learner": """num_ranks tensor_parallel_size pipeline_parallel_size virtual_pipeline_size context_parallel_size
        expert_parallel_size expert_tensor_parallel_size sequence_parallel num_steps_per_rollout global_batch_size ppo_epochs
        max_skipped_steps lr min_lr lr_warmup_steps lr_decay_steps lr_decay_style weight_decay clip_grad
        max_tokens_per_micro_batch qkv_format recompute_granularity recompute_method recompute_num_layers recompute_modules
        balance_data log_probs_chunk_size moe_aux_loss_coeff moe_z_loss_coeff moe_router_bias_update_rate
        optimizer_cpu_offload optimizer_offload_fraction megatron_args grad_reduce_timeout_s batch_function
        before_log_prob_function before_train_step_function log_function max_quarantined_groups""",
    "checkpoint": "save_interval keep async_save save_hf post_save_function",
    "engine": """kind num_engines urls max_running_requests context_length tp_size args start_timeout_s hang_timeout_s
        api_key""",
    "weights": """transport backend bucket_mb pause_mode update_waves update_interval timeout_s check_interval
        export_function snapshot_dir delta_dir mirror_dir""",
    "router": """kind args host port health_interval_s health_failures policy max_retries breaker_failures breaker_open_s
        suspect_interval_s slow_share slow_looks hung_s max_concurrency api_key admin_key allowed_engines
        max_body_mb""",
    "bus": "appendfsync maxmemory_mb",
    "monitor": "tensorboard live heartbeat_s metrics_port",
    "track": "wandb wandb_mode wandb_project mlflow mlflow_experiment",
    "eval": """eval_interval skip_eval_before_train datasets n_samples_per_eval_prompt eval_temperature eval_top_p eval_top_k
        eval_max_response_len eval_max_prompt_len num_engines urls engine_args max_in_flight keep_snapshots final_timeout_s
        eval_function eval_log_function""",
    "record": "level max_gb learner_log_probs",
    "topology": "dealer rollout learner broadcaster engine router evaluator eval_engine",
    "placement": """kind address start_ray launch_restarts namespace ready_timeout_s env_vars learner engine rollout
        broadcaster dealer router evaluator eval_engine elastic elastic_learner interface shared_dir""",
}


def _critic(was: str, now: str) -> str:
    from miles_async.rl.hooks import ESTIMATOR  # torch: only where the key has changed
    from miles_async.rl.terms import wants_critic

    try:
        has, had = (wants_critic(ESTIMATOR.load(estimator)) for estimator in (now, was))
    except ConfigError:  # the old function is gone: the learner compares with the checkpoint itself
        return ""
    return "" if has == had else f"the checkpoint is of a run {'with' if had else 'without'} a critic"


def _server(was: str, now: str) -> str:
    """Another address may be the same server's."""
    return "the ledger lies in the other one" if NONE in (was, now) else ""


# why the change from one value to the other (as TOML has them; "none": unset) is refused; "": it is not
CHECKED: dict[str, Callable[[Any, Any], str]] = {"algorithm.advantage_estimator": _critic, "bus.url": _server}


class Change(NamedTuple):
    """A key that has another value than in the launch before, both as TOML has them."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} = {_show(self.now)}, and was {_show(self.was)}"


def changes(earlier: Mapping[str, Any], config: RunConfig, *, begun: bool = True) -> list[Change]:
    """What is otherwise in ``config`` than in the TOML table of the launch before. Raises ConfigError: it cannot change.

    ``begun``: there is something that was made with it; else everything can. A key that the earlier launch did not know had
    its default then; one that is not known any more is passed over.
    """
    found: list[Change] = []
    tables = tomllib.loads(dump(config))
    for section in msgspec.structs.fields(RunConfig):
        old, new = earlier.get(section.encode_name), tables[section.encode_name]
        for key in msgspec.structs.fields(section.type):
            default = _default(key)
            values = [t.get(key.encode_name, default) if isinstance(t, dict) else default for t in (old, new)]
            if values[0] != values[1]:
                found.append(Change(f"{section.encode_name}.{key.encode_name}", *values))
    if begun:
        _refuse([(change, why) for change in found if (why := _obstacle(change))])
    return found


def _default(key: msgspec.structs.FieldInfo) -> Any:
    """The value of a key that the TOML leaves out, as TOML has it."""
    if isinstance(key.default, msgspec.Struct):
        return {name: value for name, value in msgspec.to_builtins(key.default).items() if value is not None}
    if key.default_factory is not msgspec.NODEFAULT:
        return key.default_factory()
    return NONE if key.required or key.default is None else key.default


def _obstacle(change: Change) -> str:
    """Why this change is refused; empty: it is not."""
    check = CHECKED.get(change.key)
    return check(change.was, change.now) if check else FIXED.get(change.key, "")


def _refuse(obstacles: list[tuple[Change, str]]) -> None:
    if obstacles:
        told = "; ".join(f"{change}: {why}" for change, why in obstacles)
        raise ConfigError(f"a run that goes on cannot change {told} (start another run, or leave the key as it was)")


def _show(value: Any) -> str:
    return value if value == NONE else repr(value)


if __name__ == "__main__":
    print("| key | why it stays |\n|---|---|")
    for fixed, reason in FIXED.items():
        print(f"| `{fixed}` | {reason} |")
