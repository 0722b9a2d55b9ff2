"""The pages by which engines join, are listed, and leave.

POST /workers, GET /workers, GET /workers/ID      engines join, where router.allowed_engines lets them, and are listed
DELETE /workers/ID                                one leaves when it has answered what it has; ?now=true: at once
"""

from __future__ import annotations

import msgspec
from fastapi import HTTPException, Request, Response

from miles_async.http.limits import BodyTooLongError
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import NotAllowedError, RouterFleet
from miles_async.router.pages.table import PageTable, answer
from miles_async.router.pages.types import Detail, Leaving, NewWorker, WorkerList, WorkerView

_UNKNOWN = ("no such worker", Detail)


def add_worker_pages(table: PageTable, router: RouterFleet) -> None:
    """``/workers`` and what is below it."""

    def known(name: str) -> RoutedEngine:
        if name not in router.engines:
            raise HTTPException(404, f"no worker {name!r}; known: {', '.join(router.engines) or 'none'}")
        return router.engines[name]

    @table.page("GET", "/workers", "client", gives={200: ("", WorkerList)})
    async def list_workers() -> Response:
        return answer(WorkerList([WorkerView.of(engine) for engine in router.engines.values()]))

    @table.page(
        "POST",
        "/workers",
        "control",
        takes=NewWorker,
        gives={
            201: ("it gets requests", WorkerView),
            400: ("this is no worker", Detail),
            403: ("no engine may be added there, or not by this key", None),
            409: ("a worker of this name drains, or is somewhere else", Detail),
            413: ("the body is too long", None),
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
        return answer(WorkerView.of(router.engines[name]), 201)

    @table.page("GET", "/workers/{name:path}", "client", gives={200: ("", WorkerView), 404: _UNKNOWN})
    async def show_worker(name: str) -> Response:
        return answer(WorkerView.of(known(name)))

    @table.page(
        "DELETE",
        "/workers/{name:path}",
        "control",
        gives={
            200: ("it is removed", Leaving),
            202: ("it is removed when it has answered what it has", Leaving),
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
        return answer(Leaving(removed, name, engine.inflight), 200 if removed else 202)
