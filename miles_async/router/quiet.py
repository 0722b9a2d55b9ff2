"""Which engines give nothing for the requests that they have in flight.

Promises: an engine is called quiet only if it gave no byte of an answer for ``QUIET_S``, and sampled no token between two
looks, as far as it says how many it has sampled (``GET /v1/loads``); one that gives answers is never asked.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from miles_async.http.client import UpstreamError
from miles_async.router.fleet import RouterFleet
from miles_async.router.worker import Worker

QUIET_S = 2.5  # well before a diagnosis calls a wait long, so that it knows of it by then
ASK_AFTER_S = 1.5
ASK_TIMEOUT_S = 1.0
COUNTERS = ("num_generated_tokens", "num_used_tokens")  # the first one that the engine has


class QuietEngines:
    """Looks at the engines of one router."""

    def __init__(self, app: RouterFleet) -> None:
        self._app = app
        self._tokens: dict[Worker, int | None] = {}  # of those that were asked at the last look; None: it has not said

    async def look(self) -> list[tuple[Worker, float]]:
        """Every quiet engine and for how long it is. Marks those whose tokens moved since the last look."""
        workers = list(self._app.workers.values())
        asked = [worker for worker in workers if worker.quiet_seconds(self._app.clock()) > ASK_AFTER_S]
        tokens = await asyncio.gather(*(self._ask(worker) for worker in asked))
        again = [worker for worker in asked if worker in self._tokens]
        self._tokens = dict(zip(asked, tokens, strict=True))
        now = self._app.clock()
        return [(worker, seconds) for worker in again if (seconds := worker.quiet_seconds(now)) >= QUIET_S]

    async def _ask(self, worker: Worker) -> int | None:
        """How many tokens it has sampled, as far as is known."""
        known, count = self._tokens.get(worker), await self._count(worker)
        if known is not None and count is not None and count != known:
            worker.moved_at = self._app.clock()
        return known if count is None else count

    async def _count(self, worker: Worker) -> int | None:
        """Tokens that the engine has sampled so far, as it says. None: it does not say."""
        try:
            _, content = await worker.upstream.get(b"/v1/loads", ASK_TIMEOUT_S)
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
