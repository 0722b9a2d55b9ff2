"""The router's own pages: its engines (``/workers``), whether it can serve (``/health``), its numbers (``/metrics``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from bus.messages import Version
from miles_async.http_limits import BodyTooLongError, refuse_in

if TYPE_CHECKING:
    from miles_async.router_app import RouterApp, Worker


class NewWorker(msgspec.Struct):
    """The body of ``POST /workers``."""

    url: Annotated[str, msgspec.Meta(max_length=500)]
    id: Annotated[str, msgspec.Meta(max_length=500)] = ""  # the URL's host and port if not given
    version: Version = -1


def admin_app(router: RouterApp) -> FastAPI:
    """``/workers``, ``/health`` and ``/metrics``."""
    app = FastAPI(title="miles_async router", docs_url=None, redoc_url=None, openapi_url=None)
    refuse_in(app)
    registry = CollectorRegistry()
    registry.register(_Gauges(router))

    def describe(worker: Worker) -> dict[str, Any]:
        return {
            "id": worker.name,
            "url": worker.url,
            "version": worker.version,
            "state": "dead" if worker.trouble else "up",
            "trouble": worker.trouble,
            "inflight": worker.inflight,
        }

    @app.get("/workers")
    async def list_workers() -> dict[str, Any]:
        return {"workers": [describe(worker) for worker in router.workers.values()]}

    @app.post("/workers", status_code=201)
    async def add_worker(request: Request) -> dict[str, Any]:
        try:
            body = msgspec.json.decode(await request.body(), type=NewWorker)
            name = body.id or body.url.rstrip("/").removeprefix("http://")
            router.add(name, body.url, body.version)
        except BodyTooLongError:
            raise
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f'expected {{"url": "http://host:port", "id": optional}}: {error}') from None
        return describe(router.workers[name])

    @app.delete("/workers/{name:path}")
    async def remove_worker(name: str) -> dict[str, str]:
        name = unquote(name)
        if name not in router.workers:
            raise HTTPException(404, f"no worker {name!r}; known: {', '.join(router.workers) or 'none'}")
        router.remove(name)
        return {"removed": name}

    @app.get("/health")
    async def health() -> Response:
        up = any(not worker.trouble for worker in router.workers.values())
        return Response(status_code=200 if up else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return app


class _Gauges(Collector):
    """The router's numbers, read when somebody asks."""

    def __init__(self, router: RouterApp) -> None:
        self._router = router

    def collect(self) -> Any:
        inflight = GaugeMetricFamily("router_inflight", "requests in flight", labels=["engine"])
        up = GaugeMetricFamily("router_engine_up", "1 if the engine gets requests", labels=["engine"])
        version = GaugeMetricFamily("router_engine_version", "weight version announced for it", labels=["engine"])
        busy = CounterMetricFamily("router_engine_busy_seconds", "time with a request in flight", labels=["engine"])
        answered = CounterMetricFamily("router_answered", "requests answered", labels=["engine"])
        for worker in self._router.workers.values():
            inflight.add_metric([worker.name], worker.inflight)
            up.add_metric([worker.name], 0 if worker.trouble else 1)
            version.add_metric([worker.name], worker.version)
            busy.add_metric([worker.name], worker.busy_seconds(self._router.clock()))
            answered.add_metric([worker.name], worker.answered)
        failovers = CounterMetricFamily("router_failovers", "requests given to another engine")
        failovers.add_metric([], self._router.failovers)
        refused = CounterMetricFamily("router_refused", "requests refused by the router itself", labels=["status"])
        for status, count in self._router.refusals.items():
            refused.add_metric([status], count)
        return [inflight, up, version, busy, answered, failovers, refused]
