"""The built-in ``weighted_sum``: several rewards of one sample added up, by ``reward.rm_weights``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from miles_async.rewards.graded import Graded, RewardError


def weighted_sum(grades: Mapping[str, Graded | RewardError], weights: Mapping[str, float]) -> Graded | RewardError:
    """``sum of weights[name] * grades[name].reward``; the parts are the addends, which sum to the reward.

    grades: of one sample, by the name of each part; weights: by the same names. An error if one of the grades is one.
    """
    addends: dict[str, float] = {}
    for name, grade in grades.items():
        if isinstance(grade, RewardError):
            return RewardError(grade.reason, f"{name}: {grade.detail}", grade.place, grade.trace)
        addends[name] = weights[name] * grade.reward
    total = sum(addends.values())
    if not math.isfinite(total):
        return RewardError("reward_error", f"the weighted sum is not finite: {addends}")
    return Graded(total, addends)
