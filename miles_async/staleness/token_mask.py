"""Train what is ready first, and of a group that grew too old in part, the tokens within the bound. Pure: no I/O, no clock.

With weights that change while a response is generated (an update in flight), a long response begins at an old version and ends
at a new one. Drop throws all of it away for its first tokens; this policy trains the rest.

*The bound.* A group is selected at the learner's version ``v`` only if its newest token is of a version in ``v - L .. v``. What
is older than ``v - L`` in it is masked out of the loss (``groups/aged.py``) by the very learner that then trains it, at the
version that stands in the batch's record: no token with a lag above ``L`` is trained, whatever the admission did, also when the
step is replayed. The group stays whole for its baseline: rewards and advantages are those of whole responses.

*No deadlock.* Admission is drop's, by count. Whatever is open finishes, and is then selected or evicted, which frees its place.

*What it costs.* Masked tokens were generated for nothing, as dropped ones are, but nothing else of their response is lost, and
long responses are lost no more than short ones. Beginnings of long responses are trained less than their ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import ReadyGroup
from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.policies import (
    Bounded,
    StalenessPolicy,
    has_trainable,
    untrainable,
)
from miles_async.staleness.refusals import refuse_surplus, what_becomes


@dataclass(frozen=True, slots=True)
class TokenMask(Bounded):
    """Train in order of publication; drop only what is too old to its last token."""

    @property
    def masks(self) -> bool:
        return True

    def evict(self, ready: Sequence[ReadyGroup], version: int) -> list[tuple[str, str]]:
        return untrainable(ready, version, self.max_lag)

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        usable = [group.group_id for group in ready if has_trainable(group, version, self.max_lag)]
        return tuple(usable[:batch_size]) if len(usable) >= batch_size else None


def token_mask(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError where groups to spare are asked for."""
    refuse_surplus("token_mask", rollout)
    what_becomes("token_mask", staleness, "mask")
    return TokenMask(staleness.max_lag)
