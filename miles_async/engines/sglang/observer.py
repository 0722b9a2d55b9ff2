"""Looks at one server over HTTP, again and again, for ``health.py`` to judge.

Promises: every look ends: within seconds for a server that answers, within 45 s for one that does not; nothing is changed by
it, apart from the one token that ``/health`` generates.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from miles_async.config.schema import RunConfig
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.loads import read_report
from miles_async.engines.sglang.health import Health, Look, judge

LOOK_INTERVAL_S = 5.0  # between two looks
HTTP_TIMEOUT_S = 5.0
SCHEDULER_TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 25.0  # SGLang's own is 20 s


class Observer:
    """Looks at one server, again and again; ``health`` is the state after the last look."""

    def __init__(self, client: EngineClient, hang_s: float) -> None:
        self.health: Health | None = None
        self._client = client
        self._hang_s = hang_s
        self._generated: Any = None

    async def look(self, process: bool | None = None) -> Health:
        """One look, of up to 45 s where nothing answers. ``process``: whether its process runs, where that is known."""
        self.health = judge(self.health, await self._see(process), self._hang_s)
        return self.health

    async def _see(self, process: bool | None) -> Look:
        if process is False:
            return Look(time.monotonic(), process)
        try:
            await self._client.model_info(HTTP_TIMEOUT_S)
        except EngineError as error:
            return Look(time.monotonic(), process, refused=error.refused)
        scheduler, ready, generates = await asyncio.gather(
            _answers(self._client.server_info(SCHEDULER_TIMEOUT_S)),
            _answers(self._client.ready(HTTP_TIMEOUT_S)),
            self._grew(),
        )
        # SGLang calls one unhealthy, and not ready, whose /health was asked for in a long pause, until it is asked again
        again = self.health is not None and self.health.state == "paused"
        if scheduler and not generates and (ready or again):
            generates = await _answers(self._client.health(HEALTH_TIMEOUT_S))
            ready = await _answers(self._client.ready(HTTP_TIMEOUT_S))
        return Look(time.monotonic(), process, http=True, ready=ready, scheduler=scheduler, generates=generates)

    async def _grew(self) -> bool:
        """Whether it generated something since the look before, as far as its load counters say."""
        try:
            report = read_report(await self._client.loads(HTTP_TIMEOUT_S))
        except EngineError:
            return False
        counts = [(rank.used, rank.generated) for rank in report.ranks if rank.running] if report is not None else []
        before, self._generated = self._generated, counts
        return bool(counts) and bool(before) and counts != before


async def _answers(call: Awaitable[object]) -> bool:
    try:
        await call
    except EngineError:
        return False
    return True


async def looks(
    client: EngineClient, hang_s: float, running: Callable[[], bool] | None = None
) -> AsyncIterator[Health]:
    """How the server is, again and again. ``running``: whether its process runs, where that can be known."""
    observer = Observer(client, hang_s)
    while True:
        yield await observer.look(None if running is None else running())
        await asyncio.sleep(LOOK_INTERVAL_S)


def hang_timeout(config: RunConfig) -> float:
    """Seconds without a sign of life after which a server is hung: ``engine.hang_timeout_s``, or what is meant if unset."""
    return config.engine.hang_timeout_s or 2 * config.weights.timeout_s
