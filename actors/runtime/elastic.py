"""Engines that come when the cluster has room and leave when it has none: what is seen of a run, for the rule.

Promises: nothing is done but what ``miles_async/engines/elastic.py`` decides; who has had no place for ``HOMELESS_S`` is
homeless; the cluster is asked every ``LOOK_S`` at most. The scaler acts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from actors.runtime.placement.base import Placement
from actors.runtime.spec import ActorSpec
from bus import Bus
from miles_async.config.schema import RunConfig
from miles_async.engines.elastic import Change, Seen, decide
from miles_async.runs.places import elastic_bounds

LOOK_S = 2.0
HOMELESS_S = 60.0  # where there is room a process has begun by then, also on a busy machine
NOTHING = Change()


class Elastic:
    """Of one launch. ``clock``: in seconds."""

    def __init__(self, config: RunConfig, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bounds, self._bus, self._clock = elastic_bounds(config), bus, clock
        self._looked_at = clock()

    async def look(self, engines: Sequence[ActorSpec], placement: Placement) -> Change:
        """What has to change, of those that were not asked to leave. Raises what the bus raises."""
        if self._bounds is None or not engines or self._clock() - self._looked_at < LOOK_S:
            return NOTHING
        lines = await self._bus.engines()
        room = await placement.room("engine")
        self._looked_at = self._clock()
        names = tuple(spec.name for spec in engines)
        seen = Seen(
            engines=names,
            serving=frozenset(name for name in names if name in lines and lines[name].state in ("serving", "updating")),
            waiting=frozenset(room.waiting) & set(names),
            homeless=frozenset(name for name, seconds in room.waiting.items() if seconds >= HOMELESS_S) & set(names),
            noticed=room.noticed & set(names),
            free=room.free,
        )
        return decide(seen, *self._bounds)
