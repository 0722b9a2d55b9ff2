"""What no single key of a configuration can show to be wrong.

Promises: a combination that could not work, or would silently do something else than it says, is refused with one line that
names the keys, their values and what is allowed. Pure: what other rooms know is asked in ``cli/load.py``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from miles_async.config.layout import check as check_layout
from miles_async.config.layout import layout_of
from miles_async.config.lora import check as check_lora
from miles_async.config.optimizer_steps import check as check_steps
from miles_async.config.optimizer_steps import steps_of_batch
from miles_async.config.qkv_format import check as check_qkv_format
from miles_async.config.schema import ConfigError, RunConfig


def check(config: RunConfig, *rooms: Callable[[RunConfig], None]) -> None:
    """All of the checks; ``rooms``, in their turn, are those of other rooms. Raises ConfigError."""
    check_layout(config.learner)
    if config.model.model_provider and layout_of(config.learner).splits_model:
        raise ConfigError(
            "model.model_provider gives a bridge that builds whole models: learner.tensor_parallel_size, "
            "pipeline_parallel_size, context_parallel_size and expert_parallel_size must be 1"
        )
    check_lora(config)
    check_qkv_format(config.learner)
    check_steps(config)
    check_rollout(config)
    for check_room in rooms:
        check_room(config)
    check_engine(config)
    if config.weights.update_interval > config.staleness.max_lag + 1:
        raise ConfigError(
            f"weights.update_interval = {config.weights.update_interval} can never meet staleness.max_lag = "
            f"{config.staleness.max_lag}: at most {config.staleness.max_lag + 1}"
        )
    check_elastic(config)
    check_eval(config)
    check_interface(config.placement.interface)


def check_interface(interface: str | None) -> None:
    """Refuse a network that is none. Raises ConfigError."""
    try:
        if interface is not None and "/" in interface:
            ipaddress.ip_network(interface, strict=False)
    except ValueError as error:
        expected = 'expected the name of an interface, or a network such as "10.0.0.0/8"'
        raise ConfigError(f'placement.interface = "{interface}": {expected} ({error})') from None


def check_elastic(config: RunConfig) -> None:
    """Refuse what cannot go together with weights that are held. Raises ConfigError."""
    staleness, learner = config.staleness, config.learner
    if staleness.policy != "elastic":
        return
    if (steps := steps_of_batch(config)) > 1:
        raise ConfigError(
            f'staleness.policy = "elastic" adds the gradients of several batches up to one optimizer step: a batch cannot have '
            f"{steps} (learner.num_steps_per_rollout, learner.global_batch_size, learner.ppo_epochs = {learner.ppo_epochs})"
        )
    if staleness.max_lag and config.weights.update_interval > staleness.admit_lag:
        raise ConfigError(
            f"weights.update_interval = {config.weights.update_interval} must be at most staleness.elastic_admit_lag = "
            f"{staleness.admit_lag}: while the weights are held nothing else could begin"
        )


def check_engine(config: RunConfig) -> None:
    """Refuse servers that would be taken for hung while they take weights. Raises ConfigError."""
    engine, weights = config.engine, config.weights
    if engine.hang_timeout_s is not None and engine.hang_timeout_s <= weights.timeout_s:
        raise ConfigError(
            f"engine.hang_timeout_s = {engine.hang_timeout_s:g} must be more than weights.timeout_s = {weights.timeout_s:g}: "
            "a server stands still while it takes weights"
        )


def check_rollout(config: RunConfig) -> None:
    """Refuse what could never make a batch, or would be ignored. Raises ConfigError."""
    rollout = config.rollout
    if rollout.surplus < 0:
        raise ConfigError(
            f"rollout.over_sampling_batch_size = {rollout.over_sampling_batch_size} must be at least "
            f"rollout.rollout_batch_size = {rollout.rollout_batch_size}"
        )
    if rollout.generate_function == "multi_turn" and rollout.execute_tool_function is None:
        raise ConfigError(
            'rollout.execute_tool_function is missing: rollout.generate_function = "multi_turn" needs a function '
            "async (name, arguments, metadata) -> str that makes a tool's answer"
        )
    if rollout.generate_function == "agent" and rollout.agent_function is None:
        raise ConfigError(
            'rollout.agent_function is missing: rollout.generate_function = "agent" needs a function (task) that plays one '
            "rollout against task.base_url"
        )
    if rollout.mask_offpolicy_in_partial_rollout and not rollout.partial_rollout:
        raise ConfigError(
            "rollout.mask_offpolicy_in_partial_rollout = true needs rollout.partial_rollout = true: else no sample goes on "
            "after an abort"
        )


# what a dataset cannot be called: eval/NAME is the name of a metric
EVAL_METRICS = ("version", "lag_steps", "duration_seconds")


def check_eval(config: RunConfig) -> None:
    """Refuse an evaluation that could make no point. Raises ConfigError."""
    section, interval, step = config.eval, config.eval.eval_interval, config.weights.update_interval
    for name in section.datasets:
        if name in EVAL_METRICS or name.startswith("skipped_"):
            raise ConfigError(f"eval.datasets.{name}: eval/{name} is a metric already, choose another name")
    if interval is None:
        return
    if not section.datasets:
        raise ConfigError(
            f"eval.eval_interval = {interval} needs a dataset: a table [eval.datasets.NAME] with prompt_data"
        )
    if interval % step:
        raise ConfigError(
            f"eval.eval_interval = {interval} must be a multiple of weights.update_interval = {step}: other versions are not "
            "published"
        )
    if shared := {url.rstrip("/") for url in section.urls} & {url.rstrip("/") for url in config.engine.urls}:
        raise ConfigError(f"eval.urls: {min(shared)} is in engine.urls too, so that training requests would reach it")
