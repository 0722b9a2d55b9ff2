"""Train in dealt order. The bound and its derivation: policies.py. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import ReadyGroup
from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.policies import Bounded, StalenessPolicy, is_usable
from miles_async.staleness.refusals import what_becomes


@dataclass(frozen=True, slots=True)
class Fifo(Bounded):
    """Train in dealt order: nothing is dropped and short responses get no preference; a slow group holds up the rest.

    With a ``surplus``, the first of each window that are ready, in dealt order: a filter or a slow group does not hold up the
    step, and long responses are lost more. ``evict`` stays empty while engines keep to the terms of policies.py; it catches a
    recovery that put older weights back, and what was sampled with weights that such a recovery undid.
    """

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        place = {group_id: i for i, group_id in enumerate(open_order[: batch_size + self.surplus])}
        usable = (group.group_id for group in ready if is_usable(group, version, self.max_lag))
        first = [group_id for group_id in usable if group_id in place][:batch_size]
        return tuple(sorted(first, key=place.__getitem__)) if len(first) == batch_size else None


def fifo(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Train in dealt order; with ``rollout.over_sampling_batch_size``, the first of so many that are ready.

    Raises ConfigError: a mask is asked for.
    """
    becomes = what_becomes("fifo", staleness, "drop", "requeue")
    return Fifo(staleness.max_lag, rollout.surplus, requeues=becomes == "requeue")
