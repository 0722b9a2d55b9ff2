"""The router's own pages.

POST /workers, GET /workers, GET /workers/ID      engines join, where router.allowed_engines lets them, and are listed
DELETE /workers/ID                                one leaves when it has answered what it has; ?now=true: at once
/add_worker, /remove_worker, /list_workers        the same in Miles' forms (router/miles.py)
GET /loads                                        how busy the engines are (router/loads.py)
GET /health, /metrics, /openapi.json              whether it can serve, its numbers, this list for programs
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import generate_latest

from miles_async.http.limits import BodyTooLongError, refuse_in
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import NotAllowedError, RouterFleet
from miles_async.router.loads import add_loads_page
from miles_async.router.metrics import registry_of
from miles_async.router.miles import add_miles_pages, page
from miles_async.router.openapi import document
from miles_async.router.pages import Detail, Leaving, NewWorker, WorkerList, WorkerView, body_of

_UNKNOWN: dict[str, Any] = {"description": "no such worker", "content": body_of(Detail)}


def admin_app(router: RouterFleet) -> FastAPI:
    """The application that serves them."""
    app = FastAPI(title="miles_async router", docs_url=None, redoc_url=None, openapi_url=None)
    refuse_in(app)
    _add_worker_pages(app, router)
    add_miles_pages(app, router)
    add_loads_page(app, router)
    registry = registry_of(router)

    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "an engine is up"},
        503: {"description": "none is"},
    }

    @app.get("/health", responses=answers, response_class=Response)
    async def health() -> Response:
        up = any(not engine.trouble for engine in router.engines.values())
        return Response(status_code=200 if up else 503)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.get("/openapi.json", responses={200: {"content": {"application/json": {}}}})
    async def openapi() -> dict[str, Any]:
        return document(app)

    return app


def _add_worker_pages(app: FastAPI, router: RouterFleet) -> None:
    def known(name: str) -> RoutedEngine:
        if name not in router.engines:
            raise HTTPException(404, f"no worker {name!r}; known: {', '.join(router.engines) or 'none'}")
        return router.engines[name]

    @app.get("/workers", responses={200: {"content": body_of(WorkerList)}})
    async def list_workers() -> Response:
        return page(WorkerList([WorkerView.of(engine) for engine in router.engines.values()]))

    @app.post(
        "/workers",
        status_code=201,
        openapi_extra={"requestBody": {"required": True, "content": body_of(NewWorker)}},
        responses={
            201: {"description": "it gets requests", "content": body_of(WorkerView)},
            400: {"description": "this is no worker", "content": body_of(Detail)},
            403: {"description": "no engine may be added there, or not by this key"},
            409: {"description": "a worker of this name drains, or is somewhere else", "content": body_of(Detail)},
            413: {"description": "the body is too long"},
        },
    )
    async def add_worker(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=NewWorker)
            name = body.id or body.url.rstrip("/").removeprefix("http://")
            if name in router.engines and router.engines[name].draining:
                raise HTTPException(409, f"worker {name!r} drains: DELETE /workers/{name}?now=true removes it at once")
            router.add_by_hand(name, body.url, body.version, body.api_key)
        except BodyTooLongError:
            raise
        except NotAllowedError as error:
            raise HTTPException(error.status, str(error)) from None
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f'expected {{"url": "http://host:port", "id": optional}}: {error}') from None
        return page(WorkerView.of(router.engines[name]), 201)

    @app.get("/workers/{name:path}", responses={200: {"content": body_of(WorkerView)}, 404: _UNKNOWN})
    async def show_worker(name: str) -> Response:
        return page(WorkerView.of(known(name)))

    @app.delete(
        "/workers/{name:path}",
        responses={
            200: {"description": "it is removed", "content": body_of(Leaving)},
            202: {"description": "it is removed when it has answered what it has", "content": body_of(Leaving)},
            404: _UNKNOWN,
        },
    )
    async def remove_worker(name: str, now: bool = False) -> Response:
        engine = known(name)
        if now:
            router.remove(name)
        else:
            router.drain(name)
        removed = name not in router.engines
        return page(Leaving(removed, name, engine.inflight), 200 if removed else 202)
