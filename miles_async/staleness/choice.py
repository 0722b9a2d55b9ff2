"""From the configuration to a staleness policy: a built-in one, or the user's."""

from __future__ import annotations

from miles_async.config.schema import Rollout, RunConfig, Staleness
from miles_async.hooks.hook import Hook
from miles_async.staleness.checked import CheckedPolicy
from miles_async.staleness.policies import StalenessPolicy

BUILT_IN = ("fifo", "drop", "token_mask", "elastic")  # each a file of this room, with a function of its name

POLICY = Hook(
    "staleness.policy",
    ("staleness", "rollout"),
    returns="a staleness.policies.StalenessPolicy that keeps staleness.max_lag (the learner refuses what is older)",
    default="fifo",
    built_in={name: f"miles_async.staleness.{name}.{name}" for name in BUILT_IN},
)


def make_policy(config: RunConfig) -> StalenessPolicy:
    """The policy of a run. Raises ConfigError, HookError, HookFailed."""
    return policy_of(config.staleness, config.rollout)


def policy_of(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """The policy that ``staleness.policy`` names. One of the user's has its decisions looked at.

    Raises ConfigError, HookError, HookFailed.
    """
    make = POLICY.load(staleness.policy)
    built_in = staleness.policy in POLICY.built_in
    return make(staleness, rollout) if built_in else CheckedPolicy(POLICY, make, staleness, rollout)
