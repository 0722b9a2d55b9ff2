"""Rewards: what a response is worth.

A reward is a built-in name, or ``async def reward(sample: RewardSample) -> float`` (or a plain ``def``) of the user,
given as a dotted path ``package.module.function`` or as ``file.py:function``. :class:`Grader` calls it under a
deadline; user code runs in processes of its own, so a grader that hangs, blocks or dies costs one call and nothing
else.
"""

from miles_async.rewards.grader import Grader, RewardError
from miles_async.rewards.registry import RewardConfigError, check_reward, resolve_reward, resolve_reward_path
from miles_async.rewards.sample import RewardSample

__all__ = [
    "Grader",
    "RewardConfigError",
    "RewardError",
    "RewardSample",
    "check_reward",
    "resolve_reward",
    "resolve_reward_path",
]
