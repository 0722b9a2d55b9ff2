"""Which engine had which request, which no record says: the run's own routing policy is asked again, with the loads of then.
Pure.

Promises: what the policy is told (requests that begin and end, engines that are being updated) comes in the order of time;
the choice is the run's where the policy is deterministic and nobody had begun in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from miles_async.router.policies.choice import make_policy


class Pause(NamedTuple):
    """Of an engine, for an update of its weights."""

    engine: int
    began: float
    ended: float


class _Rank(IntEnum):
    """At the same time."""

    ENDS = 0
    PAUSES = 1
    RESUMES = 2
    BEGINS = 3


def assigned(
    began: Sequence[float], ended: Sequence[float], pauses: Sequence[Pause], num_engines: int, policy: str
) -> list[int]:
    """The number of the engine of each request, by when it began and ended. ``policy``: as ``router.policy``."""
    router = make_policy(policy)
    for engine in range(num_engines):
        router.add(str(engine), 0)
    events = [(when, _Rank.BEGINS, n) for n, when in enumerate(began)]
    events += [(when, _Rank.ENDS, n) for n, when in enumerate(ended)]
    events += [(pause.began, _Rank.PAUSES, pause.engine) for pause in pauses]
    events += [(pause.ended, _Rank.RESUMES, pause.engine) for pause in pauses]
    found = [0] * len(began)
    for _, rank, n in sorted(events):
        if rank is _Rank.BEGINS:
            name = router.choose(key=str(n).encode()) or "0"
            router.started(name)
            found[n] = int(name)
        elif rank is _Rank.ENDS:
            router.finished(str(found[n]))
        elif rank is _Rank.PAUSES:
            router.set_state(str(n), "updating")
        else:
            router.add(str(n), 0)
    return found
