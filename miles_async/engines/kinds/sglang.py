"""``sglang``: the real SGLang server (``engines/sglang/``), a child process of its host.

Promises: a server that hangs is killed, and its host ends with the cause, as it does when the server ends by itself.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bus.waits import WaitKind
from miles_async.config.schema import Engine, Model, RunConfig
from miles_async.engines.kinds.base import EngineHost, EngineKind
from miles_async.engines.sglang import flags
from miles_async.engines.sglang.observer import hang_timeout, looks

if TYPE_CHECKING:
    from miles_async.engines.sglang.driver import SglangServer


class Sglang(EngineKind):
    """One for each host, of ``engine.tp_size`` ranks, on loopback."""

    KEYS = ("engine.args", "eval.engine_args")
    RETURNS_ROUTES = True

    def check_use(self, config: RunConfig) -> None:
        flags.check_args("engine.args", config.engine.args)
        flags.check_args("eval.engine_args", config.eval.engine_args or [])

    async def host(self, host: EngineHost) -> None:
        log_file = host.log_file("sglang")
        with host.waiting(WaitKind.SGLANG_SERVER):
            server = await _start(
                host.config.model,
                host.engine,
                host.model_path,
                "0",
                log_file,
                host=host.address,
                api_key=host.api_key,
                routes=host.config.rollout.routing_replay,
            )
        try:
            for line in server.suspicious:
                await host.event("engine_suspicious", what=line)
            await host.announce(server.url)
            await host.until_stopped(_raise_ended(server), _raise_hung(host, server))
        finally:
            await server.stop()

    @contextlib.asynccontextmanager
    async def alone(self, config: RunConfig, model: str, version: str) -> AsyncIterator[str]:
        engine, its_args = config.engine, config.eval.engine_args
        engine = engine if its_args is None else msgspec.structs.replace(engine, args=its_args)
        with tempfile.TemporaryDirectory() as logs:
            server = await _start(config.model, engine, model, version, Path(logs) / "sglang.log")
            try:
                yield server.url
            finally:
                await server.stop()


async def _start(
    model: Model, engine: Engine, path: str, version: str, log_file: Path, **of_a_run: Any
) -> SglangServer:
    """A server as ``engine`` describes it, of the weights in ``path``; ``of_a_run``: its address, its key, what it returns.

    Raises as ``SglangServer.start`` does.
    """
    from miles_async.engines.sglang.driver import SglangServer

    return await SglangServer.start(
        path,
        log_file=log_file,
        device=model.device,
        dtype=model.dtype,
        max_running_requests=engine.max_running_requests,
        context_length=engine.context_length,
        tp_size=engine.tp_size,
        args=engine.args,
        weight_version=version,
        timeout_s=engine.start_timeout_s,
        **of_a_run,
    )


async def _raise_ended(server: SglangServer) -> None:
    code = await server.wait()
    raise RuntimeError(f"its sglang server ended with code {code}: {server.log_tail(3)}")


async def _raise_hung(host: EngineHost, server: SglangServer) -> None:
    """Raises when the server shows no sign of life any more, with what is missing."""
    async with host.client(server.url) as client:
        async for health in looks(client, hang_timeout(host.config), server.alive):
            if health.state == "hung":
                raise RuntimeError(f"its sglang server hangs, and is killed: {health.reason}")
