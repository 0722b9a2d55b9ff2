"""From the configuration to a staleness policy: a built-in one, or the user's."""

from __future__ import annotations

from miles_async.config.schema import ConfigError, Rollout, RunConfig, Staleness
from miles_async.hooks.hook import Hook
from miles_async.staleness.checked import CheckedPolicy
from miles_async.staleness.policies import Drop, Fifo, StalenessPolicy

POLICY = Hook(
    "staleness.policy",
    ("staleness", "rollout"),
    returns="a staleness.policies.StalenessPolicy that keeps staleness.max_lag (the learner refuses what is older)",
    default="fifo",
    built_in={name: f"miles_async.staleness.choice.{name}" for name in ("fifo", "drop")},
)


def fifo(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Train in dealt order; with ``rollout.over_sampling_batch_size``, the first of so many that are ready."""
    return Fifo(staleness.max_lag, rollout.surplus)


def drop(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Train what is ready first, drop what grew too old. Raises ConfigError where groups to spare are asked for."""
    if rollout.surplus:
        raise ConfigError(
            f'rollout.over_sampling_batch_size = {rollout.over_sampling_batch_size} needs staleness.policy = "fifo": '
            '"drop" takes groups as they finish already, and has more of them with a larger max_lag'
        )
    return Drop(staleness.max_lag)


def make_policy(config: RunConfig) -> StalenessPolicy:
    """The policy that ``staleness.policy`` names. One of the user's has its decisions looked at.

    Raises ConfigError, HookError, HookFailed.
    """
    name, made_from = config.staleness.policy, (config.staleness, config.rollout)
    make = POLICY.load(name)
    return make(*made_from) if name in POLICY.built_in else CheckedPolicy(POLICY, make, *made_from)
