"""Which engines give nothing for the requests that they have in flight.

Promises: an engine is called quiet only if it gave no byte of an answer for ``QUIET_S``, and sampled no token between two
looks, as far as it says how many it has sampled; one that gives answers is never asked.
"""

from __future__ import annotations

import asyncio

from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet
from miles_async.router.observe.loads import LoadPoller

QUIET_S = 2.5  # well before a diagnosis calls a wait long, so that it knows of it by then
ASK_AFTER_S = 1.5


class QuietEngines:
    """Looks at the engines of one router."""

    def __init__(self, app: RouterFleet, loads: LoadPoller) -> None:
        self._app, self._loads = app, loads
        self._tokens: dict[
            RoutedEngine, int | None
        ] = {}  # of those that were asked at the last look; None: it has not said

    async def look(self) -> list[tuple[RoutedEngine, float]]:
        """Every quiet engine and for how long it is. Marks those whose tokens moved since the last look."""
        engines = list(self._app.engines.values())
        asked = [engine for engine in engines if engine.quiet_seconds(self._app.clock()) > ASK_AFTER_S]
        tokens = await asyncio.gather(*(self._ask(engine) for engine in asked))
        again = [engine for engine in asked if engine in self._tokens]
        self._tokens = dict(zip(asked, tokens, strict=True))
        now = self._app.clock()
        return [(engine, seconds) for engine in again if (seconds := engine.quiet_seconds(now)) >= QUIET_S]

    async def _ask(self, engine: RoutedEngine) -> int | None:
        """How many tokens it has sampled, as far as is known."""
        known, report = self._tokens.get(engine), await self._loads.load(engine)
        count = None if report is None else report.sampled
        if known is not None and count is not None and count != known:
            engine.moved(self._app.clock())
        return known if count is None else count
