"""The load of all engines in one answer of the router (``GET /loads``), from what each says on ``/v1/loads``.

Promises: however many ask, an engine is asked at most once in ``AGE_S`` seconds; an engine that is being updated, does not
answer within ``ASK_TIMEOUT_S`` or answers something else is left out.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from fastapi import FastAPI, Response

from miles_async.http.client_connection import UpstreamError
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet
from miles_async.router.miles import page
from miles_async.router.pages import EngineLoad, FleetLoad, body_of

AGE_S = 0.5
ASK_TIMEOUT_S = 1.0


def add_loads_page(app: FastAPI, router: RouterFleet) -> None:
    """``GET /loads``."""
    loads = FleetLoads(router)

    @app.get("/loads", responses={200: {"content": body_of(FleetLoad)}})
    async def fleet_loads() -> Response:
        return page(await loads.get())


class FleetLoads:
    """Of one router."""

    def __init__(self, app: RouterFleet) -> None:
        self._app = app
        self._asking: asyncio.Task[FleetLoad] | None = None
        self._asked_at = 0.0

    async def get(self) -> FleetLoad:
        """The engines that are up, as they were at most ``AGE_S`` ago."""
        if self._asking is None or self._app.clock() - self._asked_at >= AGE_S:
            self._asked_at = self._app.clock()
            self._asking = asyncio.create_task(self._ask_all())
        return await asyncio.shield(self._asking)

    async def _ask_all(self) -> FleetLoad:
        engines = [engine for engine in self._app.engines.values() if engine.state == "up"]
        loads = await asyncio.gather(*map(_ask, engines))
        return FleetLoad([load for load in loads if load is not None])


async def _ask(engine: RoutedEngine) -> EngineLoad | None:
    try:
        _, content = await engine.upstream.get(b"/v1/loads", ASK_TIMEOUT_S)
        return load_of(engine.name, json.loads(content))
    except (UpstreamError, TimeoutError, ValueError, RecursionError):
        return None


def load_of(engine: str, loads: Any) -> EngineLoad | None:
    """An engine's load over its data-parallel ranks, from its ``/v1/loads``. None: it does not say what is needed."""
    try:
        ranks = loads["loads"]
        load = EngineLoad(
            engine,
            running=sum(int(rank["num_running_reqs"]) for rank in ranks),
            waiting=sum(int(rank["num_waiting_reqs"]) for rank in ranks),
            kv_usage=max(float(rank["token_usage"]) for rank in ranks),
        )
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return load if math.isfinite(load.kv_usage) else None
