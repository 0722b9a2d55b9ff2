"""``sglang``: the real SGLang server (``engines/sglang/``), a child process of its host.

Promises: a server that hangs is killed, and its host ends with the cause, as it does when the server ends by itself.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from bus.waits import WaitKind
from miles_async.config.schema import RunConfig
from miles_async.engines.kinds.base import EngineHost, EngineKind
from miles_async.engines.sglang import flags
from miles_async.engines.sglang.observer import hang_timeout, looks

if TYPE_CHECKING:
    from miles_async.engines.sglang.driver import SglangServer


class Sglang(EngineKind):
    """One for each host, of ``engine.tp_size`` ranks, on loopback."""

    KEYS = ("engine.args", "eval.engine_args")

    def check_use(self, config: RunConfig) -> None:
        flags.check_args("engine.args", config.engine.args)
        flags.check_args("eval.engine_args", config.eval.engine_args or [])

    async def host(self, host: EngineHost) -> None:
        from miles_async.engines.sglang.driver import SglangServer

        with host.waiting(WaitKind.SGLANG_SERVER):
            server = await SglangServer.start(
                host.model_path,
                host=host.address,
                log_file=host.log_file("sglang"),
                device=host.config.model.device,
                dtype=host.config.model.dtype,
                max_running_requests=host.engine.max_running_requests,
                context_length=host.engine.context_length,
                tp_size=host.engine.tp_size,
                args=host.engine.args,
                weight_version="0",
                api_key=host.api_key,
                timeout_s=host.engine.start_timeout_s,
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
        from miles_async.engines.sglang.driver import SglangServer

        engine = config.engine
        with tempfile.TemporaryDirectory() as logs:
            server = await SglangServer.start(
                model,
                log_file=Path(logs) / "sglang.log",
                device=config.model.device,
                dtype=config.model.dtype,
                max_running_requests=engine.max_running_requests,
                context_length=engine.context_length,
                tp_size=engine.tp_size,
                args=engine.args if config.eval.engine_args is None else config.eval.engine_args,
                weight_version=version,
                timeout_s=engine.start_timeout_s,
            )
            try:
                yield server.url
            finally:
                await server.stop()


async def _raise_ended(server: SglangServer) -> None:
    code = await server.wait()
    raise RuntimeError(f"its sglang server ended with code {code}: {server.log_tail(3)}")


async def _raise_hung(host: EngineHost, server: SglangServer) -> None:
    """Raises when the server shows no sign of life any more, with what is missing."""
    async with host.client(server.url) as client:
        async for health in looks(client, hang_timeout(host.config), server.alive):
            if health.state == "hung":
                raise RuntimeError(f"its sglang server hangs, and is killed: {health.reason}")
