"""From the configuration to a staleness policy: a built-in one, or the user's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from miles_async.config.schema import ConfigError, Rollout, RunConfig, Staleness
from miles_async.config.schema.rollout import POLICIES
from miles_async.hooks.hook import Hook
from miles_async.staleness.checked import CheckedPolicy
from miles_async.staleness.policies import StalenessPolicy, is_outdated
from miles_async.staleness.progress import check_progress

BUILT_IN = POLICIES  # each a file of this room, with a function of its name

POLICY = Hook(
    "staleness.policy",
    ("staleness", "rollout"),
    returns="a staleness.policies.StalenessPolicy that keeps staleness.max_lag (the learner refuses what is older) or, with "
    "staleness.hard_bound = false, has no hard_bound",
    default="fifo",
    built_in={name: f"miles_async.staleness.{name}.{name}" for name in BUILT_IN},
)


def make_policy(config: RunConfig) -> StalenessPolicy:
    """The policy of a run. Raises ConfigError, HookError, HookFailed."""
    return policy_of(config.staleness, config.rollout)


def check(config: RunConfig) -> None:
    """Refuse what :func:`make_policy` refuses, and a policy that could not go on. Raises ConfigError, HookError, HookFailed."""
    steps, interval = config.run.num_steps, config.weights.update_interval
    check_progress(make_policy(config), config.staleness.policy, config.rollout, interval, steps)


def policy_of(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """The policy that ``staleness.policy`` names. One of the user's has its decisions looked at.

    Raises ConfigError, HookError, HookFailed.
    """
    make = POLICY.load(staleness.policy)
    built_in = staleness.policy in POLICY.built_in
    policy = make(staleness, rollout) if built_in else CheckedPolicy(POLICY, make, staleness, rollout)
    if staleness.hard_bound and not policy.hard_bound:
        raise ConfigError(
            f'staleness.policy = "{staleness.policy}" has no hard bound: it may train a token of any age, and only aims at '
            f"staleness.max_lag = {staleness.max_lag}; staleness.hard_bound = false allows that"
        )
    return policy


def outdated(config: RunConfig) -> Callable[[int, int], bool]:
    """Of a group that is still generated: (version of its oldest token, learner's version) to whether no step can train it any
    more. Of a policy of the user's that is not known: none is. Raises ConfigError."""
    policy = make_policy(config)
    return partial(is_outdated, policy) if config.staleness.policy in POLICY.built_in else lambda oldest, version: False
