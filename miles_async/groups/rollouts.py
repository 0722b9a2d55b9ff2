"""Which samples of a group are one rollout. Pure."""

from __future__ import annotations

from bus.messages import Sample


def rollout_of(sample: Sample) -> int:
    """Which of its group's rollouts a sample belongs to."""
    return sample.index if sample.rollout_index < 0 else sample.rollout_index
