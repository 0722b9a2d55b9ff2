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
        self.dealt = self.batched = self.steps = 0
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

    def batch(self, chosen: Sequence[str]) -> tuple[list[SimulatedGroup], list[ReadyGroup]]:
        """Take a batch out."""
        found = [self.open.pop(int(group_id)) for group_id in chosen], [self.ready.pop(group_id) for group_id in chosen]
        self.batched += len(chosen)
        self.steps += 1
        return found

    def first_open(self, count: int) -> list[int]:
        """The positions of those that were dealt first."""
        return [position for position, _ in zip(self.open, range(count), strict=False)]

    def counts(self, batch_size: int, trained: int) -> dict[str, object]:
        """As a run's summary has them, after ``trained`` steps. Groups that are scored or wait are in flight here."""
        return {
            "dealt": self.dealt,
            "waiting": 0,
            "in_flight": len(self.open) - len(self.ready),
            "ready": len(self.ready),
            "batched": self.batched - trained * batch_size,
            "trained": trained * batch_size,
            "dropped": dict(sorted(self.dropped.items())),
        }
