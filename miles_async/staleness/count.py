"""Bound how much is generated ahead, not how old a token is: AReaL's rule. Pure: no I/O, no clock.

Source: AReaL (arXiv 2505.24298, section 5.1): a rollout may begin while ``floor((N - 1) / B) <= i + eta``, where ``N`` counts
what was begun and ``i`` is the engines' version; its code has ``capacity = (eta + i + 1) * B - (accepted + running)``. Of
what has finished, what was begun first is trained first; nothing is discarded for its age. ``eta`` is ``max_lag`` here.

*No hard bound.* In the terms of policies.py a group begins while ``k*B + o < (s + L + 1) * B``, as with drop. But it may be
overtaken by any number of groups that begin later, finish earlier and make batches: a group that takes ``d`` steps to
generate is trained with a lag of ``d`` or more, whatever ``L`` is. What the count bounds is the mean: at most ``(L + 1) * B``
groups are open and ``B`` of them leave with each step, so by Little's law a group is open for at most ``L + 1`` steps on
average.

*No deadlock.* Admission is drop's. Whatever is open finishes, and is then selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import ReadyGroup
from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.policies import NO_BOUND, Bounded, StalenessPolicy, is_usable, unusable
from miles_async.staleness.refusals import refuse_surplus, what_becomes


@dataclass(frozen=True, slots=True)
class Count(Bounded):
    """Train what was dealt first of what is ready, however old it is."""

    @property
    def hard_bound(self) -> bool:
        return False

    def evict(self, ready: Sequence[ReadyGroup], version: int) -> list[tuple[str, str]]:
        return unusable(ready, version, NO_BOUND)  # what a recovery undid

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        usable = {group.group_id for group in ready if is_usable(group, version, NO_BOUND)}
        if len(usable) < batch_size:
            return None
        return tuple([group_id for group_id in open_order if group_id in usable][:batch_size])


def count(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError: groups to spare are asked for, or what becomes of one too old."""
    refuse_surplus("count", rollout)
    what_becomes("count", staleness)
    return Count(staleness.max_lag)
