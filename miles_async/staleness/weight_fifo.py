"""Train what the oldest weights began before anything of newer ones: NeMo-RL's rule. Pure: no I/O, no clock.

Source: NeMo-RL's Single Controller, ``weight_fifo`` (``nemo_rl/algorithms/async_utils/staleness_sampler.py``): dispatch is
gated by version; the groups of the oldest weights are taken first, as they are ready, and all of them before any of newer
ones.

Between fifo and count: within one version whoever is ready goes first, and nobody overtakes a group of an older version.
Which version a group has that is still generated nobody knows here, but how old it may be admission says: in the terms of
policies.py the open group in place ``i`` (from 0, in dealt order) has position ``p <= k*B + i`` less what was dropped since,
it was dealt while ``p < (s + L + 1) * B``, and batch ``k`` is trained at version ``v = k``, so it begins at version ``v - L +
floor(i/B)`` or later. A ready group goes before one that is not ready only where its own version is not above that.

*The bound.* Whoever is trained before a group of version ``w`` was dealt while engines served ``s <= w``: because it was
dealt before that group, or because it is of a version up to ``w`` itself. Of such groups there are at most ``(w + L + 1) *
B``, so that a group of version ``w`` is in batch ``w + L`` at the latest: the lag is at most ``L``, and nothing is dropped.
``evict`` is for what a recovery undid.

*No deadlock.* Admission is fifo's. Whatever is open finishes, and when all of it is ready nobody is waited for. The source
waits for a version's batch to be full, which a drop can make impossible; here what lacks comes from the next version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import UNSAMPLED, ReadyGroup
from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.policies import Bounded, StalenessPolicy, is_usable
from miles_async.staleness.refusals import ALL_THAT_IS_DEALT, refuse_surplus, what_becomes


@dataclass(frozen=True, slots=True)
class WeightFifo(Bounded):
    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        versions = {group.group_id: group.oldest_version for group in ready if is_usable(group, version, self.max_lag)}
        if len(versions) < batch_size:
            return None
        first_place = next((i for i, group_id in enumerate(open_order) if group_id not in versions), None)
        # what the oldest of those that are not ready may be
        oldest = UNSAMPLED if first_place is None else max(0, version - self.max_lag + first_place // batch_size)
        chosen = [group_id for group_id in open_order if group_id in versions and versions[group_id] <= oldest]
        chosen.sort(key=versions.__getitem__)
        return tuple(chosen[:batch_size]) if len(chosen) >= batch_size else None


def weight_fifo(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError where groups to spare are asked for."""
    refuse_surplus("weight_fifo", rollout, ALL_THAT_IS_DEALT)
    becomes = what_becomes("weight_fifo", staleness, "drop", "requeue")
    return WeightFifo(staleness.max_lag, requeues=becomes == "requeue")
