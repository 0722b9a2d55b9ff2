"""The host of one inference engine: starts it, announces it, notices its end.

Publishes: ``EngineUp`` once the engine answers. Consumes: nothing; prompts reach the engine over HTTP, weights through the
broadcaster.

Keeps: an engine is announced with the version of the weights that it really has; it gets work only after the broadcaster
has brought it to the current version; an sglang server that hangs is killed, and this actor ends with the cause, so that
another one takes its place; somebody's server is checked before it is announced. ``engine.kind``: ``embedded`` (in this
process), ``sglang`` (a child process), ``external`` (somebody's, by URL).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

import aiohttp

from actors.runtime.context import ActorContext
from actors.runtime.logs import log_path
from actors.runtime.tasks import end
from bus import VersionLedger
from bus.waits import WaitKind
from miles_async.config.schema import RunConfig
from miles_async.config.secrets import resolve
from miles_async.engines.client import EngineClient
from miles_async.engines.sglang.check import check_server, until_it_answers
from miles_async.engines.sglang.observer import Observer
from miles_async.weights.place import weight_roots
from miles_async.weights.transports.table import make_transport

if TYPE_CHECKING:
    from miles_async.engines.sglang.driver import SglangServer

UNKNOWN_VERSION = -1  # weights that are nobody's version: the broadcaster will send all
LOOK_INTERVAL_S = 5.0  # between two looks at a server


class EngineHost:
    role = "engine"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.config = ctx.config.engine
        self.api_key = resolve("engine.api_key", ctx.config.engine.api_key)

    async def run(self) -> None:
        try:
            async with self._served():
                await self._host()
        finally:
            await VersionLedger(self.ctx.bus).down(self.ctx.name, "its host ends", self.ctx.incarnation)

    def _served(self) -> AbstractAsyncContextManager[None]:
        """What the transport of the weights needs on this machine."""
        if self.config.kind == "external":
            return nullcontext()  # an engine of somebody else is on a machine of its own
        return make_transport(self.ctx.config, self.ctx.run_dir).beside_engine(self.ctx.name)

    async def _host(self) -> None:
        match self.config.kind:
            case "embedded":
                await self._embedded()
            case "sglang":
                await self._sglang()
            case "external":
                await self._external()

    async def _announce(self, url: str) -> None:
        """Tell the broadcaster, with the version the engine itself reports."""
        async with aiohttp.ClientSession() as session:
            info = await EngineClient(url, session, self.api_key).model_info()
        reported = str(info.get("weight_version", ""))
        known = reported.isascii() and reported.isdigit() and len(reported) < 10
        version = int(reported) if known else UNKNOWN_VERSION
        await VersionLedger(self.ctx.bus).up(self.ctx.name, url, self.ctx.incarnation, version)
        await self.ctx.event("engine_up", url=url, version=version)

    async def _embedded(self) -> None:
        from miles_async.engines.embedded.server import serve  # imports torch

        await serve(
            self.ctx.model_path,
            host="127.0.0.1",
            port=0,
            device=self.ctx.config.model.device,
            dtype=self.ctx.config.model.dtype,
            max_running_requests=self.config.max_running_requests,
            context_length=self.config.context_length,
            weight_version="0",
            api_key=self.api_key,
            weight_roots=weight_roots(self.ctx.config, self.ctx.run_dir, self.ctx.model_path),
            refusals=self.ctx.refusals,
            on_ready=self._announce,
            stop=self.ctx.stop,
        )

    async def _sglang(self) -> None:
        from miles_async.engines.sglang.driver import SglangServer

        with self.ctx.waiting(WaitKind.SGLANG_SERVER):
            server = await SglangServer.start(
                self.ctx.model_path,
                log_file=log_path(self.ctx.run_dir, f"{self.ctx.name}-sglang"),
                device=self.ctx.config.model.device,
                dtype=self.ctx.config.model.dtype,
                max_running_requests=self.config.max_running_requests,
                context_length=self.config.context_length,
                tp_size=self.config.tp_size,
                args=self.config.args,
                weight_version="0",
                api_key=self.api_key,
                timeout_s=self.config.start_timeout_s,
            )
        stop, ended = asyncio.create_task(self.ctx.stop.wait()), asyncio.create_task(server.wait())
        hung = asyncio.create_task(self._until_hung(server))
        try:
            for line in server.suspicious:
                await self.ctx.event("engine_suspicious", what=line)
            await self._announce(server.url)
            await asyncio.wait({stop, ended, hung}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise RuntimeError(f"its sglang server ended with code {ended.result()}: {server.log_tail(3)}")
            if hung.done():
                raise RuntimeError(f"its sglang server hangs, and is killed: {hung.result()}")
        finally:
            await end([stop, hung])
            await server.stop()
            await ended

    async def _until_hung(self, server: SglangServer) -> str:
        """Returns when the server shows no sign of life any more, with what is missing."""
        async with self._client(server.url) as client:
            observer = Observer(client, hang_timeout(self.ctx.config))
            while True:
                health = await observer.look(server.alive())
                if health.state == "hung":
                    return health.reason
                await asyncio.sleep(LOOK_INTERVAL_S)

    async def _external(self) -> None:
        url = self.config.urls[self.ctx.index].rstrip("/")
        stop, attached = asyncio.create_task(self.ctx.stop.wait()), asyncio.create_task(self._attach(url))
        try:
            await asyncio.wait({stop, attached}, return_when=asyncio.FIRST_COMPLETED)
            if attached.done():
                attached.result()
        finally:
            await end([stop, attached])

    async def _attach(self, url: str) -> None:
        """Check and announce somebody's server, and from then on record when it hangs, dies and comes back.

        Raises UnfitServerError: it cannot be an engine of this run; EngineError: it does not answer.
        """
        async with self._client(url) as client:
            with self.ctx.waiting(WaitKind.SERVER, url=url):
                await until_it_answers(client, self.config.start_timeout_s)
                suspicious = await check_server(client, self.ctx.model_path, self.ctx.config.model.dtype)
            for line in suspicious:
                await self.ctx.event("engine_suspicious", what=line)
            await self._announce(url)
            observer, gone = Observer(client, hang_timeout(self.ctx.config)), False
            while True:
                health = await observer.look()
                if gone != (gone := health.state in ("hung", "dead")):
                    await self.ctx.event(f"engine_{health.state}", engine=self.ctx.name, url=url, reason=health.reason)
                await asyncio.sleep(LOOK_INTERVAL_S)

    @contextlib.asynccontextmanager
    async def _client(self, url: str) -> AsyncIterator[EngineClient]:
        async with aiohttp.ClientSession() as session:
            yield EngineClient(url, session, self.api_key, name=self.ctx.name)


def hang_timeout(config: RunConfig) -> float:
    """Seconds without a sign of life after which a server is hung: ``engine.hang_timeout_s``, or what is meant if unset."""
    return config.engine.hang_timeout_s or 2 * config.weights.timeout_s
