"""The web application: what is asked for by which address. All of it only reads.

    GET /  /static/...                        the page, files of the package
    GET /api/runs                             the list                                    web/overview.py
    GET /api/runs/NAME/live                   its state, again whenever it changes (SSE)  web/live.py
    GET /api/runs/NAME/state, .../curves      its state once; curves by name              web/state.py, series.py
    GET /api/runs/NAME/samples, .../sample    the samples of a step; one, by its tokens   web/samples.py
    GET /api/runs/NAME/timeline, .../trace    who did what when; as a trace file          web/timeline_files.py
    GET /api/compare?run=NAME&run=NAME        runs beside each other                      web/beside.py

Promises: a run is named by its directory's name, and nothing outside of it is read; what cannot be answered is one line,
``{"error": {"message": ...}}``; a surprise is a 500 that says its type, and ends nothing.
"""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from miles_async.http.limits import refuse_in
from miles_async.monitor.record_lines import RecordError
from miles_async.web.access import LOGIN, Guarded
from miles_async.web.beside import beside
from miles_async.web.live import stream
from miles_async.web.opened import OpenedRuns
from miles_async.web.overview import Overview
from miles_async.web.places import PlaceError, Places
from miles_async.web.recorded import NotKeptError
from miles_async.web.sample_rows import Key, Wanted
from miles_async.web.series import MOST

STATIC = Path(__file__).parent / "static"
MOST_COMPARED = 12
_log = logging.getLogger("web")

Bound = Annotated[float | None, Query()]


def application(places: Places, key: str | None, over: threading.Event | None = None) -> Guarded:
    """The pages of the runs in ``places``, for whoever brings ``key``; None: for whoever is on this machine. ``over``: set when
    the server ends, so that whoever looks on is let go."""
    app = FastAPI(title="miles-async web", docs_url=None, redoc_url=None, openapi_url=None)
    opened = OpenedRuns(places)
    refuse_in(app)
    _answer_errors(app)
    _add_pages(app)
    _add_runs(app, opened, over or threading.Event())
    _add_records(app, opened)
    return Guarded(app, key)


def _add_pages(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/")
    def page() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.get(LOGIN)
    def login() -> Response:
        return FileResponse(STATIC / "login.html")

    @app.get("/favicon.ico")
    def icon() -> Response:
        return RedirectResponse("/static/icon.svg")


def _add_runs(app: FastAPI, opened: OpenedRuns, over: threading.Event) -> None:
    overview = Overview(opened.places)

    @app.get("/api/runs")
    def runs() -> Response:
        return _json({"place": opened.places.root.name, "alone": opened.places.alone, "runs": overview.rows()})

    @app.get("/api/runs/{name}/state")
    def state(name: str) -> Response:
        return _json(opened.run(name).state())

    @app.get("/api/runs/{name}/live")
    async def live(name: str) -> Response:
        return StreamingResponse(stream(opened.run(name), over), media_type="text/event-stream")

    @app.get("/api/runs/{name}/curves")
    def curves(
        name: str,
        curve: Annotated[list[str], Query()] = [],  # noqa: B006
        first: Annotated[int, Query(ge=0)] = 0,
        last: Annotated[int | None, Query(ge=0)] = None,
        most: Annotated[int, Query(ge=1, le=5000)] = MOST,
    ) -> Response:
        run = opened.run(name).followed
        with run.lock:
            run.refresh()
            found = {one: run.series.points(one, first, last, most) for one in curve[:64]}
            return _json(
                {"generation": run.generation, "step": run.progress.step, "names": run.series.names(), "curves": found}
            )

    @app.get("/api/compare")
    def compare(run: Annotated[list[str], Query()]) -> Response:
        chosen = list(dict.fromkeys(run))
        if not 2 <= len(chosen) <= MOST_COMPARED:
            raise PlaceError(f"choose 2 to {MOST_COMPARED} runs to compare")
        return _json(beside([opened.places.find(name) for name in chosen]))


def _add_records(app: FastAPI, opened: OpenedRuns) -> None:
    @app.get("/api/runs/{name}/samples")
    def samples(
        name: str,
        step: Annotated[int | None, Query(ge=0)] = None,
        offset: Annotated[int, Query(ge=0)] = 0,
        text: Annotated[str, Query(max_length=500)] = "",
        finish: Annotated[str, Query(max_length=50)] = "",
        sort: Key = "place",
        descending: bool = False,
        reward_min: Bound = None,
        reward_max: Bound = None,
        length_min: Bound = None,
        length_max: Bound = None,
        lag_min: Bound = None,
        lag_max: Bound = None,
    ) -> Response:
        lows = [-math.inf if bound is None else bound for bound in (reward_min, length_min, lag_min)]
        highs = [math.inf if bound is None else bound for bound in (reward_max, length_max, lag_max)]
        bounds = [bound for pair in zip(lows, highs, strict=True) for bound in pair]
        return _json(opened.run(name).samples.step(step, Wanted(text, finish, sort, descending, *bounds), offset))

    @app.get("/api/runs/{name}/sample")
    def sample(name: str, group: str, index: int, step: int | None = None) -> Response:
        return _json(opened.run(name).samples.sample(group, index, step))

    @app.get("/api/runs/{name}/timeline")
    def timeline(name: str, first: Bound = None, last: Bound = None) -> Response:
        return _json(opened.run(name).timeline.window(first, last))

    @app.get("/api/runs/{name}/trace")
    def trace(name: str) -> Response:
        run = opened.run(name)
        file = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
        headers = {"content-disposition": f'attachment; filename="{file}-trace.json"'}
        return StreamingResponse(run.timeline.trace(), media_type="application/json", headers=headers)


def _json(found: Any) -> Response:
    return Response(msgspec.json.encode(found), media_type="application/json")  # what is not finite is null


def _answer_errors(app: FastAPI) -> None:
    def answer(status: int, message: str) -> Response:
        content = msgspec.json.encode({"error": {"message": " ".join(message.split())}})
        return Response(content, status, media_type="application/json")

    async def missing(_: Request, error: Exception) -> Response:
        return answer(404, str(error))

    async def damaged(_: Request, error: Exception) -> Response:
        return answer(422, str(error))

    async def said(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(error.status_code, str(error.detail))

    async def wrong(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return answer(400, f"{first['loc'][-1]}: {first['msg']}")

    async def surprise(_: Request, error: Exception) -> Response:
        _log.error("a surprise", exc_info=error)
        return answer(500, f"{type(error).__name__} while this was read")

    for kind in (PlaceError, NotKeptError):
        app.add_exception_handler(kind, missing)
    for kind in (RecordError, OSError):
        app.add_exception_handler(kind, damaged)
    app.add_exception_handler(HTTPException, said)
    app.add_exception_handler(RequestValidationError, wrong)
    app.add_exception_handler(Exception, surprise)
