"""What is graded, by whom, and in which processes."""

from __future__ import annotations

import contextlib
from typing import Any

import psutil

from miles_async.config.schema import Reward
from miles_async.rewards import Graded, Grader, RewardError, RewardSample, resolve_reward


def sample(response: str, label: str | None = "", finish_reason: str = "stop", **fields: object) -> RewardSample:
    return RewardSample(prompt="", response=response, label=label, finish_reason=finish_reason, **fields)  # type: ignore[arg-type]


def row_sample(response: str, label: str | None = None, **metadata: Any) -> RewardSample:
    """Of a row with ``metadata``."""
    return RewardSample(prompt="", response=response, label=label, metadata=metadata)


def worth(name: str, response: str, label: str | None = None, **fields: Any) -> Any:
    """Of ``response`` to the reward ``name``, in this process."""
    return resolve_reward(name)(RewardSample(prompt="", response=response, label=label, **fields))


def grader_of(rm_type: str, max_tasks: int = 2000, start_timeout_s: float = 120.0, **keys: Any) -> Grader:
    return Grader(Reward(rm_type=rm_type, **keys), max_tasks=max_tasks, start_timeout_s=start_timeout_s)


async def score(config: Reward, *samples: RewardSample) -> list[Graded | str]:
    """The grades, with errors as text."""
    async with Grader(config) as grader:
        grades = await grader.score(samples)
    return [str(grade) if isinstance(grade, RewardError) else grade for grade in grades]


def grading_processes() -> list[int]:
    """Those of this process that live (a test before this one may have left it a Redis server)."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "miles_async.rewards.grading_process" in child.cmdline():
                found.append(child.pid)
    return found
