"""Rewards: what a response is worth.

A reward is a built-in name, or ``async def reward(sample: RewardSample) -> float`` (or a plain ``def``; or it returns a dict
of numbers) of the user, given as a dotted path ``package.module.function`` or as ``file.py:function``. :class:`Grader` calls
it under a deadline; user code runs in processes of its own, so a grader that hangs, blocks or dies costs one call and
nothing else. A new built-in is one function of a ``RewardSample`` and one entry in ``table.py``.
"""

from miles_async.rewards.graded import Graded, RewardError
from miles_async.rewards.grader import Grader
from miles_async.rewards.registry import RewardConfigError, check_reward, resolve_reward, resolve_reward_path
from miles_async.rewards.sample import RewardSample

__all__ = [
    "Graded",
    "Grader",
    "RewardConfigError",
    "RewardError",
    "RewardSample",
    "check_reward",
    "resolve_reward",
    "resolve_reward_path",
]
