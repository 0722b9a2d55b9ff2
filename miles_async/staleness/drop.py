"""Train what is ready first, drop what grew too old. The bound: policies.py. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import ReadyGroup
from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.policies import Bounded, StalenessPolicy, is_usable
from miles_async.staleness.refusals import refuse_surplus, what_becomes


@dataclass(frozen=True, slots=True)
class Drop(Bounded):
    """Train in order of publication, drop what grew too old: the learner waits less, long responses are lost more."""

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        usable = [group.group_id for group in ready if is_usable(group, version, self.max_lag)]
        return tuple(usable[:batch_size]) if len(usable) >= batch_size else None


def drop(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError: groups to spare are asked for, or a mask."""
    refuse_surplus("drop", rollout)
    return Drop(staleness.max_lag, requeues=what_becomes("drop", staleness, "drop", "requeue") == "requeue")
