"""SGLang's endpoints over one engine: ``/generate`` as a bare ASGI function, the rest as a FastAPI application.

Promises: paths, status codes and bodies are SGLang 0.5.23's; a client that goes away aborts its request; whatever a client
sends, it is answered or refused (counted by status, logged), and the engine goes on. Where this
engine differs on purpose: ``/health`` answers at once and stays 200 while paused (``/ready`` says 503 then);
there is no prefix cache, so ``cached_tokens`` is 0 and ``/flush_cache`` only gives memory back.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response

from miles_async.engines.embedded import control, control_bodies
from miles_async.engines.embedded.checkpoint import ModelConfig
from miles_async.engines.embedded.control import WeightControl
from miles_async.engines.embedded.frontend import Frontend, Job
from miles_async.engines.embedded.sampling_params import RequestError, schema_error
from miles_async.engines.embedded.worker import EngineStopped
from miles_async.http.asgi import Receive, Scope, Send
from miles_async.http.limits import BodyTooLongError, bounded, has_key, read_body, refuse_in, say, send_whole
from miles_async.http.refusals import Refusals

B = TypeVar("B")
JSON = (b"content-type", b"application/json")
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
        self._admin = build_admin(frontend, weights, config, info, refusals)

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
                await self._admin(scope, receive, send)
        except BodyTooLongError as error:
            await say(send, 413, str(error), close=True)

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


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _body(request: Request, kind: type[B]) -> B:
    """The request's JSON as ``kind``; no body at all means all defaults. Raises RequestError."""
    try:
        return msgspec.json.decode(await request.body() or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise schema_error(str(error)) from None


def build_admin(
    frontend: Frontend, weights: WeightControl, config: ModelConfig, info: dict[str, Any], refusals: Refusals
) -> FastAPI:
    """Every endpoint but /generate. ``info`` is what /server_info reports of the start."""
    app = FastAPI(title="miles_async embedded engine", docs_url=None, redoc_url=None, openapi_url=None)
    refuse_in(app)
    scheduler = frontend.compute.scheduler  # read from the loop for gauges only: plain attributes, no state is kept

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> Response:
        return _json(error.body, error.status)

    @app.exception_handler(EngineStopped)
    async def stopped(_: Request, error: EngineStopped) -> Response:
        return _json({"error": {"message": str(error)}}, 503)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if frontend.compute.alive else 503)

    @app.get("/health_generate")
    async def health_generate() -> Response:
        return Response(status_code=200 if await frontend.probe() else 503)

    @app.get("/ready")
    async def ready() -> Response:
        return Response(status_code=200 if frontend.compute.alive and not scheduler.paused else 503)

    @app.get("/model_info")
    @app.get("/get_model_info")
    async def model_info() -> Response:
        return _json(
            {
                "model_path": weights.model_path,
                "served_model_name": weights.model_path,
                "tokenizer_path": info["tokenizer_path"],
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": weights.version,
                "load_format": "auto",
                "reasoning_parser": None,
                "tool_call_parser": None,
                "disaggregation_mode": "null",
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "model_type": config.model_type,
                "architectures": [config.architecture],
            }
        )

    @app.get("/server_info")
    @app.get("/get_server_info")
    async def server_info() -> Response:
        state = {"weight_version": weights.version, "paused": scheduler.paused, **_load(frontend)}
        return _json({**info, "internal_states": [state | {"refused_requests": dict(refusals)}]})

    @app.get("/v1/loads")
    async def loads() -> Response:
        return _json(
            {
                "timestamp": datetime.now(UTC).isoformat(),
                "version": info["version"],
                "accelerator": info["device"],
                "num_accelerators": 1,
                "loads": [{"dp_rank": 0, **_load(frontend)}],
            }
        )

    @app.get("/v1/models")
    async def models() -> Response:
        card = {
            "id": weights.model_path,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "miles_async",
            "root": weights.model_path,
            "parent": None,
            "max_model_len": frontend.limits.context_length,
        }
        return _json({"object": "list", "data": [card]})

    @app.api_route("/flush_cache", methods=["GET", "POST"])
    async def flush_cache(request: Request) -> Response:
        await _body(request, control_bodies.NoBody)
        if await frontend.compute.call(lambda s: s.flush()):
            return Response("Cache flushed.\n")
        return Response("Flush cache failed.\n", 400)

    @app.post("/abort_request")
    async def abort_request(request: Request) -> Response:
        body = await _body(request, control_bodies.AbortBody)
        if body.abort_all:
            frontend.abort_all()
        elif body.rid:
            frontend.abort_rid(body.rid)
        return Response()

    @app.post("/pause_generation")
    async def pause_generation(request: Request) -> Response:
        await frontend.pause((await _body(request, control_bodies.PauseBody)).mode)
        return _json({"message": "Generation paused successfully.", "status": "ok"})

    @app.post("/continue_generation")
    async def continue_generation(request: Request) -> Response:
        await _body(request, control_bodies.NoBody)
        await frontend.resume()
        return _json({"message": "Generation continued successfully.", "status": "ok"})

    _add_weight_routes(app, weights)
    return app


def _add_weight_routes(app: FastAPI, weights: WeightControl) -> None:
    async def answer(call: Awaitable[control.Answer]) -> Response:
        status, content = await call
        return _json(content, status)

    @app.post("/begin_weight_update")
    async def begin(request: Request) -> Response:
        await _body(request, control_bodies.NoBody)
        return await answer(weights.begin())

    @app.post("/end_weight_update")
    async def end(request: Request) -> Response:
        await _body(request, control_bodies.NoBody)
        return await answer(weights.end())

    @app.post("/init_weights_update_group")
    async def init_group(request: Request) -> Response:
        return await answer(weights.init_group(await _body(request, control_bodies.InitGroupBody)))

    @app.post("/destroy_weights_update_group")
    async def destroy_group(request: Request) -> Response:
        return await answer(weights.destroy_group(await _body(request, control_bodies.DestroyGroupBody)))

    @app.post("/update_weights_from_distributed")
    async def update_from_distributed(request: Request) -> Response:
        return await answer(weights.update_from_distributed(await _body(request, control_bodies.UpdateDistributedBody)))

    @app.post("/update_weights_from_disk")
    async def update_from_disk(request: Request) -> Response:
        return await answer(weights.update_from_disk(await _body(request, control_bodies.UpdateDiskBody)))

    @app.post("/update_weight_version")
    async def update_weight_version(request: Request) -> Response:
        return await answer(weights.set_version(await _body(request, control_bodies.VersionBody)))

    @app.api_route("/weights_checker", methods=["GET", "POST"])
    async def weights_checker(request: Request) -> Response:
        return await answer(weights.check(await _body(request, control_bodies.CheckerBody)))


def _load(frontend: Frontend) -> dict[str, Any]:
    scheduler = frontend.compute.scheduler
    running = scheduler.rows.count
    used = int(scheduler.rows.length[:running].sum())
    return {
        "num_running_reqs": running,
        "num_waiting_reqs": len(scheduler.waiting),
        "num_used_tokens": used,
        "max_total_num_tokens": scheduler.cache.max_tokens,
        "token_usage": used / scheduler.cache.max_tokens,
        "num_generated_tokens": scheduler.generated_tokens,
    }
