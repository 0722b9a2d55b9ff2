"""What goes in and out of the router's own pages, as types: they check what comes, and their schemas are in /openapi.json."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from bus.fields import Version
from miles_async.router.engine import RoutedEngine, RoutedState

Url = Annotated[str, Meta(max_length=500, description="http://host:port of an engine")]
# ends as it does because $ allows a newline in Python's expressions, and \Z is unknown in those of JSON schemas
Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:\[\]-]{1,300}(?![\s\S])")]


Key = Annotated[str, Meta(pattern=r"^[!-~]{1,500}(?![\s\S])")]


class NewWorker(msgspec.Struct):
    """The body of ``POST /workers``. Without ``id`` an engine is called by its URL's host and port. ``api_key``: what it asks
    for; the run's own engines' key goes to nobody else."""

    url: Url
    id: Id | None = None
    version: Version = -1
    api_key: Key | None = None


class WorkerUrl(msgspec.Struct):
    """The body of Miles' ``/add_worker`` and ``/remove_worker``, where the URL is not in the query."""

    url: Url | None = None
    worker_url: Url | None = None


class WorkerView(msgspec.Struct):
    """An engine as the router sees it. ``trouble``: why it gets no requests; empty if it does."""

    id: str
    url: str
    version: int
    state: RoutedState
    trouble: str
    inflight: int

    @classmethod
    def of(cls, engine: RoutedEngine) -> WorkerView:
        return cls(engine.name, engine.url, engine.version, engine.state, engine.trouble, engine.inflight)


class WorkerList(msgspec.Struct):
    workers: list[WorkerView]


class Leaving(msgspec.Struct):
    """The answer to ``DELETE /workers/{id}``. ``inflight``: requests that it still answers; removed when it has."""

    removed: bool
    id: str
    inflight: int


class MilesWorkers(msgspec.Struct):
    """Miles' answer to a change of its workers: requests in flight by URL."""

    status: str
    worker_urls: dict[str, int]


class MilesUrls(msgspec.Struct):
    urls: list[str]


class EngineLoad(msgspec.Struct):
    """running, waiting: requests. kv_usage: share of the cache in use, of the fullest data-parallel rank."""

    engine: str
    running: int
    waiting: int
    kv_usage: float


class FleetLoad(msgspec.Struct):
    """The answer of ``GET /loads``: of the engines that are up and say it."""

    engines: list[EngineLoad]


class Detail(msgspec.Struct):
    """What a page refuses, in one line."""

    detail: str


class MilesError(msgspec.Struct):
    error: str
