"""Built-in dynamic sampling filters: whether a scored group teaches anything. Pure.

Each takes the samples of one group and returns (keep, reason of the drop).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bus.messages import Sample
from miles_async.groups.rollouts import rollout_of

MIN_STD = 1e-8


def nonzero_std(samples: Sequence[Sample]) -> tuple[bool, str]:
    """Keeps a group whose rewards differ: else all its advantages are 0.

    The standard deviation is unbiased, in float64, over rollouts (the branches of one have one reward); above 1e-8 as in
    Miles (``check_reward_nonzero_std``). A single rollout has none, so it is refused.
    """
    rewards = np.array(list({rollout_of(sample): sample.reward for sample in samples}.values()), dtype=np.float64)
    return len(rewards) > 1 and float(np.std(rewards, ddof=1)) > MIN_STD, "zero_std"


def no_aborted(samples: Sequence[Sample]) -> tuple[bool, str]:
    """Keeps a group in which no response was broken off (``check_no_aborted``)."""
    return all(sample.finish_reason != "abort" for sample in samples), "aborted_sample"
