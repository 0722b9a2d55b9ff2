"""Which groups are where, as the run's ledger counts them.

Promises: dealt = in flight + ready + batched + dropped (by reason), at every moment, in groups; a group is in one place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bus.messages import ReadyGroup
from miles_async.simulation.samples import SimulatedGroup


class SimulatedLedger:
    """Open groups are those dealt, not dropped, and not in a batch."""

    def __init__(self) -> None:
        self.open: dict[int, SimulatedGroup] = {}  # by position, in dealt order
        self.ready: dict[str, ReadyGroup] = {}  # in the order of publication
        self.dealt = self.batched = self.trained = self.steps = 0  # batched: not trained yet
        self.dropped: Counter[str] = Counter()

    def deal(self, group: SimulatedGroup) -> None:
        self.open[group.position] = group
        self.dealt += 1

    def publish(self, group: ReadyGroup) -> None:
        self.ready[group.group_id] = group

    def drop(self, position: int, reason: str) -> SimulatedGroup:
        group = self.open.pop(position)
        self.ready.pop(group.group_id, None)
        self.dropped[reason] += 1
        return group

    def batch(self, chosen: Sequence[str], *, begins: bool = True) -> tuple[list[SimulatedGroup], list[ReadyGroup]]:
        """Take a batch out. begins: a step; else it belongs to the last one."""
        found = [self.open.pop(int(group_id)) for group_id in chosen], [self.ready.pop(group_id) for group_id in chosen]
        self.batched += len(chosen)
        self.steps += begins
        return found

    def train(self) -> None:
        """What is batched is in the weights."""
        self.trained, self.batched = self.trained + self.batched, 0

    def first_open(self, count: int) -> list[int]:
        """The positions of those that were dealt first."""
        return [position for position, _ in zip(self.open, range(count), strict=False)]

    def counts(self) -> dict[str, object]:
        """As a run's summary has them. Groups that are scored or wait are in flight here."""
        return {
            "dealt": self.dealt,
            "waiting": 0,
            "in_flight": len(self.open) - len(self.ready),
            "ready": len(self.ready),
            "batched": self.batched,
            "trained": self.trained,
            "dropped": dict(sorted(self.dropped.items())),
        }
