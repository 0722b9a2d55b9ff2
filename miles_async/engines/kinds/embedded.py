"""``embedded``: our own engine (``engines/embedded/``), in the process of its host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from miles_async.config.schema import RunConfig
from miles_async.engines.kinds.base import EngineHost, EngineKind, refuse_tp_size
from miles_async.models.support import ENGINE


class Embedded(EngineKind):
    """One for each process, on loopback."""

    SUMS_LIKE_SNAPSHOTS = True
    COMPUTES = ENGINE
    RETURNS_ROUTES = True

    def check(self, config: RunConfig) -> None:
        refuse_tp_size(config.engine)

    async def host(self, host: EngineHost) -> None:
        from miles_async.engines.embedded.server import serve  # imports torch

        await serve(
            host.model_path,
            host=host.address,
            port=0,
            device=host.config.model.device,
            dtype=host.config.model.dtype,
            max_running_requests=host.engine.max_running_requests,
            context_length=host.engine.context_length,
            weight_version="0",
            api_key=host.api_key,
            weight_roots=host.weight_roots,
            refusals=host.refusals,
            on_ready=host.announce,
            stop=host.stop,
        )

    @contextlib.asynccontextmanager
    async def alone(self, config: RunConfig, model: str, version: str) -> AsyncIterator[str]:
        from miles_async.engines.embedded.server import serve  # imports torch

        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        serving = asyncio.create_task(
            serve(
                model,
                device=config.model.device,
                dtype=config.model.dtype,
                max_running_requests=config.engine.max_running_requests,
                context_length=config.engine.context_length,
                weight_version=version,
                on_ready=ready.set_result,
                stop=stop,
            )
        )
        try:
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                yield ready.result()
        finally:
            stop.set()
            await asyncio.wait({serving})
        serving.result()  # raises why it did not start
