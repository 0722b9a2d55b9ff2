"""A simulation's TOML to its settings. Pure.

Promises: whatever is wrong with the text, or with keys that contradict one another, is one ConfigError line that names the key,
its value and what is allowed (and the nearest valid name); what a run would do and a simulation does not is refused, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from miles_async.config.schema import ConfigError
from miles_async.config.toml import parse_as
from miles_async.config.words import show
from miles_async.simulation.settings import LOOKED_AT, SimulationConfig
from miles_async.staleness.choice import policy_of
from miles_async.staleness.progress import check_progress

# keys whose effect a simulation does not have: what else they may be than this is refused
WITHOUT = {"rollout": {"adaptive_in_flight": False}}


def parse(text: str, overrides: Sequence[str] = (), *, source: str = "simulation") -> SimulationConfig:
    """The settings in TOML text, with ``section.key=value`` overrides on top. Raises ConfigError, one line."""
    config = parse_as(SimulationConfig, text, overrides, source=source)
    check(config)
    return config


def check(config: SimulationConfig) -> None:
    """Raises ConfigError."""
    for section, keys in WITHOUT.items():
        for key, value in keys.items():
            if (given := getattr(getattr(config, section), key)) != value:
                raise ConfigError(
                    f"{section}.{key} = {show(given)}: a simulation has no such thing, only {show(value)}"
                )
    _check_steps(config)
    _check_lengths(config)
    _check_engines(config)
    _check_learner(config)
    policy, interval = policy_of(config.staleness, config.rollout), config.weights.update_interval
    check_progress(policy, config.staleness.policy, config.rollout, interval, config.simulation.num_steps)


def unused(config: SimulationConfig) -> list[str]:
    """The keys of a run's sections that are not at their default and that a simulation does not look at."""
    found = []
    for name, looked_at in LOOKED_AT.items():
        section = getattr(config, name)
        default = type(section)()
        for key in msgspec.structs.fields(type(section)):
            if key.name not in looked_at and getattr(section, key.name) != getattr(default, key.name):
                found.append(f"{name}.{key.name}")
    return found


def _check_steps(config: SimulationConfig) -> None:
    steps, rollout, lag = config.simulation.num_steps, config.rollout, config.staleness.max_lag
    if config.warmup_steps >= steps:
        raise ConfigError(
            f"simulation.warmup_steps = {config.warmup_steps} must be below simulation.num_steps = {steps}"
        )
    if (begun := rollout.over_sampling_batch_size) is not None and begun < rollout.rollout_batch_size:
        raise ConfigError(
            f"rollout.over_sampling_batch_size = {begun} must be at least rollout.rollout_batch_size = "
            f"{rollout.rollout_batch_size}"
        )
    if (interval := config.weights.update_interval) > lag + 1:
        raise ConfigError(
            f"weights.update_interval = {interval} with staleness.max_lag = {lag}: engines would wait for weights that the "
            f"learner offers only after more batches than may be open; at most {lag + 1}"
        )
    if config.staleness.policy == "elastic":
        _check_elastic(config)


def _check_elastic(config: SimulationConfig) -> None:
    """What a run refuses (config/rules.py)."""
    interval, ahead = config.weights.update_interval, config.staleness.admit_lag
    if (steps := config.learner.num_steps_per_rollout) > 1:
        raise ConfigError(
            f'learner.num_steps_per_rollout = {steps}: with staleness.policy = "elastic" a batch has one optimizer step'
        )
    if config.staleness.max_lag and interval > ahead:
        raise ConfigError(
            f"weights.update_interval = {interval} must be at most staleness.elastic_admit_lag = {ahead}: while the weights "
            "are held nothing else could begin"
        )


def _check_lengths(config: SimulationConfig) -> None:
    lengths = config.lengths
    if (lengths.kind == "empirical") != bool(lengths.values):
        raise ConfigError('lengths.values belongs to lengths.kind = "empirical", which needs it')
    if any(value < 1 for value in lengths.values):
        raise ConfigError(f"lengths.values: expected tokens of a response, >= 1, got {show(min(lengths.values))}")
    if (turns := config.environment.turns) > config.rollout.rollout_max_response_len:
        raise ConfigError(
            f"environment.turns = {turns} is more than rollout.rollout_max_response_len: a turn has a token"
        )
    if config.environment.refused == 1:
        raise ConfigError("environment.refused = 1: no group would be of use; expected a share < 1")


def _check_engines(config: SimulationConfig) -> None:
    engines = config.engines
    running, rates = engines.measured_running, engines.measured_tokens_per_s
    if len(running) != len(rates):
        raise ConfigError(
            f"engines.measured_running has {len(running)} numbers, engines.measured_tokens_per_s {len(rates)}: expected as many"
        )
    if any(a >= b for a, b in itertools.pairwise(running)) or any(value <= 0 for value in [*running, *rates]):
        raise ConfigError(
            "engines.measured_running, measured_tokens_per_s: expected numbers > 0, the first ones ascending"
        )
    if not running and not engines.step_s + engines.step_request_s:
        raise ConfigError("engines.step_s = 0 and engines.step_request_s = 0: a token would take no time")
    if any(value <= 0 for value in engines.slow) or len(engines.slow) > engines.num_engines:
        raise ConfigError(f"engines.slow = {show(engines.slow)}: expected at most engines.num_engines numbers > 0")
    if engines.cache_tokens is not None:
        tools = (config.environment.turns - 1) * config.environment.tool_tokens
        longest = config.rollout.rollout_max_response_len + tools
        if longest + config.lengths.prompt_mean > engines.cache_tokens:
            raise ConfigError(
                f"engines.cache_tokens = {engines.cache_tokens} is less than the longest response and its prompt, "
                f"{longest} + {config.lengths.prompt_mean:g}: such a request would never end"
            )


def _check_learner(config: SimulationConfig) -> None:
    shares = config.learner.replicas * config.learner.num_steps_per_rollout
    if config.rollout.rollout_batch_size % shares:
        raise ConfigError(
            f"rollout.rollout_batch_size = {config.rollout.rollout_batch_size} must be a multiple of learner.replicas * "
            f"learner.num_steps_per_rollout = {shares}: each trains on as many groups"
        )
