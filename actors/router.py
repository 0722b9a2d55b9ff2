"""Router: one URL for the whole fleet. Each request goes to the engine that `router.policy` chooses.

    rollout workers ──HTTP──► Router ──HTTP──► engines            reads  the ledger of versions, when "weights" has news
                                │                                 writes there who is down; metrics; its address
                                └── metrics ──► bus

Invariants: an engine gets requests only while the ledger of versions says that it serves, so that no message that comes late
brings back one that is down; the router holds no state that a restart could lose (it reads the ledger again).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from actors.routed_lines import follow_lines, report_gone, serves
from actors.runtime.context import ActorContext, wait_for
from bus import EngineState, VersionLedger, run_key
from bus.waits import WaitKind
from miles_async.config.schema import ConfigError
from miles_async.config.schema import Router as RouterConfig
from miles_async.config.secrets import resolve
from miles_async.engines.kinds.table import addresses_of
from miles_async.http.address import url_of
from miles_async.http.heap import settle_memory
from miles_async.http.limits import answer_at_once
from miles_async.http.refusals import Refusals
from miles_async.http.server import HttpServer
from miles_async.monitor.diagnosis import MOVING
from miles_async.router.addresses import is_of_run
from miles_async.router.app import RouterApp
from miles_async.router.engine import RoutedEngine
from miles_async.router.observe.health import HealthChecker
from miles_async.router.observe.looks import EngineLooks
from miles_async.router.observe.pace import Paces
from miles_async.router.observe.quiet import QuietEngines
from miles_async.router.observe.suspects import Suspects, Verdict
from miles_async.router.policies.choice import make_policy
from miles_async.weights.place import weight_roots

REPORT_INTERVAL_S = 1.0
LEDGER_INTERVAL_MS = 250  # how soon the router notices that an engine is paused and prefers another one
BACKLOG = 4096
QUIET_LOOK_S = 1.0


class Router:
    """The actor. The web application it serves is ``miles_async.router.app``."""

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
            admin_key=resolve("router.admin_key", config.router.admin_key),
            allowed_engines=config.router.allowed_engines,
            weight_roots=weight_roots(config, ctx.run_dir, ctx.model_path),
            engine_key=resolve("engine.api_key", config.engine.api_key),
            max_body_bytes=config.router.max_body_mb << 20,
            max_concurrency=config.router.max_concurrency,
            breaker_failures=config.router.breaker_failures,
            breaker_open_s=config.router.breaker_open_s,
            refusals=ctx.refusals,
        )
        self._addresses = addresses_of(config.engine)
        self.ledger = VersionLedger(ctx.bus)
        self._joined: dict[str, EngineState] = {}  # as the ledger had them when they joined
        self._updating: set[str] = set()
        self._deaths: asyncio.Queue[tuple[str, str, int, int]] = asyncio.Queue()  # who, why, in which life
        self._verdicts: asyncio.Queue[Verdict] = asyncio.Queue()

    async def run(self) -> None:
        ctx, config = self.ctx, self.ctx.config.router
        self.app.keys.own = await run_key(ctx.bus)
        settle_memory()
        listener = bind(msgspec.structs.replace(config, host=ctx.spec.site.listens(config.host)))
        bound, port = listener.getsockname()[:2]
        host = ctx.spec.site.announced(bound)
        self._url = url_of(host, port)
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
            self._publish_deaths(),
            self._name_the_quiet(),
            health.run(ctx.stop),
            EngineLooks(self.app, self.app.loads, suspects, self._found).run(ctx.stop),
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
            for name in list(self.app.engines):
                self.app.remove(name)
            listener.close()

    async def _follow(self) -> None:
        """Have the engines as the ledger of versions has them: at each news, and often enough to see who is paused."""
        async for lines in follow_lines(self.ctx, LEDGER_INTERVAL_MS):
            self._settle(lines)
            await self._drain(lines)

    def _settle(self, lines: Mapping[str, EngineState]) -> None:
        """Who joins, leaves, or is updated at the moment. An engine that somebody added by hand is not the ledger's."""
        for name in [name for name in self._joined if name not in lines or not serves(lines[name])]:
            self.ctx.log.info("engine %s leaves", name)
            del self._joined[name]
            self.app.remove(name)
        for name, line in lines.items():
            if serves(line) and _what_counts(line) != self._joined.get(name):
                self._join(name, line)
        updating = {name for name in self._joined if lines[name].state == "updating"}
        for name in updating ^ self._updating:
            self.app.set_updating(name, name in updating)
        self._updating.clear()
        self._updating.update(updating)

    def _join(self, name: str, line: EngineState) -> None:
        if name in self.ctx.roster.leaving:
            return
        try:
            if not is_of_run(line.url, self._addresses, self.ctx.spec.site.is_ours):
                raise ValueError(f"{line.url} is no place for an engine of this run")
            self.app.add(name, line.url, line.version, line.incarnation)
        except ValueError as error:
            self.ctx.bus.refuse("engines", name, error)
        self._joined[name] = _what_counts(line)
        self._updating.discard(name)

    async def _drain(self, lines: Mapping[str, EngineState]) -> None:
        """Engines that leave get nothing new; of those that have nothing left the broadcaster hears that they are down."""
        for name in self.ctx.roster.leaving:
            engine, line = self.app.engines.get(name), lines.get(name)
            if engine is not None and not engine.draining:
                self.app.drain(name)
            elif engine is None and line is not None and serves(line):
                await report_gone(self.ledger, name, line, "it leaves, and has answered all it had")

    async def _report(self) -> None:
        """Each second, and at the end: how much of it every engine had work, what it makes of it, and what is in flight."""
        seen, paces = dict[RoutedEngine, tuple[float, int]](), Paces()
        before = self.app.clock()
        while not self.ctx.stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self.ctx.stop.wait()
            now = self.app.clock()
            elapsed = max(now - before, 1e-6)
            engines = list(self.app.engines.values())
            values: dict[str, float] = {"router/failovers": self.app.failovers}
            for engine in engines:
                busy, answered = engine.busy_seconds(now), engine.answered
                old_busy, old_answered = seen.get(engine, (0.0, 0))
                values[f"engine_busy/{engine.name}"] = (busy - old_busy) / elapsed
                values[f"engine_requests_per_s/{engine.name}"] = (answered - old_answered) / elapsed
                seen[engine] = (busy, answered)
            for engine, pace in paces.look(engines, self.app.loads).items():
                if pace.running is not None:
                    values[f"engine_running/{engine.name}"] = pace.running
                if pace.tokens_per_s is not None:
                    values[f"engine_tokens_per_s/{engine.name}"] = pace.tokens_per_s
            values["router/inflight"] = sum(engine.inflight for engine in engines)
            values["router/engines_up"] = sum(not engine.trouble for engine in engines)
            await self.ctx.bus.set_address("router", self._url)  # again: something else may have been written there
            values["router/refused"] = self.app.refusals.total()
            values[MOVING] = sum(engine.moved_at > before for engine in engines)
            seen = {engine: seen[engine] for engine in engines}
            before = now
            await self.ctx.metrics(max((engine.version for engine in engines), default=0), values)

    async def _name_the_quiet(self) -> None:
        """The heartbeat says that this router waits for the engines that give nothing for what they have in flight, or
        for one that is up."""
        quiet = QuietEngines(self.app, self.app.loads)
        down_since: float | None = None
        with contextlib.ExitStack() as said:
            while not self.ctx.stop.is_set():
                found = [
                    wait_for(WaitKind.TOKEN, [engine.name], since=time.time() - seconds, requests=engine.inflight)
                    for engine, seconds in await quiet.look()
                ]
                engines = list(self.app.engines.values())
                if all(engine.trouble for engine in engines):
                    down_since = down_since or time.time()
                    troubles = "; ".join(f"{engine.name}: {engine.trouble}" for engine in engines) or "none has joined"
                    names = [engine.name for engine in engines]
                    found.append(wait_for(WaitKind.ENGINE_UP, names, since=down_since, troubles=troubles))
                else:
                    down_since = None
                said.close()  # only now: a heartbeat sent during the look still says what was found before
                for wait in found:
                    said.enter_context(self.ctx.saying(wait))
                await asyncio.sleep(QUIET_LOOK_S)

    def _report_death(self, engine: RoutedEngine, why: str) -> None:
        epoch = self._joined[engine.name].epoch if engine.name in self._joined else 0
        self._deaths.put_nowait((engine.name, why, engine.incarnation, epoch))

    def _found(self, engine: RoutedEngine, verdict: Verdict) -> None:
        """An engine was taken out, or let back."""
        self._verdicts.put_nowait(verdict)
        if verdict.kind == "lying":  # then nobody knows what it serves: the broadcaster sends it all weights again
            self.app.mark_dead(engine, verdict.why)

    async def _record_verdicts(self) -> None:
        while not self.ctx.stop.is_set():
            engine, kind, why = await self._verdicts.get()
            await self.ctx.event("engine_suspected" if kind else "engine_trusted", engine=engine, what=kind, why=why)

    async def _publish_deaths(self) -> None:
        while not self.ctx.stop.is_set():
            name, why, incarnation, epoch = await self._deaths.get()
            self.ctx.log.warning("engine %s is given up: %s", name, why)
            await self.ledger.down(name, why, incarnation, epoch)


def _what_counts(line: EngineState) -> EngineState:
    """Of a line, for who sends requests: not whether it is being updated."""
    return msgspec.structs.replace(line, state="serving")


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
