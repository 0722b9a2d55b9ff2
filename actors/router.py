"""Router: one URL for the whole fleet. Each request goes to the engine that `router.policy` chooses.

    rollout workers ──HTTP──► Router ──HTTP──► engines            reads  "weights": EngineServes, EngineDown; the ledger
                                │                                 writes "weights": EngineDown; metrics; its address
                                └── metrics ──► bus

Invariants: an engine gets requests only after the broadcaster announced the version that it serves, and none after
somebody reported it gone; the router holds no state that a restart could lose (it reads the ledger again).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Mapping
from typing import Any

from actors.runtime.context import ActorContext
from bus import EngineState
from bus.messages import EngineDown, EngineServes
from miles_async.config import ConfigError
from miles_async.config import Router as RouterConfig
from miles_async.http_limits import answer_at_once
from miles_async.http_server import HttpServer
from miles_async.monitor.diagnosis import MOVING, engine_wait
from miles_async.refusals import Refusals
from miles_async.router_app import RouterApp
from miles_async.router_health import HealthChecker
from miles_async.router_looks import EngineLooks
from miles_async.router_quiet import QuietEngines
from miles_async.router_suspects import Suspects, Verdict
from miles_async.router_worker import Worker
from miles_async.routing.choice import make_policy
from miles_async.secret import resolve

READ_BLOCK_MS = 500
REPORT_INTERVAL_S = 1.0
LEDGER_INTERVAL_S = 0.25  # how soon the router notices that an engine is paused and prefers another one
BACKLOG = 4096
QUIET_LOOK_S = 1.0


class Router:
    """The actor. The web application it serves is ``miles_async.router_app``."""

    role = "router"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        config = ctx.config
        self.app = RouterApp(
            make_policy(config.router.policy, config.run.seed),
            wait_s=config.engine.start_timeout_s,
            request_timeout_s=config.rollout.request_timeout_s,
            max_retries=config.router.max_retries,
            on_dead=self._report_death,
            api_key=resolve("router.api_key", config.router.api_key),
            engine_key=resolve("engine.api_key", config.engine.api_key),
            max_body_bytes=config.router.max_body_mb << 20,
            max_concurrency=config.router.max_concurrency,
            breaker_failures=config.router.breaker_failures,
            breaker_open_s=config.router.breaker_open_s,
            refusals=ctx.refusals,
        )
        self._updating: set[str] = set()
        self._draining: set[str] = set()
        self._deaths: asyncio.Queue[EngineDown] = asyncio.Queue()
        self._verdicts: asyncio.Queue[Verdict] = asyncio.Queue()

    async def run(self) -> None:
        ctx, config = self.ctx, self.ctx.config.router
        listener = bind(config)
        host, port = listener.getsockname()[:2]
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        health = HealthChecker(
            self.app,
            interval_s=config.health_interval_s,
            max_failures=config.health_failures,
            is_updating=self._updating.__contains__,
        )
        suspects = Suspects(
            interval_s=config.suspect_interval_s,
            slow_share=config.slow_share,
            slow_looks=config.slow_looks,
            hung_s=config.hung_s,
        )
        server = _server(self.app)
        duties = (
            self._follow(),
            self._read_ledger(),
            self._publish_deaths(),
            self._name_the_quiet(),
            health.run(ctx.stop),
            EngineLooks(self.app, suspects, self._found).run(ctx.stop),
            self._record_verdicts(),
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.serve(sockets=[listener]))
                helpers = [tasks.create_task(duty) for duty in duties]
                reports = tasks.create_task(self._report())
                await ctx.bus.set_address("router", self._url)
                stopped = tasks.create_task(ctx.stop.wait())
                await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
                server.should_exit = True
                await serving
                if ctx.stop.is_set():
                    await reports  # the last one is of the time since the one before
                for task in (*helpers, stopped, reports):
                    task.cancel()
        finally:
            for name in list(self.app.workers):
                self.app.remove(name)
            listener.close()

    async def _follow(self) -> None:
        """Engines join and leave. At the start the ledger says who serves, from then on the stream."""
        bus, cursor = self.ctx.bus, await self.ctx.bus.last_id("weights")  # first, so that nothing falls in between
        for name, engine in (await self.ctx.engine_states()).items():
            if engine.state in ("serving", "updating") and name not in self.ctx.roster.leaving:
                self._join(name, engine.url, engine.version, engine.incarnation)
        while not self.ctx.stop.is_set():
            messages, cursor = await bus.read("weights", (EngineServes, EngineDown), cursor, block_ms=READ_BLOCK_MS)
            for message in messages:
                if not await self.ctx.has_engine(message.engine):
                    bus.refuse("weights", message.engine, ValueError("no engine of this run"))
                elif isinstance(message, EngineServes):
                    if not await self.ctx.engine_leaves(message.engine):
                        self._join(message.engine, message.url, message.version, message.incarnation)
                else:
                    self._leave(message)

    def _leave(self, down: EngineDown) -> None:
        worker = self.app.workers.get(down.engine)
        if worker is not None and down.incarnation >= worker.incarnation:
            self.ctx.log.info("engine %s leaves: %s", down.engine, down.reason)
            self.app.remove(down.engine)

    def _join(self, name: str, url: str, version: int, incarnation: int) -> None:
        known = self.app.workers.get(name)
        if known is None or known.incarnation <= incarnation:
            try:
                self.app.add(name, url, version, incarnation)
            except ValueError as error:
                self.ctx.bus.refuse("weights", name, error)
                return
            self._updating.discard(name)

    async def _drain(self, engines: Mapping[str, EngineState]) -> None:
        """Engines that leave get nothing new; of those that have nothing left the broadcaster hears that they are down."""
        for name in self.ctx.roster.leaving:
            worker, line = self.app.workers.get(name), engines.get(name)
            if worker is not None and name not in self._draining:
                self._draining.add(name)
                self.app.drain(name)
            elif worker is None and line is not None and line.state in ("serving", "updating"):
                down = EngineDown(
                    engine=name, incarnation=line.incarnation, reason="it leaves, and has answered all it had"
                )
                await self.ctx.bus.publish("weights", down)
        self._draining &= self.ctx.roster.leaving

    async def _read_ledger(self) -> None:
        """Prefer engines that are not being updated at the moment."""
        while not self.ctx.stop.is_set():
            engines = await self.ctx.engine_states()
            await self._drain(engines)
            now = {name for name, engine in engines.items() if engine.state == "updating"}
            for name in now ^ self._updating:
                self.app.set_updating(name, name in now)
            self._updating.clear()
            self._updating.update(now)
            await asyncio.sleep(LEDGER_INTERVAL_S)

    async def _report(self) -> None:
        """Each second, and at the end: how much of it every engine had work, and what is in flight."""
        seen: dict[Worker, tuple[float, int]] = {}
        before = self.app.clock()
        while not self.ctx.stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self.ctx.stop.wait()
            now = self.app.clock()
            elapsed = max(now - before, 1e-6)
            workers = list(self.app.workers.values())
            values: dict[str, float] = {"router/failovers": self.app.failovers}
            for worker in workers:
                busy, answered = worker.busy_seconds(now), worker.answered
                old_busy, old_answered = seen.get(worker, (0.0, 0))
                values[f"engine_busy/{worker.name}"] = (busy - old_busy) / elapsed
                values[f"engine_requests_per_s/{worker.name}"] = (answered - old_answered) / elapsed
                seen[worker] = (busy, answered)
            values["router/inflight"] = sum(worker.inflight for worker in workers)
            values["router/engines_up"] = sum(not worker.trouble for worker in workers)
            await self.ctx.bus.set_address("router", self._url)  # again: something else may have been written there
            values["router/refused"] = self.app.refusals.total()
            values[MOVING] = sum(worker.moved_at > before for worker in workers)
            seen = {worker: seen[worker] for worker in workers}
            before = now
            await self.ctx.metrics(max((worker.version for worker in workers), default=0), values)

    async def _name_the_quiet(self) -> None:
        """The heartbeat says that this router waits for the engines that give nothing for what they have in flight, or
        for one that is up."""
        quiet = QuietEngines(self.app)
        down_since: float | None = None
        with contextlib.ExitStack() as said:
            while not self.ctx.stop.is_set():
                found = [
                    (engine_wait(worker.name, worker.inflight), time.time() - seconds)
                    for worker, seconds in await quiet.look()
                ]
                workers = list(self.app.workers.values())
                if all(worker.trouble for worker in workers):
                    down_since = down_since or time.time()
                    troubles = [f"{worker.name}: {worker.trouble}" for worker in workers]
                    found.append((f"an engine that is up ({'; '.join(troubles) or 'none has joined'})", down_since))
                else:
                    down_since = None
                said.close()  # only now: a heartbeat sent during the look still says what was found before
                for whom, since in found:
                    said.enter_context(self.ctx.waiting(whom, since))
                await asyncio.sleep(QUIET_LOOK_S)

    def _report_death(self, worker: Worker, why: str) -> None:
        self._deaths.put_nowait(EngineDown(engine=worker.name, incarnation=worker.incarnation, reason=why))

    def _found(self, worker: Worker, verdict: Verdict) -> None:
        """An engine was taken out, or let back."""
        self._verdicts.put_nowait(verdict)
        if verdict.kind == "lying":  # then nobody knows what it serves: the broadcaster sends it all weights again
            self.app.mark_dead(worker, verdict.why)

    async def _record_verdicts(self) -> None:
        while not self.ctx.stop.is_set():
            engine, kind, why = await self._verdicts.get()
            await self.ctx.event("engine_suspected" if kind else "engine_trusted", engine=engine, what=kind, why=why)

    async def _publish_deaths(self) -> None:
        while not self.ctx.stop.is_set():
            down = await self._deaths.get()
            self.ctx.log.warning("engine %s is given up: %s", down.engine, down.reason)
            await self.ctx.bus.publish("weights", down)


def _server(app: Any) -> HttpServer:
    return HttpServer(
        app,
        app.refusals if isinstance(app, RouterApp) else Refusals(),
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
        server_header=False,
        date_header=False,
    )


def bind(config: RouterConfig) -> socket.socket:
    """The listening socket of ``router.host`` and ``router.port``. Raises ConfigError, one line, if it cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        hint = "another program listens there; 0 takes any free port" if error.errno == errno.EADDRINUSE else error
        raise ConfigError(f"router.host = {config.host!r}, router.port = {config.port}: {hint}") from None
    answer_at_once(listener)
    return listener
