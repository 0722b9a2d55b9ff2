"""Generate as fast as there is room, and make what grew too old again: Miles' rule. Pure: no I/O, no clock.

Source: Miles, fully asynchronous (``miles/rollout/fully_async_rollout.py``, PR 1717 and 2030; ``--max-weight-staleness``):
groups go into a queue as they finish, which takes no more than it has room for; one that is taken out and has a token too old
is thrown away and its prompt is generated anew, before any new one. ``staleness.capacity`` is the room: groups that may be
open, in whatever state. (Here a group is also ended while it is generated, once it is too old for any step.)

*The bound.* By selection and eviction at the version that the learner trains at, so nothing older than ``L`` is trained.
(Miles looks at the engines' version when it takes a group out, and trains one version later where the next batch is taken
while one is trained.)

*No deadlock.* As with windowed (windowed.py): what is made again is one more group that begins later. But a prompt whose
answer takes longer than ``L`` steps is made again and again, and has a place all the while: such prompts take up more and
more of the places, until the learner is so slow that they are in time.
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.drop import Drop
from miles_async.staleness.policies import StalenessPolicy, StalenessState, has_room
from miles_async.staleness.refusals import capacity_of, refuse_surplus, what_becomes


@dataclass(frozen=True, slots=True)
class Recycle(Drop):
    """``capacity``: groups that may be open."""

    capacity: int = 0

    def admit(self, state: StalenessState) -> int:
        return has_room(state, self.capacity)


def recycle(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError: groups to spare are asked for, or the capacity is less than a batch."""
    refuse_surplus("recycle", rollout)
    what_becomes("recycle", staleness, "requeue")
    return Recycle(staleness.max_lag, requeues=True, capacity=capacity_of(staleness, rollout))
