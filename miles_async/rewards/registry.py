"""From the name in ``reward.rm_type`` to the function.

Promises: a name that leads nowhere, or to something that cannot take one sample, is refused before the run starts, in
one line that names the nearest valid name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from miles_async.hooks import Hook, HookError
from miles_async.rewards import builtin_rewards
from miles_async.rewards.sample import RewardSample

RewardFunction = Callable[[RewardSample], Any]  # a number, or an awaitable of one

# cheap enough for the event loop
INLINE: dict[str, Callable[[RewardSample], float]] = {
    "graded_match": builtin_rewards.graded_match,
    "exact_match": builtin_rewards.exact_match,
}
# module and package; a grading process imports it before its first call
NEEDS = {"math": ("math_verify", "math-verify")}


class RewardConfigError(HookError):
    """``reward.rm_type`` does not lead to a reward function."""


REWARD = Hook(
    "reward.rm_type",
    ("sample",),
    returns="a number, or an awaitable of one",
    default="graded_match",
    built_in={name: f"miles_async.rewards.builtin_rewards.{name}" for name in (*INLINE, "math")},
    needs=NEEDS,
    error=RewardConfigError,
)


def resolve_reward_path(rm_type: str, base: Path) -> str:
    """``rm_type`` with its file made absolute; ``module.function`` means a file too if ``base`` holds module.py."""
    return REWARD.resolve_path(rm_type, base)


def check_reward(rm_type: str) -> None:
    """Raises RewardConfigError unless :func:`resolve_reward` would succeed (imports the user's module)."""
    resolve_reward(rm_type)


def resolve_reward(rm_type: str) -> RewardFunction:
    """The function that ``rm_type`` names. Raises RewardConfigError: no such name, failed import, wrong signature."""
    return REWARD.load(rm_type)
