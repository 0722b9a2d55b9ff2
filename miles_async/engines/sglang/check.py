"""Whether a running server can be an engine of a run: one check for servers that we start and for somebody else's.

Promises: a server that lacks an endpoint we call, is too old, has ranks that the weight group cannot reach, or serves another
model than the run's is refused with one line that names it and what is wrong; what is merely suspicious comes back as lines.
The judgement is pure (:func:`judge`); the server is only read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_async.config.schema import ConfigError
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.sglang.command import OLDEST_VERSION, RETURN_ROUTES, version_of

REQUIRED_ENDPOINTS = (
    "/generate",
    "/health",
    "/ready",
    "/model_info",
    "/server_info",
    "/v1/loads",
    "/flush_cache",
    "/abort_request",
    "/pause_generation",
    "/continue_generation",
    "/begin_weight_update",
    "/end_weight_update",
    "/init_weights_update_group",
    "/update_weights_from_distributed",
    "/update_weights_from_disk",
    "/destroy_weights_update_group",
    "/update_weight_version",
    "/weights_checker",
)
# what /server_info may say of a server that is one engine with one rank for each tensor-parallel one
ONE_ENGINE = {"dp_size": 1, "pp_size": 1, "nnodes": 1, "tokenizer_worker_num": 1, "disaggregation_mode": "null"}
MODEL_KEYS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")  # of a config.json
PROBE_PAUSE_S = 0.5
PROBE_TIMEOUT_S = 10.0


class UnfitServerError(ConfigError):
    """One line: which server, and why it cannot be an engine of this run. Starting it again would not help."""


@dataclass(frozen=True)
class Server:
    """What a server says of itself. ``config``: of the checkpoint it serves, where it can be read from here, else empty."""

    url: str
    info: Mapping[str, Any]  # /server_info
    model: Mapping[str, Any]  # /model_info
    missing: tuple[str, ...] = ()  # endpoints that it lacks
    config: Mapping[str, Any] | None = None


def judge(server: Server, ours: Mapping[str, Any], dtype: str, *, routes: bool = False) -> list[str]:
    """What is suspicious. ``ours``: the config.json of the run's model. ``routes``: it has to return experts. Raises
    UnfitServerError. Pure."""
    embedded = "embedded" in str(server.info.get("engine", ""))
    version = str(server.info.get("version") or "that names no version")
    name = f"the server at {server.url} (sglang {version})" if not embedded else f"the embedded engine at {server.url}"
    if server.missing:
        raise UnfitServerError(f"{name} has no endpoint {', '.join(server.missing)}, which a run needs")
    if not embedded and version_of(version) < OLDEST_VERSION:
        raise UnfitServerError(f"{name} is too old: at least {'.'.join(map(str, OLDEST_VERSION))} is needed")
    for key, only in ONE_ENGINE.items():
        if (value := server.info.get(key, only)) not in (only, None):
            raise UnfitServerError(f"{name} runs with {key} = {value}, an engine needs {only}")
    if server.model.get("is_generation") is False:
        raise UnfitServerError(f"{name} does not generate: it serves {server.model.get('model_path')} for embeddings")
    theirs = {**(server.config or {}), **{k: v for k, v in server.model.items() if k == "model_type" and v}}
    for key in MODEL_KEYS:
        if key in theirs and key in ours and theirs[key] != ours[key]:
            raise UnfitServerError(
                f"{name} serves another model: {key} = {theirs[key]} ({server.model.get('model_path')}), "
                f"the run's has {ours[key]}"
            )
    if routes and not server.info.get("enable_return_routed_experts"):
        raise UnfitServerError(f"{name} returns no experts: rollout.routing_replay = true needs {RETURN_ROUTES}")
    suspicious = []
    computes = str(server.info.get("dtype", dtype)).removeprefix("torch.")
    if computes not in (dtype, "auto"):
        suspicious.append(f'{name} computes in {computes}, the learner in model.dtype = "{dtype}"')
    if (architectures := server.model.get("architectures")) and ours.get(
        "architectures", architectures
    ) != architectures:
        suspicious.append(f"{name} serves architectures {architectures}, the run's model is {ours['architectures']}")
    return suspicious


async def check_server(client: EngineClient, model_path: str, dtype: str, *, routes: bool = False) -> list[str]:
    """What is suspicious of a server that answers, which is to return experts where ``routes`` says so. Raises
    UnfitServerError, or EngineError where it stops answering."""
    try:
        info, model = await client.server_info(PROBE_TIMEOUT_S), await client.model_info(PROBE_TIMEOUT_S)
    except EngineError as error:
        if error.status == 404:
            raise UnfitServerError(f"the server at {client.url} has no endpoint {error.endpoint}") from None
        if error.status in (401, 403):
            raise UnfitServerError(f"the server at {client.url} refuses engine.api_key: {error.answer}") from None
        raise
    missing = tuple([path for path in REQUIRED_ENDPOINTS if not await client.has_endpoint(path, PROBE_TIMEOUT_S)])
    theirs = read_config(str(model.get("model_path", "")))
    return judge(Server(client.url, info, model, missing, theirs), read_config(model_path), dtype, routes=routes)


async def until_it_answers(client: EngineClient, timeout_s: float) -> None:
    """Returns when the server at ``client`` answers anything. Raises EngineError after ``timeout_s`` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        try:
            await client.model_info(min(PROBE_TIMEOUT_S, timeout_s))
            return
        except EngineError as error:
            if error.status not in (None, 502, 503):
                return  # an answer, of which the check makes what it is
            if loop.time() >= deadline:
                raise EngineError(client.name, error.endpoint, f"{error.answer}, for {timeout_s:g} s") from None
        await asyncio.sleep(PROBE_PAUSE_S)


def read_config(model_path: str) -> dict[str, Any]:
    """The config.json of a checkpoint directory; empty where this machine has none."""
    try:
        config = json.loads((Path(model_path) / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
