"""What the rewards of a step's groups look like: their parts as curves, and whether they tell anything apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from bus.messages import Group
from miles_async.filters.dynamic_sampling import MIN_STD
from miles_async.groups.rollouts import rollout_of
from miles_async.groups.sound import RAW
from miles_async.train.distributed import LearnerGroups

Array = npt.NDArray[Any]

MAX_PARTS = 100  # of one step: functions may name theirs as they like


class Rewards(msgspec.Struct):
    """The rewards of one rank's groups; lists and sums, so that those of all ranks can be put together."""

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
    each = [{rollout_of(sample): sample for sample in group.samples}.values() for group in groups]
    rollouts = [sample for of_group in each for sample in of_group]
    if not rollouts:
        return Rewards(least=0.0, greatest=0.0)  # JSON has no infinity
    sizes = np.array([len(of_group) for of_group in each])
    trained = np.array([sample.reward for sample in rollouts])
    raw = np.array([sample.reward_parts.get(RAW, sample.reward) for sample in rollouts])
    found = Rewards(
        stds=_stds(raw, sizes).tolist(),
        idle=int((_stds(trained, sizes) <= MIN_STD).sum()),
        least=float(trained.min()),
        greatest=float(trained.max()),
    )
    for sample in rollouts:
        for name, value in sample.reward_parts.items():
            if name != RAW:
                total, count = found.parts.get(name, (0.0, 0))
                found.parts[name] = (total + value, count + 1)
    return found


def _stds(values: Array, sizes: Array) -> Array:
    """Standard deviation (ddof = 1) of the first ``sizes[0]`` values, of the next ``sizes[1]``, and so on; of one it is 0."""
    owners, count = np.repeat(np.arange(len(sizes)), sizes), len(sizes)
    means = np.bincount(owners, values, count) / np.maximum(sizes, 1)
    return np.sqrt(np.bincount(owners, (values - means[owners]) ** 2, count) / np.maximum(sizes - 1, 1))
