"""The endpoint itself: sessions behind one address and one key, for the agents of one rollout worker.

    POST /sessions   GET, DELETE /sessions/ID   POST /sessions/ID/v1/chat/completions   GET /sessions/ID/v1/models

Promises: it listens on loopback and asks for a key that it made up; whatever a client sends is answered or refused in
OpenAI's form (4xx, counted by status and logged) and ends nothing; a client that leaves takes its request at the engines
with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from msgspec import Meta
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, unpack
from bus.messages import Sample
from miles_async.http.asgi import Receive, Scope, Send
from miles_async.http.limits import BodyTooLongError, answer_at_once, bounded, has_key, send_whole
from miles_async.http.refusals import Refusals
from miles_async.http.server import HttpServer
from miles_async.rollout.sessions import chat
from miles_async.rollout.sessions.errors import ApiError
from miles_async.rollout.sessions.session import Session
from miles_async.text.unicode import words_of

MAX_BODY_BYTES = 16 << 20
MAX_SESSIONS = 100_000  # open at a time; a worker ends those of its own rollouts
START_TIMEOUT_S = 30.0
KEEP_ALIVE_S = 600

_log = logging.getLogger(__name__)


class NewSession(msgspec.Struct):
    """The body of POST /sessions. ``sampling_seed``: None for a random one."""

    sampling_seed: Annotated[int, Meta(ge=0, lt=2**31)] | None = None


class SessionServer:
    """The server of a worker's sessions, with its address (once :func:`serve_sessions` has given it out) and its key."""

    def __init__(self, model: str, make: Callable[[str, int], Session], refusals: Refusals | None = None) -> None:
        """``model``: what it calls the policy. ``make``: a session, from its name and seed."""
        self.url = ""
        self.model = model
        self.api_key = secrets.token_urlsafe(24)
        self.refusals = Refusals() if refusals is None else refusals
        self.sessions: dict[str, Session] = {}
        self._make = make
        self._api = _api(self)

    def base_url(self, session_id: str) -> str:
        """What an OpenAI client takes as its ``base_url``."""
        return f"{self.url}/sessions/{session_id}/v1"

    def begin(self, seed: int, name: str | None = None) -> tuple[str, Session]:
        """A new session and its id. ``name``: of its requests at the engines; None: the id. Raises ApiError: too many."""
        if len(self.sessions) >= MAX_SESSIONS:
            raise ApiError(429, f"{MAX_SESSIONS} sessions are open: end some")
        session_id = secrets.token_hex(8)
        session = self.sessions[session_id] = self._make(name or session_id, seed)
        return session_id, session

    def end(self, session_id: str) -> None:
        """End a session's requests that are under way, and forget what it held. Raises ApiError: there is no such session."""
        self.session(session_id).close()
        del self.sessions[session_id]

    def session(self, session_id: str) -> Session:
        """Raises ApiError: there is no such session."""
        if (session := self.sessions.get(session_id)) is None:
            raise ApiError(404, f"there is no session {session_id[:50]}: it has ended, or never was")
        return session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        send = self.refusals.watching(scope, send)
        if has_key(scope, self.api_key):
            await self._api(scope, bounded(scope, receive, MAX_BODY_BYTES), send)
        else:
            error = ApiError(401, "a wrong key, or none: Authorization: Bearer KEY", code="invalid_api_key")
            await send_whole(send, 401, [(b"content-type", b"application/json")], msgspec.json.encode(error.body))


def _api(server: SessionServer) -> FastAPI:
    app = FastAPI(title="miles_async sessions", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return _json(error.body, error.status)

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return _json(ApiError(error.status_code, message).body, error.status_code)

    @app.exception_handler(BodyTooLongError)
    async def too_long(_: Request, error: BodyTooLongError) -> Response:
        answer = _json(ApiError(413, str(error)).body, 413)
        answer.headers["connection"] = "close"
        return answer

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # that nobody hears

    @app.post("/sessions")
    async def new_session(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body() or b"{}", type=NewSession)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, f"the request cannot be read: {error}") from None
        seed = secrets.randbelow(2**31) if body.sampling_seed is None else body.sampling_seed
        session_id, _ = server.begin(seed)
        return _json({"id": session_id, "base_url": server.base_url(session_id), "sampling_seed": seed})

    @app.get("/sessions/{session_id}")
    async def show(session_id: str) -> Response:
        session = server.session(session_id)
        samples = [_readable(sample) for sample in session.samples(0, b"")]
        return _json({"id": session_id, "turns": session.turns, "answer": session.answer, "samples": samples})

    @app.delete("/sessions/{session_id}")
    async def end(session_id: str) -> Response:
        server.end(session_id)
        return _json({"id": session_id, "deleted": True})

    @app.get("/sessions/{session_id}/v1/models")
    async def models(session_id: str) -> Response:
        server.session(session_id)
        card = {"id": server.model, "object": "model", "created": int(time.time()), "owned_by": "miles_async"}
        return _json({"object": "list", "data": [card]})

    @app.post("/sessions/{session_id}/v1/chat/completions")
    async def complete(session_id: str, request: Request) -> Response:
        session = server.session(session_id)
        asked = chat.parse(await request.body())
        reply = await _until_gone(session.chat(asked), request.receive)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": server.model}
        if asked.stream:
            return StreamingResponse(chat.chunks(asked, reply, head), media_type="text/event-stream")
        return Response(chat.completion(asked, reply, head), media_type="application/json")

    return app


async def _until_gone(work: Any, receive: Receive) -> chat.Reply:
    """The reply, unless the client leaves first. Raises ApiError, ClientDisconnect."""
    replying = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({replying, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not replying.done():
            raise ClientDisconnect
        if replying.cancelled():
            raise ApiError(404, "the session has ended")
        return replying.result()
    except (ApiError, ClientDisconnect):
        raise
    except Exception as error:  # of a tool-call parser of the user, or ours
        _log.exception("a chat request failed")
        raise ApiError(500, words_of(error)) from None
    finally:
        replying.cancel()
        leaving.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _readable(sample: Sample) -> dict[str, Any]:
    buffers = {"prompt_tokens": TOKENS, "tokens": TOKENS, "logprobs": LOGPROBS, "loss_mask": MASK, "versions": VERSIONS}
    lists = {name: unpack(getattr(sample, name), dtype).tolist() for name, dtype in buffers.items()}
    return {**lists, "finish_reason": sample.finish_reason}


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


@contextlib.asynccontextmanager
async def serve_sessions(server: SessionServer) -> AsyncIterator[SessionServer]:
    """``server`` on a free port of loopback, until the end of the block. Raises TimeoutError: it does not start."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    answer_at_once(listener)
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    http = HttpServer(
        server,
        server.refusals,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        server_header=False,
        date_header=False,
    )
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await http.ready.wait()
        yield server
    finally:
        for session_id in list(server.sessions):
            server.end(session_id)
        http.should_exit = True
        await serving
        listener.close()
