"""What the supervisor sees of a run over the bus: it feeds the monitor and notices trouble.

Promises: every metric and event reaches the monitor once; a run in which nothing moves for ``watchdog_s`` says so by itself,
with who waits for whom and the culprit, also when that is Redis; a silent actor is killed; a run whose groups are all
dropped fails with the reason of the drops; closing takes seconds, whatever Redis does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import redis.exceptions

from actors.runtime.placement.base import Ending, Placement
from actors.runtime.plan import actor_names, engine_names
from actors.runtime.spec import ActorSpec
from actors.runtime.tasks import end
from actors.runtime.watchdog import Watchdog
from bus import Bus, BusError, Ledger
from bus.client import Entry
from bus.deadline import within
from bus.lives import Lives
from bus.messages import Batch, Event, Metrics, Transition
from bus.server import RedisServer
from miles_async.config.schema import RunConfig
from miles_async.monitor.give_up import GiveUp
from miles_async.monitor.monitor import Monitor
from miles_async.monitor.record_lines import entry_order
from miles_async.monitor.sight import refusal

BUS_ERRORS = (redis.exceptions.RedisError, OSError, BusError)  # TimeoutError is an OSError
CLOSE_S = 3.0  # a bus that does not answer by then is not waited for at the end
REST_S = 30.0  # what reading the last messages may take
JUDGE_S = 0.25
BEHIND = 100_000  # messages that wait for the disk; more are not held in memory
LOOK_S = 1.0  # how often heartbeats and the ledger are looked at
BLOCK_MS = 500
# what comes within it is read at once: messages read one by one, as each is published, cost the supervisor more than all else
GATHER_S = 0.1
MANY = 256  # so many at once: there may be more, which are not waited for


class Watch:
    """Follows one run until :meth:`close`."""

    def __init__(
        self,
        bus: Bus,
        ledger: Ledger,
        lives: Lives,
        monitor: Monitor,
        config: RunConfig,
        placement: Placement,
        server: RedisServer,
    ) -> None:
        """``server``: of our own, where we have one."""
        self.bus, self.ledger, self.lives = bus, ledger, lives
        self.monitor, self.config, self.placement = monitor, config, placement
        self.dog = Watchdog(
            config,
            placement.running,
            placement.look,
            lambda: server.pid,
            redis_loads=lambda: self._redis_loads(server),
        )
        self._refused: dict[str, float] = {}
        self._actors, self._engines = set(actor_names(config)), set(engine_names(config))
        self.counts: dict[str, int] = {}  # of the ledger, as they were at the last look
        self._metrics_cursor = "0"
        self._batches_cursor = ""
        self._dead_cursor = ""  # those of earlier launches were told then
        self._events_cursor = monitor.written_entry  # what an earlier launch has on disk is not read again
        self._deaths: dict[str, tuple[str, bool]] = {}
        self._trimmed = ""
        self._trouble: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.give_up = GiveUp(config.rollout.rollout_batch_size, config.rollout.dynamic_sampling_filter is not None)
        duties = (self._pump(), self._look(), self._judge())
        self._tasks = [asyncio.create_task(duty) for duty in duties]

    def admit(self, spec: ActorSpec) -> None:
        """An actor that the configuration does not have: what is said by it, and of it, is true from now on."""
        self._actors.add(spec.name)
        if spec.role == "engine":
            self._engines.add(spec.name)

    def dismiss(self, name: str) -> None:
        """It has left the run: how it ended is of no interest."""
        self._deaths.pop(name, None)

    async def trouble(self) -> str:
        """Wait for a reason to end the run."""
        return await asyncio.shield(self._trouble)

    async def cause_of_death(self, name: str, ending: Ending) -> tuple[str, bool]:
        """Why ``name`` ended (what it said itself, or how it was), and whether a restart is pointless."""
        await self._read_events(block_ms=0)
        cause, fatal = self._deaths.pop(name, (ending.how, False))
        return f"{name}: {cause}", fatal

    def tell(self, kind: str, **data: Any) -> None:
        """An event of the supervisor's own."""
        self.monitor.on_event(Event(actor="supervisor", kind=kind, time=time.time(), data=data))

    def rest(self) -> None:
        """The training is over: that nothing moves is no stall any more."""
        self.dog.rest()

    def _redis_loads(self, server: RedisServer) -> bool:
        return server.loading is not None or self.bus.redis.loading is not None

    async def bus_answers(self) -> bool:
        """Whether Redis does, within ``CLOSE_S``; also when its disk is full, which refuses a PING."""
        try:
            await within(CLOSE_S, self.bus.redis.echo(""), "redis")
        except BUS_ERRORS:
            return False
        return True

    async def close(self, *, bus_answers: bool) -> None:
        """Stop; take in what is still on the bus, if that answers."""
        try:
            await within(CLOSE_S, end(self._tasks), "the watch")
            if bus_answers:
                await within(REST_S, self._read_the_rest(), "redis")
        except BUS_ERRORS:
            pass  # what was not read is on the bus for the next launch

    async def _read_the_rest(self) -> None:
        while await self._read_metrics(block_ms=0) or await self._read_events(block_ms=0):
            pass
        await self._look_once()

    async def _pump(self) -> None:
        async def forever(read: Callable[[int], Awaitable[int]]) -> None:
            while True:
                try:
                    if 0 < await read(BLOCK_MS) < MANY:
                        await asyncio.sleep(GATHER_S)
                except BUS_ERRORS:  # away for longer than the client is patient; the watchdog says so
                    await asyncio.sleep(LOOK_S)

        topics = (self._read_metrics, self._read_events, self._read_dead, self._check_batches)
        await asyncio.gather(*(forever(read) for read in topics))

    async def _read_metrics(self, block_ms: int) -> int:
        entries, cursor = await self.bus.read_entries("metrics", Metrics, self._metrics_cursor, block_ms=block_ms)
        for message in [entry.message for entry in entries if self._is_ours("metrics", entry)]:
            self.dog.metrics(message)
            self.monitor.on_metrics(message)
        if cursor != self._metrics_cursor:
            self._metrics_cursor = cursor
            if not self.monitor.record_waits:
                await self.bus.trim("metrics", cursor)
        return len(entries)

    def _is_ours(self, topic: str, entry: Entry[Any]) -> bool:
        """Whether an actor of this run said it, in a form that the record takes."""
        message, why = entry.message, ""
        if not isinstance(message, Transition) and message.actor not in self._actors:
            why = f"no actor of this run is called {message.actor}"
        elif isinstance(message, Event):
            try:
                msgspec.json.encode(message.data)
            except (TypeError, ValueError, RecursionError) as error:
                why = f"its data is no JSON: {error}"
        if why:
            self.bus.refuse(topic, entry.id, ValueError(why))
        return not why

    async def _read_events(self, block_ms: int) -> int:
        if block_ms and self.monitor.behind > BEHIND:  # they are safe on the bus
            await asyncio.sleep(LOOK_S)
            return 0
        kinds = (Event, Transition)
        entries, cursor = await self.bus.read_entries("events", kinds, self._events_cursor, block_ms=block_ms)
        for entry in entries:
            # who asks for a cause of death reads beside the pump: what it took in meanwhile is not taken in again
            if entry_order(entry.id) <= entry_order(self._events_cursor) or not self._is_ours("events", entry):
                continue
            self._note(entry.message)
            if isinstance(entry.message, Event):
                self.monitor.on_event(entry.message, entry.id)
            else:
                self.monitor.on_transition(entry.message, entry.id)
        self._events_cursor = max(self._events_cursor, cursor, key=entry_order)
        # only what is on disk: a kill of this process loses no transition
        written = self.monitor.written_entry
        if written not in ("0", self._trimmed) and await self.bus.trim("events", written):
            self._trimmed = written
        return len(entries)

    async def _read_dead(self, block_ms: int) -> int:
        self._dead_cursor = self._dead_cursor or await self.bus.last_id("dead")
        letters, self._dead_cursor = await self.ledger.dead_letters(self._dead_cursor, block_ms=block_ms)
        for letter, ticket in letters:
            prompt = ticket.prompt if ticket is not None else ""
            self.tell("dead_letter", group=letter.group_id, reason=letter.reason, causes=letter.causes, prompt=prompt)
        return len(letters)

    async def _check_batches(self, block_ms: int) -> int:
        """Who is woken by this topic decodes nothing of it: junk is refused here."""
        self._batches_cursor = self._batches_cursor or await self.bus.last_id("batches")
        found, self._batches_cursor = await self.bus.read("batches", Batch, self._batches_cursor, block_ms=block_ms)
        return len(found)

    def _note(self, message: Event | Transition) -> None:
        if isinstance(message, Event):
            if message.kind == "died":
                self._deaths[message.actor] = (str(message.data.get("cause", "")), bool(message.data.get("fatal")))
        else:
            self.give_up.add(message)
            self._check_drops(self.give_up.verdict)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(*BUS_ERRORS):  # then Redis owes its answer still
                await self._look_once()

    async def _look_once(self) -> None:
        self.dog.asked()
        running = {actor.name for actor in self.placement.running()}
        heartbeats = [beat for beat in await self.bus.heartbeats(self._actors) if beat.actor in running]
        self.counts, engines = await self.ledger.counts(), await self.bus.engines(self._engines)
        await self.bus.check_addresses(self._actors)
        self.dog.heard(heartbeats, self.counts, await refusal(self.bus))
        self._report_refusals()
        self.monitor.on_engines({name: engine.version for name, engine in engines.items()})
        self.monitor.on_heartbeats(heartbeats)
        self.monitor.on_ledger(self.counts)
        self._check_drops(self.give_up.look(self.counts))
        await self.lives.keep()

    def _report_refusals(self) -> None:
        """What was on the supervisor's own topics and is none of its messages; actors report theirs."""
        refused = {f"refused/supervisor/{topic}": float(count) for topic, count in self.bus.refused.items()}
        if refused != self._refused:
            self._refused = refused
            self.monitor.on_metrics(Metrics(actor="supervisor", step=0, time=time.time(), values=refused))

    async def _judge(self) -> None:
        """Never waits for the bus: what hangs there is what it is for."""
        while True:
            await asyncio.sleep(JUDGE_S)
            for kind, data in self.dog.tick():
                self.tell(kind, **data)
            if self.dog.verdict and not self._trouble.done():
                self._trouble.set_result(self.dog.verdict)
            for actor, seconds in self.dog.overdue().items():
                self._deaths[actor.name] = (f"silent for {seconds:.0f} s", False)
                self.placement.terminate(actor, by_force=True)

    def _check_drops(self, verdict: str) -> None:
        if verdict and not self._trouble.done():
            self._trouble.set_result(verdict)
