"""What the rewards of a step's groups look like: their parts as curves, and whether they tell anything apart."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from bus.messages import Group
from miles_async.filters.dynamic_sampling import MIN_STD, rollout_of
from miles_async.sound_group import RAW
from miles_async.train.distributed import LearnerGroups

MAX_PARTS = 100  # of one step: functions may name theirs as they like


class Rewards(msgspec.Struct):
    """Of one rank's groups; lists and sums, so that those of all ranks can be put together."""

    stds: list[float] = []  # of the rewards as they were graded, in each group
    idle: int = 0  # groups whose rewards, as they are trained on, are all equal
    least: float = float("inf")
    greatest: float = float("-inf")
    parts: dict[str, tuple[float, int]] = {}  # name to sum and count, over rollouts


def reward_metrics(groups: Sequence[Group], ranks: LearnerGroups) -> dict[str, float]:
    """Metrics of all ranks' groups. Collective.

    ``reward_std``: mean over groups of the standard deviation (ddof = 1) of the raw rewards of its rollouts;
    ``zero_std_groups``: how many groups have equal rewards (as they are trained on) in all rollouts; ``reward_min``,
    ``reward_max``: of the trained rewards; ``reward/PART``: mean over rollouts of a part of the reward.
    """
    text = msgspec.json.encode(rewards_of(groups)) + b"\n"
    # as bytes: torch would pickle an object
    mine = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    found = [
        msgspec.json.decode(line, type=Rewards) for line in bytes(ranks.concatenate(mine).tolist()).splitlines() if line
    ]
    stds = [std for one in found for std in one.stds]
    metrics = {
        "reward_std": float(np.mean(stds)) if stds else 0.0,
        "zero_std_groups": float(sum(one.idle for one in found)),
    }
    if full := [one for one in found if one.stds]:
        metrics["reward_min"] = min(one.least for one in full)
        metrics["reward_max"] = max(one.greatest for one in full)
    for name in sorted({name for one in found for name in one.parts})[:MAX_PARTS]:
        sums = [one.parts[name] for one in found if name in one.parts]
        metrics[f"reward/{name}"] = sum(total for total, _ in sums) / sum(count for _, count in sums)
    return metrics


def rewards_of(groups: Sequence[Group]) -> Rewards:
    """What one rank tells the others."""
    found = Rewards()
    for group in groups:
        rollouts = {rollout_of(sample): sample for sample in group.samples}.values()
        trained = np.array([sample.reward for sample in rollouts])
        raw = np.array([sample.reward_parts.get(RAW, sample.reward) for sample in rollouts])
        found.stds.append(float(raw.std(ddof=1)) if len(raw) > 1 else 0.0)
        found.idle += len(trained) < 2 or bool(trained.std(ddof=1) <= MIN_STD)
        found.least, found.greatest = min(found.least, *trained.tolist()), max(found.greatest, *trained.tolist())
        for sample in rollouts:
            for name, value in sample.reward_parts.items():
                if name != RAW:
                    total, count = found.parts.get(name, (0.0, 0))
                    found.parts[name] = (total + value, count + 1)
    return found if groups else Rewards(least=0.0, greatest=0.0)  # JSON has no infinity
