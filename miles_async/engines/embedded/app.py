"""SGLang's endpoints over one engine, as a bare ASGI application: ``/generate`` here, the rest in ``pages.py``.

Promises: paths, status codes and bodies are SGLang 0.5.23's; a client that goes away aborts its request; whatever a client
sends, it is answered or refused (counted by status, logged), and the engine goes on. Where this
engine differs on purpose: ``/health`` answers at once and stays 200 while paused (``/ready`` says 503 then);
there is no prefix cache, so ``cached_tokens`` is 0 and ``/flush_cache`` only gives memory back.
"""

from __future__ import annotations

from typing import Any

import msgspec

from miles_async.engines.embedded.checkpoint import ModelConfig
from miles_async.engines.embedded.control import WeightControl
from miles_async.engines.embedded.frontend import Frontend, Job
from miles_async.engines.embedded.pages import build_pages
from miles_async.engines.embedded.sampling_params import RequestError
from miles_async.engines.embedded.worker import EngineStopped
from miles_async.http.asgi import Receive, Scope, Send
from miles_async.http.limits import BodyTooLongError, bounded, has_key, read_body, say, send_whole
from miles_async.http.refusals import Refusals

JSON = (b"content-type", b"application/json")
TEXT = (b"content-type", b"text/plain; charset=utf-8")
OPEN = frozenset({"/health", "/health_generate", "/ready"})  # what asks for no key
MAX_BODY_BYTES = 256 * 1024 * 1024


class EngineApp:
    """The ASGI application. ``api_key`` guards everything but ``OPEN``, as in SGLang."""

    def __init__(
        self,
        frontend: Frontend,
        weights: WeightControl,
        config: ModelConfig,
        info: dict[str, Any],
        api_key: str | None,
        refusals: Refusals,
    ) -> None:
        self._frontend = frontend
        self._key = api_key or None
        self._refusals = refusals
        self._pages = build_pages(frontend, weights, config, info, refusals)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        send = self._refusals.watching(scope, send)
        receive = bounded(scope, receive, MAX_BODY_BYTES)
        path = scope["path"]
        try:
            if self._key is not None and path not in OPEN and not has_key(scope, self._key):
                await _send(send, 401, b'{"error":"Unauthorized"}')
            elif path == "/generate" and scope["method"] in ("POST", "PUT"):
                await self._generate(scope, receive, send)
            elif path == "/generate":
                await _send(send, 405, b'{"detail":"Method Not Allowed"}')
            else:
                await self._page(scope, receive, send)
        except BodyTooLongError as error:
            await say(send, 413, str(error), close=True)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self._pages.get(scope["path"])
        if methods is None:
            await _send(send, 404, b'{"detail":"Not Found"}')
            return
        page = methods.get(scope["method"])
        if page is None:
            await _send(send, 405, b'{"detail":"Method Not Allowed"}')
            return
        data = await read_body(receive)
        if data is None:
            return  # gone before it had asked
        try:
            status, content = await page(data)
        except RequestError as error:
            status, content = error.status, error.body
        except EngineStopped as error:
            status, content = 503, {"error": {"message": str(error)}}
        if isinstance(content, bytes):
            await send_whole(send, status, [TEXT] if content else [], content)
        else:
            await _send(send, status, msgspec.json.encode(content))

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            data = await read_body(receive)
            if data is None:
                return  # gone before it had asked
            job = self._frontend.submit(data)
        except RequestError as error:
            await _send(send, error.status, msgspec.json.encode(error.body))
            return
        except EngineStopped as error:
            await _send(send, 503, msgspec.json.encode({"error": {"message": str(error)}}))
            return
        scope["on_disconnect"](lambda: self._frontend.abort_job(job))
        try:
            if job.stream is not None:
                await self._stream(job, send)
            else:
                await job.done
                await _send(send, 200, self._frontend.answer(job))
        except RequestError as error:
            await _send(send, error.status, msgspec.json.encode(error.body))
        except EngineStopped as error:
            await _send(send, 500, msgspec.json.encode({"error": {"message": str(error)}}))

    async def _stream(self, job: Job, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in self._frontend.chunks(job):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _send(send: Send, status: int, body: bytes) -> None:
    await send_whole(send, status, [JSON], body)
