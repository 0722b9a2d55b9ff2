"""When a run has reached ``run.target_reward``: pure."""

from __future__ import annotations

from collections.abc import Sequence

REWARD_WINDOW = 5  # steps that it looks at


def reached(rewards: Sequence[float], target: float | None) -> bool:
    """Whether the mean of the last ``rewards``, mean rewards of steps, comes to ``target``; None: there is none."""
    last = list(rewards)[-REWARD_WINDOW:]
    return target is not None and len(last) == REWARD_WINDOW and sum(last) / REWARD_WINDOW >= target
