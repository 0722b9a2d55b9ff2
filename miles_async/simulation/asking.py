"""When a staleness policy is asked: as often as a run asks it, but not where its answer is known to be none.

A run asks at every group that is published while the learner waits. With thousands of groups open that is most of a
simulation's work, and of no use where what a policy of ours would say is known. Promises: pure; the answers are those that it
would give if it were asked each time; of a policy that is not known here it is.
"""

from __future__ import annotations

from miles_async.simulation.ledger import SimulatedLedger
from miles_async.staleness.count import Count
from miles_async.staleness.fifo import Fifo
from miles_async.staleness.policies import Bounded, StalenessPolicy
from miles_async.staleness.token_mask import TokenMask
from miles_async.staleness.windowed import Windowed


def judges_each(policy: StalenessPolicy) -> bool:
    """Whether its ``evict`` looks at each group by itself: those that it has left at a version it leaves again."""
    return getattr(type(policy), "evict", None) in (Bounded.evict, TokenMask.evict, Count.evict, Windowed.evict)


def window_of(policy: StalenessPolicy, batch_size: int) -> int | None:
    """Of how many of the groups dealt first its ``select`` needs a batch to be ready; None: of any."""
    return batch_size + policy.surplus if getattr(type(policy), "select", None) is Fifo.select else None


class Window:
    """Whether a batch is ready among the open groups that were dealt first. ``size`` None: among all."""

    def __init__(self, ledger: SimulatedLedger, size: int | None, batch_size: int) -> None:
        self._ledger, self._size, self._batch_size = ledger, size, batch_size
        self._last = -1  # the last position of the window
        self._inside = self._ready = 0  # open groups in it

    @property
    def has_batch(self) -> bool:
        if self._size is None:
            return len(self._ledger.ready) >= self._batch_size
        self._grow()
        return self._ready >= self._batch_size

    def published(self, position: int) -> None:
        self._ready += position <= self._last

    def gone(self, position: int, *, was_ready: bool) -> None:
        """It is open no more."""
        if position <= self._last:
            self._inside -= 1
            self._ready -= was_ready

    def _grow(self) -> None:
        assert self._size is not None
        while self._inside < self._size and self._last + 1 < self._ledger.dealt:
            self._last += 1
            if (group := self._ledger.open.get(self._last)) is not None:
                self._inside += 1
                self._ready += group.group_id in self._ledger.ready
