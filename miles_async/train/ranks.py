"""Which of a learner's processes this one is. Pure.

``rank`` and ``world_size`` count all processes of the learner; ``dp_rank`` and ``dp_size`` the data-parallel replicas, each of
which trains its own share of a batch; the processes of one replica (``layout``) all have the same share.
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_async.config.layout import WHOLE, Layout


@dataclass(frozen=True)
class Ranks:
    """The place of one process. ``init_method``: where they all meet, as torch has it ("file://...", "tcp://host:port").

    Raises ValueError: there is no such rank, or so many do not make whole replicas.
    """

    rank: int
    world_size: int
    init_method: str
    layout: Layout = WHOLE

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank = {self.rank} must be in 0..{self.world_size - 1} (world_size = {self.world_size})")
        if self.world_size % self.layout.model:
            raise ValueError(
                f"world_size = {self.world_size} must be a multiple of {self.layout.model}, a replica's size"
            )

    @property
    def dp_rank(self) -> int:
        return self.layout.replica(self.rank, self.world_size)

    @property
    def dp_size(self) -> int:
        return self.layout.replicas(self.world_size)


def alone(init_method: str) -> Ranks:
    """The place of a process that waits for no other one."""
    return Ranks(rank=0, world_size=1, init_method=init_method)
