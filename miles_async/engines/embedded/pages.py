"""Every page of the engine but ``/generate``: what it takes, what it answers.

Promises: paths, status codes and bodies are SGLang 0.5.23's. A table and no framework: an engine is asked and updated several
times a second, and a framework's way to a function takes longer than the function.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from miles_async.engines.embedded import control_bodies
from miles_async.engines.embedded.checkpoint import ModelConfig
from miles_async.engines.embedded.control import WeightControl
from miles_async.engines.embedded.frontend import Frontend
from miles_async.engines.embedded.sampling_params import schema_error
from miles_async.http.refusals import Refusals

B = TypeVar("B")
Answer = tuple[int, Any]  # status; what its JSON is of, or the text itself as bytes
Page = Callable[[bytes], Awaitable[Answer]]  # takes the body of the request
Pages = dict[str, dict[str, Page]]  # path, method


def decoded(data: bytes, kind: type[B]) -> B:
    """A request's JSON as ``kind``; no body at all means all defaults. Raises RequestError."""
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise schema_error(str(error)) from None


def build_pages(
    frontend: Frontend, weights: WeightControl, config: ModelConfig, info: dict[str, Any], refusals: Refusals
) -> Pages:
    """``info`` is what /server_info reports of the start."""
    return {
        **_questions(frontend, weights, config, info, refusals),
        **_commands(frontend),
        **_weight_pages(weights),
    }


def _questions(
    frontend: Frontend, weights: WeightControl, config: ModelConfig, info: dict[str, Any], refusals: Refusals
) -> Pages:
    scheduler = frontend.compute.scheduler  # read from the loop for gauges only: plain attributes, no state is kept

    async def health(_: bytes) -> Answer:
        return 200 if frontend.compute.alive else 503, b""

    async def health_generate(_: bytes) -> Answer:
        return 200 if await frontend.probe() else 503, b""

    async def ready(_: bytes) -> Answer:
        return 200 if frontend.compute.alive and not scheduler.paused else 503, b""

    async def model_info(_: bytes) -> Answer:
        return 200, {
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

    async def server_info(_: bytes) -> Answer:
        state = {"weight_version": weights.version, "paused": scheduler.paused, **_load(frontend)}
        return 200, {**info, "internal_states": [state | {"refused_requests": dict(refusals)}]}

    async def loads(_: bytes) -> Answer:
        return 200, {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": info["version"],
            "accelerator": info["device"],
            "num_accelerators": 1,
            "loads": [{"dp_rank": 0, **_load(frontend)}],
        }

    async def models(_: bytes) -> Answer:
        card = {
            "id": weights.model_path,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "miles_async",
            "root": weights.model_path,
            "parent": None,
            "max_model_len": frontend.limits.context_length,
        }
        return 200, {"object": "list", "data": [card]}

    pages: dict[str, Page] = {
        "/health": health,
        "/health_generate": health_generate,
        "/ready": ready,
        "/model_info": model_info,
        "/get_model_info": model_info,
        "/server_info": server_info,
        "/get_server_info": server_info,
        "/v1/loads": loads,
        "/v1/models": models,
    }
    return {path: {"GET": page} for path, page in pages.items()}


def _commands(frontend: Frontend) -> Pages:
    async def flush_cache(data: bytes) -> Answer:
        decoded(data, control_bodies.NoBody)
        if await frontend.compute.call(lambda s: s.flush()):
            return 200, b"Cache flushed.\n"
        return 400, b"Flush cache failed.\n"

    async def abort_request(data: bytes) -> Answer:
        body = decoded(data, control_bodies.AbortBody)
        if body.abort_all:
            frontend.abort_all()
        elif body.rid:
            frontend.abort_rid(body.rid)
        return 200, b""

    async def pause_generation(data: bytes) -> Answer:
        await frontend.pause(decoded(data, control_bodies.PauseBody).mode)
        return 200, {"message": "Generation paused successfully.", "status": "ok"}

    async def continue_generation(data: bytes) -> Answer:
        decoded(data, control_bodies.NoBody)
        await frontend.resume()
        return 200, {"message": "Generation continued successfully.", "status": "ok"}

    return {
        "/flush_cache": {"GET": flush_cache, "POST": flush_cache},
        "/abort_request": {"POST": abort_request},
        "/pause_generation": {"POST": pause_generation},
        "/continue_generation": {"POST": continue_generation},
    }


def _weight_pages(weights: WeightControl) -> Pages:
    async def begin(data: bytes) -> Answer:
        decoded(data, control_bodies.NoBody)
        return await weights.begin()

    async def end(data: bytes) -> Answer:
        decoded(data, control_bodies.NoBody)
        return await weights.end()

    posts: dict[str, Page] = {
        "/begin_weight_update": begin,
        "/end_weight_update": end,
        "/init_weights_update_group": _taking(control_bodies.InitGroupBody, weights.init_group),
        "/destroy_weights_update_group": _taking(control_bodies.DestroyGroupBody, weights.destroy_group),
        "/update_weights_from_distributed": _taking(
            control_bodies.UpdateDistributedBody, weights.update_from_distributed
        ),
        "/update_weights_from_disk": _taking(control_bodies.UpdateDiskBody, weights.update_from_disk),
        "/update_weight_version": _taking(control_bodies.VersionBody, weights.set_version),
    }
    check = _taking(control_bodies.CheckerBody, weights.check)
    return {path: {"POST": page} for path, page in posts.items()} | {"/weights_checker": {"GET": check, "POST": check}}


def _taking(kind: type[B], answer: Callable[[B], Awaitable[Answer]]) -> Page:
    """The page that hands its body to ``answer``, as ``kind``."""

    async def page(data: bytes) -> Answer:
        return await answer(decoded(data, kind))

    return page


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
