"""Which engines give nothing for the requests that they have in flight.

Promises: an engine is called quiet only if it gave no byte of an answer for ``QUIET_S``, and sampled no token between two
looks, as far as it says how many it has sampled (``GET /v1/loads``); one that gives answers is never asked.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from miles_async.http.client_connection import UpstreamError
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet

QUIET_S = 2.5  # well before a diagnosis calls a wait long, so that it knows of it by then
ASK_AFTER_S = 1.5
ASK_TIMEOUT_S = 1.0
COUNTERS = ("num_generated_tokens", "num_used_tokens")  # the first one that the engine has


class QuietEngines:
    """Looks at the engines of one router."""

    def __init__(self, app: RouterFleet) -> None:
        self._app = app
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
        known, count = self._tokens.get(engine), await self._count(engine)
        if known is not None and count is not None and count != known:
            engine.moved_at = self._app.clock()
        return known if count is None else count

    async def _count(self, engine: RoutedEngine) -> int | None:
        """Tokens that the engine has sampled so far, as it says. None: it does not say."""
        try:
            _, content = await engine.upstream.get(b"/v1/loads", ASK_TIMEOUT_S)
            return _tokens(json.loads(content))
        except (UpstreamError, TimeoutError, ValueError):
            return None


def _tokens(loads: Any) -> int | None:
    """The sum over the engine's data-parallel ranks."""
    entries: Any = loads.get("loads") if isinstance(loads, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    for counter in COUNTERS:
        counts = [entry.get(counter) for entry in entries]
        if counts and all(isinstance(count, int) for count in counts):
            return sum(counts)
    return None
