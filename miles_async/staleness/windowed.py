"""Generate as fast as there is room, train what is within the bound: NeMo-RL's rule. Pure: no I/O, no clock.

Source: NeMo-RL's Single Controller, ``windowed`` (``nemo_rl/algorithms/async_utils/staleness_sampler.py``): no version gates
what begins, only the buffer's capacity does; of what is ready, groups of a version in ``v - L .. v`` are taken, what was
dispatched first first, and what is older is evicted. The capacity is ``staleness.capacity`` groups that may be open, in
whatever state.

*The bound.* By selection and eviction at the learner's version alone: no group with a token older than ``L`` is trained, or
with ``too_old = "mask"`` no such token. Admission prevents nothing: what is lost is lost, and more of it the larger the
capacity is.

*No deadlock.* The capacity ``C`` is at least ``B`` (checked with the configuration). While batch ``k`` is waited for, the
learner has version ``k`` and what is ready grows no older. Whatever is open finishes; what is too old then leaves its place
to a group that begins later; with weights pushed at every ``u``-th version, engines serve ``k - u + 1`` or later by then, and
``u <= L + 1`` makes that usable. So in the end all ``C >= B`` places have a usable group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import ReadyGroup
from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.policies import (
    Bounded,
    StalenessPolicy,
    StalenessState,
    has_room,
    has_trainable,
    is_usable,
    untrainable,
    unusable,
)
from miles_async.staleness.refusals import capacity_of, refuse_surplus, what_becomes


@dataclass(frozen=True, slots=True)
class Windowed(Bounded):
    """``capacity``: groups that may be open. ``masking``: of a group that is too old in part the rest is trained."""

    capacity: int = 0
    masking: bool = False

    @property
    def masks(self) -> bool:
        return self.masking

    def admit(self, state: StalenessState) -> int:
        return has_room(state, self.capacity)

    def evict(self, ready: Sequence[ReadyGroup], version: int) -> list[tuple[str, str]]:
        return (untrainable if self.masking else unusable)(ready, version, self.max_lag)

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        may_train = has_trainable if self.masking else is_usable
        usable = {group.group_id for group in ready if may_train(group, version, self.max_lag)}
        if len(usable) < batch_size:
            return None
        return tuple([group_id for group_id in open_order if group_id in usable][:batch_size])


def windowed(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError: groups to spare are asked for, or the capacity is less than a batch."""
    refuse_surplus("windowed", rollout)
    becomes = what_becomes("windowed", staleness, "drop", "requeue", "mask")
    return Windowed(
        staleness.max_lag,
        requeues=becomes == "requeue",
        capacity=capacity_of(staleness, rollout),
        masking=becomes == "mask",
    )
