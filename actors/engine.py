"""The host of one inference engine: starts it, announces it, notices its end.

Publishes: ``EngineUp`` once the engine answers. Consumes: nothing; prompts reach the engine over HTTP, weights through the
broadcaster.

Keeps: an engine is announced with the version of the weights that it really has; it gets work only after the broadcaster
has brought it to the current version. ``engine.kind``: ``embedded`` (in this process), ``sglang`` (a child process),
``external`` (somebody's, by URL).
"""

from __future__ import annotations

import asyncio

import aiohttp

from actors.runtime.context import ActorContext
from actors.runtime.local import log_path
from bus.messages import EngineDown, EngineUp
from miles_async.engine_client import EngineClient
from miles_async.secret import resolve

UNKNOWN_VERSION = -1  # weights that are nobody's version: the broadcaster will send all


class EngineHost:
    role = "engine"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.config = ctx.config.engine
        self.api_key = resolve("engine.api_key", ctx.config.engine.api_key)

    async def run(self) -> None:
        try:
            await self._host()
        finally:
            down = EngineDown(engine=self.ctx.name, incarnation=self.ctx.incarnation, reason="its host ends")
            await self.ctx.bus.publish("weights", down)

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
        await self.ctx.bus.set_engine(self.ctx.name, url, self.ctx.incarnation, version, "starting")
        up = EngineUp(engine=self.ctx.name, url=url, incarnation=self.ctx.incarnation, version=version)
        await self.ctx.bus.publish("weights", up)
        await self.ctx.event("engine_up", url=url, version=version)

    async def _embedded(self) -> None:
        from miles_async.engine.server import serve  # imports torch

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
            refusals=self.ctx.refusals,
            on_ready=self._announce,
            stop=self.ctx.stop,
        )

    async def _sglang(self) -> None:
        from miles_async.sglang_server.driver import SglangServer

        with self.ctx.waiting("the sglang server to start"):
            server = await SglangServer.start(
                self.ctx.model_path,
                log_file=log_path(self.ctx.run_dir, f"{self.ctx.name}-sglang"),
                device=self.ctx.config.model.device,
                dtype=self.ctx.config.model.dtype,
                max_running_requests=self.config.max_running_requests,
                context_length=self.config.context_length,
                args=self.config.args,
                weight_version="0",
                api_key=self.api_key,
                timeout_s=self.config.start_timeout_s,
            )
        stop, ended = asyncio.create_task(self.ctx.stop.wait()), asyncio.create_task(server.wait())
        try:
            await self._announce(server.url)
            await asyncio.wait({stop, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise RuntimeError(f"its sglang server ended with code {ended.result()}: {server.log_tail(3)}")
        finally:
            stop.cancel()
            await server.stop()
            await ended

    async def _external(self) -> None:
        await self._announce(self.config.urls[self.ctx.index].rstrip("/"))
        await self.ctx.stop.wait()
