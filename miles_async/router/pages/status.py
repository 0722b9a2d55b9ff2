"""The pages that say how the router is: whether it can serve, its numbers, how busy its engines are, and its list of pages."""

from __future__ import annotations

import asyncio
import json

from fastapi import Response
from prometheus_client import generate_latest

from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet
from miles_async.router.observe.loads import LoadPoller
from miles_async.router.pages.metrics import registry_of
from miles_async.router.pages.openapi import document
from miles_async.router.pages.table import PageTable, answer
from miles_async.router.pages.types import EngineLoad, FleetLoad

LOADS_AGE_S = 0.5  # however many ask for /loads, an engine is asked no sooner again


def add_status_pages(table: PageTable, router: RouterFleet, loads: LoadPoller) -> None:
    """``/loads``, ``/health``, ``/metrics`` and ``/openapi.json``."""
    registry = registry_of(router)

    async def load(engine: RoutedEngine) -> EngineLoad | None:
        report = await loads.load(engine, LOADS_AGE_S)
        if report is None or report.running is None or report.waiting is None or report.kv_usage is None:
            return None
        return EngineLoad(engine.name, report.running, report.waiting, report.kv_usage)

    @table.page("GET", "/loads", "client", gives={200: ("", FleetLoad)})
    async def fleet_loads() -> Response:
        up = [engine for engine in router.engines.values() if engine.state == "up"]  # not those being updated
        found = await asyncio.gather(*map(load, up))
        return answer(FleetLoad([one for one in found if one is not None]))

    @table.page("GET", "/health", "open", gives={200: ("an engine is up", None), 503: ("none is", None)})
    async def health() -> Response:
        up = any(not engine.trouble for engine in router.engines.values())
        return Response(status_code=200 if up else 503)

    @table.page("GET", "/metrics", "client", media_type="text/plain")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @table.page("GET", "/openapi.json", "client", media_type="application/json")
    async def openapi() -> Response:
        return Response(json.dumps(document(table)), media_type="application/json")
