"""Miles' pages for its workers (``--use-miles-router``), so that its engines register here: the same paths and answers.

Unlike there, an engine that is removed first answers what it has, one that was given up returns when it is added again, and a
body that is no JSON object is a 400; an address that ``router.allowed_engines`` does not name is a 403.
"""

from __future__ import annotations

import msgspec
from fastapi import Request, Response

from miles_async.http.limits import BodyTooLongError
from miles_async.router.fleet import NotAllowedError, RouterFleet
from miles_async.router.pages.table import PageTable, answer
from miles_async.router.pages.types import MilesError, MilesUrls, MilesWorkers, WorkerUrl

_ANSWERS: dict[int, tuple[str, type[msgspec.Struct] | None]] = {
    200: ("requests in flight by URL", MilesWorkers),
    400: ("no URL of an engine", MilesError),
    403: ("no engine may be added there, or not by this key", None),
    409: ("a worker with this URL drains", MilesError),
    413: ("the body is too long", None),
}


def add_miles_pages(table: PageTable, router: RouterFleet) -> None:
    """``POST /add_worker``, ``POST /remove_worker`` and ``GET /list_workers``."""

    def workers() -> Response:
        return answer(MilesWorkers("success", {engine.url: engine.inflight for engine in router.engines.values()}))

    @table.page("POST", "/add_worker", "control", takes=WorkerUrl, needs_body=False, gives=_ANSWERS)
    async def add_worker(request: Request, url: str | None = None, worker_url: str | None = None) -> Response:
        try:
            given = await _url(request, url or worker_url)
            known = next((engine for engine in router.engines.values() if engine.url == given.rstrip("/")), None)
            if known is None:
                router.add_by_hand(given.rstrip("/").removeprefix("http://"), given)
            elif known.draining:
                return answer(MilesError(f"{known.url} drains: DELETE /workers/{known.name}?now=true removes it"), 409)
            else:  # it lives, whatever was thought of it
                router.add(known.name, known.url, known.version, known.incarnation)
        except BodyTooLongError:
            raise
        except NotAllowedError as error:
            return answer(MilesError(str(error)), error.status)
        except (ValueError, RecursionError) as error:
            return answer(MilesError(str(error)), 400)
        return workers()

    @table.page("POST", "/remove_worker", "control", takes=WorkerUrl, needs_body=False, gives=_ANSWERS)
    async def remove_worker(request: Request, url: str | None = None, worker_url: str | None = None) -> Response:
        try:
            given = await _url(request, url or worker_url)
        except BodyTooLongError:
            raise
        except (ValueError, RecursionError) as error:
            return answer(MilesError(str(error)), 400)
        for engine in list(router.engines.values()):
            if engine.url == given.rstrip("/"):
                router.drain(engine.name)
        return workers()

    @table.page("GET", "/list_workers", "client", gives={200: ("all workers", MilesUrls)})
    async def list_workers() -> Response:
        return answer(MilesUrls([engine.url for engine in router.engines.values()]))


async def _url(request: Request, in_query: str | None) -> str:
    """Raises ValueError: there is none."""
    if in_query:
        return in_query
    body = await request.body()
    given = msgspec.json.decode(body, type=WorkerUrl) if body else WorkerUrl()
    url = given.url or given.worker_url
    if not url:
        raise ValueError("worker_url is required (use query ?url=... or JSON body)")
    return url
