"""Which of a learner's processes this one is. Pure.

``rank`` and ``world_size`` count all processes of the learner; ``dp_rank`` and ``dp_size`` the data-parallel replicas, each of
which trains its own share of a batch. Today every process is a replica of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """The place of one process. ``init_method``: where they all meet, as torch has it ("file://...", "tcp://host:port").

    Raises ValueError: there is no such rank.
    """

    rank: int
    world_size: int
    init_method: str

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank = {self.rank} must be in 0..{self.world_size - 1} (world_size = {self.world_size})")

    @property
    def dp_rank(self) -> int:
        return self.rank

    @property
    def dp_size(self) -> int:
        return self.world_size


def alone(init_method: str) -> Ranks:
    """The place of a process that waits for no other one."""
    return Ranks(rank=0, world_size=1, init_method=init_method)
