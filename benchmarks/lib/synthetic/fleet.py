"""A fleet of synthetic engines behind one real router process, with a stand-in for the broadcaster.

Promises: the router is ``actors.router.Router``, in a process of its own, on a real bus; engines are updated in waves through
their own endpoints and announced as the broadcaster does it (only once they say that they serve the version; one that was
reported down is brought up to date first); one that dies comes back later, with a higher incarnation and the first weights.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil

from actors.runtime.tasks import end
from benchmarks.lib.synthetic.batch import Latency, Lengths
from benchmarks.lib.synthetic.router_process import Arguments
from benchmarks.lib.synthetic_engine import SyntheticEngine
from bus import Bus, EngineState, VersionLedger, connect
from bus.messages import EngineDown, Event
from miles_async.config.schema import Data, Engine, Model, Rollout, RunConfig
from miles_async.config.schema import Router as RouterConfig
from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.sglang import process_group
from miles_async.engines.sglang.command import bound_to

CALL_TIMEOUT_S = 30.0
REVIVE_S = 1.0
ROOT = Path(__file__).resolve().parents[3]
ROUTER_START_S = 60.0


class Member:
    """An engine and what has been announced of it. ``lock``: one thing is done to it at a time."""

    def __init__(self, engine: SyntheticEngine, client: EngineClient) -> None:
        self.engine, self.client = engine, client
        self.incarnation, self.epoch, self.version = 1, 0, 0
        self.down = False
        self.lock = asyncio.Lock()


class SyntheticFleet:
    """The engines, and who looks after them. ``version`` is the newest one."""

    def __init__(self, bus: Bus, router_url: str, router_pid: int, members: dict[str, Member], seed: int) -> None:
        self.bus, self.router_url, self.members = bus, router_url, members
        self.router = psutil.Process(router_pid)
        self.random = random.Random(seed)
        self.ledger = VersionLedger(bus)
        self.version = self.updates = 0
        self.deaths: list[tuple[str, float]] = []  # engine, loop time
        self.forms = [("retract", True), ("in_place", False)]  # pause modes, and whether the cache is flushed

    async def announce(self, member: Member) -> None:
        """Raises EngineError: the engine does not say that it serves what it was given."""
        name, url = member.engine.name, member.engine.url
        said = (await member.client.model_info(CALL_TIMEOUT_S)).get("weight_version")
        if said != str(member.version):
            raise EngineError(name, "/model_info", f"serves {said!r} after an update to {member.version}")
        line = EngineState(url, member.incarnation, member.version, "down", member.epoch)
        if await self.ledger.move(name, line, "serving", member.version) is None:
            raise EngineError(name, "/model_info", "it is down by now, or was started again")

    async def begin_update(self, member: Member) -> None:
        """In the life that it is in, or in a new one if that is over."""
        name = member.engine.name
        line = EngineState(member.engine.url, member.incarnation, member.version, "down", member.epoch)
        if await self.ledger.move(name, line, "updating", member.version) is None:
            back = await self.ledger.back(name, line)
            member.epoch = member.epoch if back is None else back.epoch

    async def report_down(self, member: Member, why: str) -> None:
        member.down = True
        await self.ledger.down(member.engine.name, why, member.incarnation)

    async def give_weights(self, member: Member, version: int) -> None:
        """Bring an engine to ``version`` as a broadcast does, and announce it. One that fails is reported down."""
        async with member.lock:
            client = member.client
            mode, flush = self.random.choice(self.forms)
            try:
                await self.begin_update(member)
                await client.pause(mode, CALL_TIMEOUT_S)
                try:
                    await self._broadcast(client, version, flush)
                finally:
                    await client.resume(CALL_TIMEOUT_S)
                member.version, member.down = version, False
                await self.announce(member)
            except EngineError as error:
                await self.report_down(member, str(error)[:200])

    async def _broadcast(self, client: EngineClient, version: int, flush: bool) -> None:
        group: dict[str, Any] = {"address": "127.0.0.1", "port": 1, "rank_offset": 1, "world_size": 2, "group": "g"}
        await client.init_group(**group, backend="gloo", timeout=CALL_TIMEOUT_S)
        await client.begin_update(CALL_TIMEOUT_S)
        try:
            await client.update_from_distributed(
                names=["w"],
                dtypes=["float32"],
                shapes=[[1]],
                group="g",
                flush_cache=flush,
                version=str(version),
                timeout=CALL_TIMEOUT_S,
            )
        finally:
            await client.end_update(CALL_TIMEOUT_S)

    async def given_up(self) -> list[tuple[str, float]]:
        """Which engines died, were reported down or suspected, and when (loop time): what they had was given to others."""
        found, offset, cursor = list(self.deaths), asyncio.get_running_loop().time() - time.time(), "0"
        while True:
            entries, cursor = await self.bus.read_entries("weights", EngineDown, cursor, block_ms=1)
            if not entries:
                break
            found += [(entry.message.engine, int(entry.id.partition("-")[0]) / 1000 + offset) for entry in entries]
        events, _ = await self.bus.read("events", Event, "0", block_ms=1)
        return found + [(e.data["engine"], e.time + offset) for e in events if e.kind == "engine_suspected"]

    # duties, until cancelled

    async def update_often(self, every_s: float, waves: int) -> None:
        """A new version each ``every_s`` seconds, to a share of the engines at a time."""
        while True:
            await asyncio.sleep(every_s)
            self.version += 1
            members = sorted(self.members.values(), key=lambda m: m.engine.name)
            for wave in (members[i::waves] for i in range(waves)):
                due = [m for m in wave if m.engine.alive and not m.down]
                await asyncio.gather(*(self.give_weights(m, self.version) for m in due))
            self.updates += 1

    async def kill_often(self, every_s: float, away_s: float) -> None:
        """An engine dies each ``every_s`` seconds on average, and is back after up to ``away_s``."""
        returning: set[asyncio.Task[None]] = set()
        while True:
            await asyncio.sleep(self.random.expovariate(1 / every_s))
            alive = [m for m in self.members.values() if m.engine.alive and not m.down]
            if len(alive) > len(self.members) // 2:
                member = self.random.choice(alive)
                member.engine.die()
                self.deaths.append((member.engine.name, asyncio.get_running_loop().time()))
                returning.add(task := asyncio.create_task(self._return(member, self.random.uniform(0.2, 1) * away_s)))
                task.add_done_callback(returning.discard)

    async def _return(self, member: Member, after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with member.lock:
            member.incarnation, member.epoch = member.incarnation + 1, 0
            await member.engine.start()
        await self.give_weights(member, self.version)

    async def bring_back(self) -> None:
        """Engines that somebody reported down and that live are given their weights again, as the broadcaster does it."""
        cursor = "0"
        while True:
            messages, cursor = await self.bus.read("weights", EngineDown, cursor, block_ms=int(REVIVE_S * 1000))
            for down in messages:
                member = self.members[down.engine]
                member.down = member.down or down.incarnation == member.incarnation
            due = [m for m in self.members.values() if m.down and m.engine.alive and not m.lock.locked()]
            await asyncio.gather(*(self.give_weights(m, self.version) for m in due), asyncio.sleep(REVIVE_S))


@asynccontextmanager
async def _router(bus_url: str, run_id: str, config: RunConfig) -> AsyncIterator[int]:
    """Its process id. It ends with this process, whatever happens to that."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = msgspec.json.encode(Arguments(bus_url, run_id, directory, config)).decode()
        words = [sys.executable, "-m", "benchmarks.lib.synthetic.router_process", arguments]
        process = await asyncio.create_subprocess_exec(
            *bound_to(os.getpid(), words), cwd=ROOT, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield process.pid
        finally:
            await process_group.end(process.pid, 2, CALL_TIMEOUT_S)
            await process.wait()


@asynccontextmanager
async def synthetic_fleet(
    redis_url: str, count: int, *, seed: int, latency: Latency, lengths: Lengths, router: RouterConfig, update_s: float
) -> AsyncIterator[SyntheticFleet]:
    """``count`` engines in this process and a router in another one, all engines announced with version 0."""
    run_id = f"fleet-{seed}-{count}"
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        engine=Engine(num_engines=count),
        rollout=Rollout(request_timeout_s=600.0),
        router=router,
    )
    bus = await connect(redis_url, run_id)
    members: dict[str, Member] = {}
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            _router(redis_url, run_id, config) as router_pid,
        ):
            for index in range(count):
                engine = SyntheticEngine(f"engine-{index}", latency=latency, lengths=lengths, update_s=update_s)
                await engine.start()
                members[engine.name] = Member(engine, EngineClient(engine.url, session, name=engine.name))
            url = await bus.address("router", deadline_s=ROUTER_START_S)
            fleet = SyntheticFleet(bus, url, router_pid, members, seed)
            for member in members.values():
                await fleet.announce(member)
            yield fleet
    finally:
        for member in members.values():
            if member.engine.alive:
                member.engine.die()
        await bus.close()


@asynccontextmanager
async def duties(*coroutines: Awaitable[None]) -> AsyncIterator[None]:
    """They run while inside. Raises what one of them raises."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        await end(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()
