"""Router, the other kind: SGLang's own (``router.kind = "sglang"``) in the place of ours.

    rollout workers ──HTTP──► sglang-router ──HTTP──► engines     reads  the ledger of versions, when "weights" has news
                                  ▲                               writes there who has left; its address; metrics
                       this actor ┘ keeps its list of engines

Invariants: an engine is on its list only while the ledger of versions says that it serves; a router that ends is an actor
that dies, and is replaced. What it cannot do (facts of 0.3.2): routing by version, /abort_request, batches, a drain, a word on
which engine hangs; who needs those takes ours.
"""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp

from actors.routed_lines import follow_lines, report_gone, serves
from actors.runtime.context import ActorContext
from actors.runtime.logs import log_path
from actors.runtime.tasks import end
from bus import EngineState, VersionLedger
from bus.waits import WaitKind
from miles_async.config.secrets import resolve
from miles_async.engines.sglang.driver import free_port
from miles_async.http.address import url_of
from miles_async.router.sglang import SglangRouterError, SglangRouterProcess

READ_BLOCK_MS = 500
REPORT_S = 1.0
RETRY_S = 0.2


class SglangRouter:
    role = "router"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self.engines: dict[str, EngineState] = {}  # that get requests
        self.changed = asyncio.Event()
        self._url = ""  # under which the run's actors reach it

    async def run(self) -> None:
        ctx, config = self.ctx, self.ctx.config
        with ctx.waiting(WaitKind.SGLANG_ROUTER):
            host = ctx.spec.site.listens(config.router.host)
            port = config.router.port or free_port(host)
            self._url = url_of(ctx.spec.site.announced(host), port)
            router = await SglangRouterProcess.start(
                host,
                port,
                metrics_host=config.router.host,
                log_file=log_path(ctx.run_dir, f"{ctx.name}-sglang"),
                args=config.router.args,
                key=resolve("router.api_key", config.router.api_key),
                engine_key=resolve("engine.api_key", config.engine.api_key),
            )
        try:
            async with aiohttp.ClientSession() as session:
                tasks = [
                    asyncio.create_task(work)
                    for work in (self._follow(), self._keep_list(router, session), self._report(router, session))
                ]
                ended, stopped = asyncio.create_task(router.wait()), asyncio.create_task(ctx.stop.wait())
                try:
                    await asyncio.wait({*tasks, ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
                    if ended.done() and not ctx.stop.is_set():
                        raise ended.result()
                    for task in tasks:
                        if task.done():
                            task.result()
                finally:
                    await end([*tasks, ended, stopped])
        finally:
            await router.stop()

    async def _follow(self) -> None:
        """Have the engines as the ledger of versions has them, but for those that leave: this router has no drain.

        An engine that leaves is taken off the list, and what it has in flight is sent again.
        """
        ledger = VersionLedger(self.ctx.bus)
        async for lines in follow_lines(self.ctx, READ_BLOCK_MS):
            leaving = self.ctx.roster.leaving
            serving = {name: line for name, line in lines.items() if serves(line)}
            for name in serving.keys() & leaving:
                await report_gone(ledger, name, serving[name], "it leaves")
            engines = {name: line for name, line in serving.items() if name not in leaving}
            if {line.url for line in engines.values()} != {line.url for line in self.engines.values()}:
                self.changed.set()
            self.engines = engines

    async def _keep_list(self, router: SglangRouterProcess, session: aiohttp.ClientSession) -> None:
        """Bring the router's list to ours whenever that changes, and look again until it has taken all."""
        announced = False
        while not self.ctx.stop.is_set():
            await self.changed.wait()
            self.changed.clear()
            wanted = {line.url for line in self.engines.values()}
            try:
                missing = await router.set_engines(wanted, session)
            except SglangRouterError as error:
                self.ctx.log.warning("%s", error)
                missing = wanted or {""}
            if missing:
                self.changed.set()
                await asyncio.sleep(RETRY_S)
            elif wanted and not announced:  # before that it would answer 503 at once instead of waiting
                announced = True
                await self.ctx.bus.set_address("router", self._url)

    async def _report(self, router: SglangRouterProcess, session: aiohttp.ClientSession) -> None:
        while not self.ctx.stop.is_set():
            await asyncio.sleep(REPORT_S)
            with contextlib.suppress(SglangRouterError):
                workers = await router.workers(session)
                values = {
                    "router/inflight": float(sum(int(worker.get("load") or 0) for worker in workers)),
                    "router/engines_up": float(sum(bool(worker.get("is_healthy")) for worker in workers)),
                }
                newest = max((line.version for line in self.engines.values()), default=0)
                await self.ctx.metrics(newest, values)
