"""What a configuration says and a run would never do.

Promises: a key that was given another value than its default, and that nothing in the run looks at, is refused with one line
that names the key, its value and what it belongs to. Pure.

A user's own function may look at any key, so a key of a place that holds one is never refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from miles_async.config.schema import ConfigError, Eval, Placement, RunConfig
from miles_async.config.schema.rollout import POLICIES

_GENERATE = ("single_turn", "multi_turn", "agent")


class Rule(NamedTuple):
    """The keys have an effect only where ``holds``; ``needs`` says so in words."""

    keys: tuple[str, ...]
    holds: Callable[[RunConfig], bool]
    needs: str


def _generates(name: str) -> Callable[[RunConfig], bool]:
    def holds(config: RunConfig) -> bool:
        rollout = config.rollout
        own = rollout.rollout_function not in ("single_turn", "per_sample", "sft")
        return own or is_one_of(rollout.generate_function, (name,), _GENERATE)

    return holds


def is_one_of(value: str, names: Iterable[str], built_in: Iterable[str]) -> bool:
    """``value`` is one of ``names``, or a function of the user's."""
    return value in names or value not in built_in


def _has_reference(config: RunConfig) -> bool:
    return config.algorithm.use_kl_loss or config.algorithm.kl_coef > 0


def _renders_chats(config: RunConfig) -> bool:
    rollout, datasets = config.rollout, config.eval.datasets.values()
    plain = (
        rollout.rollout_function == rollout.generate_function == "single_turn" and config.data.data_source == "files"
    )
    return not plain or config.data.apply_chat_template or any(data.apply_chat_template for data in datasets)


def _rewards(config: RunConfig) -> list[str]:
    named = [data.rm_type for data in config.eval.datasets.values() if data.rm_type]
    return [config.reward.rm_type, *config.reward.rm_types, *config.reward.rm_weights, *named]


def _asks_a_server(config: RunConfig) -> bool:
    return any(name.removeprefix("boxed_") == "remote_rm" or _is_path(name) for name in _rewards(config))


def _is_path(name: str) -> bool:
    """Whether a reward is a function of the user's: the names of built-ins hold neither."""
    return "." in name or ":" in name


RULES = (
    Rule(
        ("learner.recompute_method", "learner.recompute_num_layers"),
        lambda config: config.learner.recompute_granularity == "full",
        'learner.recompute_granularity = "full"',
    ),
    Rule(
        ("staleness.elastic_cap", "staleness.elastic_admit_lag"),
        lambda config: is_one_of(config.staleness.policy, ("elastic",), POLICIES),
        'staleness.policy = "elastic"',
    ),
    Rule(
        ("staleness.capacity",),
        lambda config: is_one_of(config.staleness.policy, ("windowed", "recycle"), POLICIES),
        'staleness.policy = "windowed" or "recycle"',
    ),
    Rule(
        ("learner.recompute_modules",),
        lambda config: config.learner.recompute_granularity == "selective",
        'learner.recompute_granularity = "selective"',
    ),
    Rule(
        ("learner.fp32_parameters",),
        lambda config: config.model.dtype == "bfloat16",
        'model.dtype = "bfloat16": all weights are float32 else',
    ),
    Rule(
        ("learner.optimizer_offload_fraction",),
        lambda config: config.learner.optimizer_cpu_offload,
        "learner.optimizer_cpu_offload = true",
    ),
    Rule(
        ("learner.lora_alpha", "learner.lora_targets"),
        lambda config: config.learner.lora_rank > 0,
        "learner.lora_rank above 0",
    ),
    Rule(
        ("rollout.execute_tool_function", "rollout.tool_timeout_s", "rollout.max_turns"),
        _generates("multi_turn"),
        'rollout.generate_function = "multi_turn"',
    ),
    Rule(
        ("rollout.agent_function", "rollout.agent_timeout_s"),
        _generates("agent"),
        'rollout.generate_function = "agent"',
    ),
    Rule(
        ("rollout.opd_teacher_urls", "algorithm.opd_kl_coef"),
        lambda config: config.algorithm.use_opd,
        "algorithm.use_opd = true",
    ),
    Rule(("algorithm.opd_log_prob_top_k",), lambda config: config.algorithm.use_opd, "algorithm.use_opd = true"),
    Rule(("rollout.routing_replay",), lambda config: config.rollout.generates, "engines: sft asks them for nothing"),
    Rule(
        ("algorithm.opd_top_k_strategy", "algorithm.opd_top_k_weight"),
        lambda config: config.algorithm.opd_log_prob_top_k > 0,
        "algorithm.opd_log_prob_top_k, the number of the teacher's tokens",
    ),
    Rule(
        ("data.chat_template_path", "data.apply_chat_template_kwargs"),
        _renders_chats,
        "data.apply_chat_template = true",
    ),
    Rule(("reward.rm_url",), _asks_a_server, 'a reward "remote_rm"'),
    Rule(
        ("reward.rm_types",), lambda config: config.data.metadata_key is not None, "data.metadata_key, which names them"
    ),
    Rule(
        ("reward.group_rm",),
        lambda config: any(map(_is_path, _rewards(config))),
        "a function of yours as reward.rm_type: a built-in grades each sample by itself",
    ),
    Rule(
        ("algorithm.ref_load", "algorithm.ref_update_interval", "algorithm.kl_loss_type"),
        _has_reference,
        "algorithm.use_kl_loss = true or algorithm.kl_coef > 0",
    ),
    Rule(
        ("algorithm.loss_constant",),
        lambda config: config.algorithm.loss_aggregation not in ("token", "sample"),
        'algorithm.loss_aggregation = "constant"',
    ),
    Rule(
        ("algorithm.advantage_estimator", "algorithm.policy_loss", "algorithm.use_opd", "algorithm.keep_old_actor"),
        lambda config: config.algorithm.loss_type != "sft_loss",
        'algorithm.loss_type = "policy_loss"',
    ),
    Rule(
        ("reward.rm_type", "reward.rm_types", "reward.rm_weights", "reward.reward_key", "reward.reward_post_process"),
        lambda config: config.rollout.rollout_function != "sft" or config.eval.eval_interval is not None,
        "responses: sft grades none",
    ),
    Rule(
        ("run.target_reward",),
        lambda config: config.algorithm.loss_type != "sft_loss",
        'algorithm.loss_type = "policy_loss": what is taught has no rewards',
    ),
    Rule(
        ("learner.adam_beta1", "learner.adam_beta2", "learner.adam_eps"),
        lambda config: config.learner.optimizer == "adam",
        'learner.optimizer = "adam"',
    ),
    Rule(
        ("learner.min_lr", "learner.lr_decay_style"),
        lambda config: config.learner.lr_decay_steps is not None,
        "learner.lr_decay_steps",
    ),
)
TRACKING = (
    Rule(("track.wandb_mode", "track.wandb_project"), lambda config: config.track.wandb, "track.wandb = true"),
    Rule(("track.mlflow_experiment",), lambda config: config.track.mlflow, "track.mlflow = true"),
)
RECORD = Rule(
    ("record.learner_log_probs",),
    lambda config: config.record.level != "off" and config.replay.run is None and config.learner.batch_function is None,
    "groups that the run keeps and trains as they are: record.level, no replay, no learner.batch_function",
)
EVALUATION = Rule(
    tuple(f"eval.{key}" for key in Eval.__struct_fields__ if key not in ("eval_interval", "engine_args")),
    lambda config: config.eval.eval_interval is not None,
    "eval.eval_interval, the versions between two points",
)
REDIS = Rule(
    ("bus.appendfsync", "bus.maxmemory_mb"),
    lambda config: config.bus.url is None,
    "a Redis of our own: bus.url unset",
)

# one that a program hands to the supervisor may have many machines
OF_ANY_PLACEMENT = ("kind", "interface", "shared_dir")
PLACEMENT = (
    Rule(
        tuple(f"placement.{key}" for key in Placement.__struct_fields__ if key not in OF_ANY_PLACEMENT),
        lambda config: config.placement.kind == "ray",
        'placement.kind = "ray"',
    ),
    Rule(
        ("placement.launch_restarts",),
        lambda config: not config.placement.start_ray and config.replay.run is None,
        "a launch on a cluster that is there, and no replay: placement.start_ray = false",
    ),
    Rule(
        ("placement.address",),
        lambda config: not config.placement.start_ray,
        "a cluster that is there: placement.start_ray = false",
    ),
    Rule(
        ("placement.engine", "placement.elastic", "placement.router", "placement.broadcaster"),
        lambda config: config.rollout.generates,
        "engines: sft asks them for nothing",
    ),
    Rule(
        ("placement.evaluator", "placement.eval_engine"),
        lambda config: config.eval.eval_interval is not None,
        "eval.eval_interval, the versions between two points",
    ),
)


def rules_of(choice: str, looks_at: Mapping[str, Sequence[str]]) -> list[Rule]:
    """The rules of a key that chooses one of several parts: ``looks_at`` has for each of ours the keys that are its own."""
    section, _, name = choice.partition(".")

    def chosen(*names: str) -> Callable[[RunConfig], bool]:
        return lambda config: is_one_of(getattr(getattr(config, section), name), names, looks_at)

    rules: list[Rule] = []
    for key in dict.fromkeys(key for keys in reversed([*looks_at.values()]) for key in keys):
        owners = [owner for owner, keys in looks_at.items() if key in keys]
        rules.append(Rule((key,), chosen(*owners), " or ".join(f'{choice} = "{owner}"' for owner in owners)))
    return rules


def check_effect(config: RunConfig, rules: Iterable[Rule]) -> None:
    """Of the keys that nothing looks at by ``rules``, refuse the first. Raises ConfigError."""
    for rule in rules:
        if not rule.holds(config):
            for key in rule.keys:
                _refuse_set(config, key, rule.needs)


def _refuse_set(config: RunConfig, key: str, needs: str) -> None:
    section, _, name = key.partition(".")
    values = getattr(config, section)
    value, default = getattr(values, name), _default(type(values), name)
    if value != default:
        shown = f" = {value!r}" if isinstance(value, int | float | str | list) else ""
        raise ConfigError(f"{key}{shown} has no effect: it needs {needs}")


def _default(section: type[msgspec.Struct], name: str) -> object:
    field = next(field for field in msgspec.structs.fields(section) if field.name == name)
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()  # type: ignore[operator]
