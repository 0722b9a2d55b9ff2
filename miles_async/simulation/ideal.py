"""What a world gives where nobody bounds staleness: the ideal that a policy is measured against. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bus.messages import ReadyGroup
from miles_async.simulation.settings import SimulationConfig
from miles_async.staleness.policies import NO_BOUND, StalenessPolicy, StalenessState

SPARE = 2  # batches that may be ready beyond what is under way, so that a fast fleet does not fill the memory


class Unbounded:
    """At most ``most`` groups are open; whatever is ready first is trained."""

    max_lag, surplus, masks, holds, hard_bound, requeues = NO_BOUND, 0, False, False, False, False

    def __init__(self, most: int) -> None:
        self._most = most

    def admit(self, state: StalenessState) -> int:
        return max(0, self._most - state.open_groups)

    def ticks(self, open_versions: Iterable[int], version: int, batches: int) -> bool:
        return True

    def evict(self, ready: Sequence[ReadyGroup], version: int) -> list[tuple[str, str]]:
        return []

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        return tuple(group.group_id for group in ready[:batch_size]) if len(ready) >= batch_size else None


def unbounded(config: SimulationConfig) -> StalenessPolicy:
    """As many groups as there are slots, and some that are ready."""
    rollout = config.rollout
    return Unbounded(-(-config.slots // rollout.n_samples_per_prompt) + SPARE * rollout.rollout_batch_size)
