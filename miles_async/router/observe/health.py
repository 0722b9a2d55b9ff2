"""Which engines are alive, as the router sees it.

Promises: an engine that nobody listens for is given up at once; one that is paused for its weights is not given up,
although it does not answer ``/health`` (SGLang then blocks 20 s and says 503); one that answered a request since the
last look is not asked at all; one that was given up gets its requests back when it answers again; one whose circuit breaker
opens is looked at at once, and its health alone does not close that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from miles_async.http.client_connection import UpstreamError
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet


class HealthChecker:
    """Looks at every engine each ``interval_s``; gives up one that failed ``max_failures`` looks in a row.

    ``is_updating(name)`` says whether the ledger of versions knows that the engine is paused; None where there is no
    ledger: then an engine whose HTTP side answers ``/model_info`` counts as paused.
    """

    def __init__(
        self,
        app: RouterFleet,
        *,
        interval_s: float,
        max_failures: int,
        is_updating: Callable[[str], bool] | None = None,
    ) -> None:
        self._app = app
        self._interval_s = interval_s
        self._max_failures = max_failures
        self._is_updating = is_updating
        self._failures: dict[RoutedEngine, int] = {}
        self._answered: dict[RoutedEngine, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Look until ``stop`` is set."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                self._app.tripped.clear()
                await self.look()
                tripped = asyncio.create_task(self._app.tripped.wait())
                await asyncio.wait((stopped, tripped), timeout=self._interval_s, return_when=asyncio.FIRST_COMPLETED)
                tripped.cancel()
        finally:
            stopped.cancel()

    async def look(self) -> None:
        """One look at all engines at once."""
        engines = list(self._app.engines.values())
        self._failures = {engine: n for engine, n in self._failures.items() if engine in engines}
        self._answered = {engine: n for engine, n in self._answered.items() if engine in engines}
        await asyncio.gather(*(self._look_at(engine) for engine in engines))

    async def _look_at(self, engine: RoutedEngine) -> None:
        busy = engine.answered > self._answered.get(engine, 0)
        self._answered[engine] = engine.answered
        if busy and not engine.trouble:
            self._failures[engine] = 0
            return
        why = await self._ask(engine, b"/health")
        if why is None:
            self._failures[engine] = 0
            self._app.revive(engine)
        elif not engine.dead and not await self._is_paused(engine):
            self._failures[engine] = self._failures.get(engine, 0) + 1
            if self._failures[engine] >= self._max_failures:
                self._app.mark_dead(engine, f"{self._failures[engine]} health checks failed, last: {why}")

    async def _is_paused(self, engine: RoutedEngine) -> bool:
        if self._is_updating is not None:
            return self._is_updating(engine.name)
        return await self._ask(engine, b"/model_info") is None

    async def _ask(self, engine: RoutedEngine, path: bytes) -> str | None:
        """None if the engine says 200, else what it did. Marks an engine dead that nobody listens for."""
        try:
            status, _ = await engine.upstream.get(path, self._interval_s)
            return None if status == 200 else f"{path.decode()}: HTTP {status}"
        except TimeoutError:
            return f"{path.decode()}: no answer within {self._interval_s:g} s"
        except UpstreamError as error:
            if error.refused:
                self._app.mark_dead(engine, str(error))
            return f"{path.decode()}: {error}"
