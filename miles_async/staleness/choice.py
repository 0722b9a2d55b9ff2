"""From the configuration to a staleness policy: a built-in one, or the user's."""

from __future__ import annotations

from miles_async.config.schema import Staleness
from miles_async.hooks.hook import Hook
from miles_async.staleness.checked import CheckedPolicy
from miles_async.staleness.policies import Drop, Fifo, OverSampled, StalenessPolicy

POLICY = Hook(
    "staleness.policy",
    ("staleness",),
    returns="a staleness.StalenessPolicy that keeps staleness.max_lag (the learner refuses what is older)",
    default="fifo",
    built_in={name: f"miles_async.staleness.choice.{name}" for name in ("fifo", "drop")},
)


def fifo(staleness: Staleness) -> StalenessPolicy:
    """Train in dealt order."""
    return Fifo(staleness.max_lag)


def drop(staleness: Staleness) -> StalenessPolicy:
    """Train what is ready first, drop what grew too old."""
    return Drop(staleness.max_lag)


def make_policy(config: Staleness, extra: int = 0) -> StalenessPolicy:
    """The policy that ``config.policy`` names, with its bound. ``extra``: ``rollout.surplus``; only with "fifo".

    One of the user's has its decisions looked at. Raises HookError, HookFailed.
    """
    if extra:
        return OverSampled(config.max_lag, extra)
    make = POLICY.load(config.policy)
    return make(config) if config.policy in POLICY.built_in else CheckedPolicy(POLICY, make, config)
