"""The host of one inference engine: starts it, announces it, notices its end.

Publishes: ``EngineUp`` once the engine answers. Consumes: nothing; prompts reach the engine over HTTP, weights through the
broadcaster.

Keeps: an engine is announced with the version of the weights that it really has; it gets work only after the broadcaster
has brought it to the current version; one that ends by itself ends this actor with the cause, so that another one takes its
place. What serves as an engine is ``engine.kind``'s to say (``miles_async/engines/kinds/``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp

from actors.runtime.context import ActorContext
from actors.runtime.logs import log_path
from actors.runtime.tasks import end
from bus import VersionLedger
from bus.waits import WaitKind
from miles_async.config.secrets import resolve
from miles_async.engines.client import EngineClient
from miles_async.engines.kinds.table import kind_of
from miles_async.weights.place import weight_roots
from miles_async.weights.transports.table import make_transport

UNKNOWN_VERSION = -1  # weights that are nobody's version: the broadcaster will send all


class EngineHost:
    """The actor, and to the kind of its engine the ``kinds.base.EngineHost`` around it."""

    role = "engine"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.config, self.engine = ctx.config, ctx.config.engine
        self.name, self.index, self.model_path = ctx.name, ctx.index, ctx.model_path
        self.address = ctx.spec.site.host
        self.stop, self.refusals = ctx.stop, ctx.refusals
        self.api_key = resolve("engine.api_key", ctx.config.engine.api_key)
        self.weight_roots: Sequence[Path] = weight_roots(ctx.config, ctx.run_dir, ctx.model_path)

    async def run(self) -> None:
        try:
            async with self._with_weights():
                await self.serve()
        finally:
            await VersionLedger(self.ctx.bus).down(self.ctx.name, "its host ends", self.ctx.incarnation)

    def _with_weights(self) -> AbstractAsyncContextManager[None]:
        """What the transport of the weights needs on the engine's machine; that of somebody else's engine is not here."""
        if not kind_of(self.engine).OURS:
            return nullcontext()
        return make_transport(self.config, self.ctx.run_dir).beside_engine(self.name)

    async def serve(self) -> None:
        """The engine itself, until it is to end."""
        await kind_of(self.engine).host(self)

    # what a kind asks of its surroundings

    async def announce(self, url: str) -> None:
        """Tell the broadcaster, with the version the engine itself reports."""
        async with aiohttp.ClientSession() as session:
            info = await EngineClient(url, session, self.api_key).model_info()
        reported = str(info.get("weight_version", ""))
        known = reported.isascii() and reported.isdigit() and len(reported) < 10
        version = int(reported) if known else UNKNOWN_VERSION
        await VersionLedger(self.ctx.bus).up(self.ctx.name, url, self.ctx.incarnation, version)
        await self.ctx.event("engine_up", url=url, version=version)

    async def event(self, kind: str, **data: Any) -> None:
        await self.ctx.event(kind, **data)

    def waiting(self, kind: WaitKind, **about: int | str) -> AbstractContextManager[object]:
        return self.ctx.waiting(kind, (), **about)

    def log_file(self, suffix: str) -> Path:
        return log_path(self.ctx.run_dir, f"{self.name}-{suffix}")

    @contextlib.asynccontextmanager
    async def client(self, url: str) -> AsyncIterator[EngineClient]:
        async with aiohttp.ClientSession() as session:
            yield EngineClient(url, session, self.api_key, name=self.name)

    async def until_stopped(self, *watches: Coroutine[Any, Any, None]) -> None:
        stopped, *watching = (asyncio.create_task(one) for one in (self._stopped(), *watches))
        try:
            await asyncio.wait({stopped, *watching}, return_when=asyncio.FIRST_COMPLETED)
            for watch in watching:
                if watch.done():
                    watch.result()
        finally:
            await end([stopped, *watching])

    async def _stopped(self) -> None:
        await self.stop.wait()
