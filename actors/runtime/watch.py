"""What the supervisor sees of a run over the bus: it feeds the monitor and notices trouble.

Promises: every metric and event reaches the monitor once; a run in which nothing moves for ``watchdog_s`` says so by itself,
with who waits for whom; a run whose groups are all dropped fails with the reason of the drops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from actors.runtime.tasks import end
from bus import Bus, Ledger
from bus.messages import Event, Heartbeat, Metrics, Transition
from miles_async.config import RunConfig
from miles_async.monitor.monitor import Monitor

LOOK_S = 1.0  # how often heartbeats and the ledger are looked at
BATCHES_OF_DROPS = 4  # so many batches dropped in a row, and nothing published: give up


class Watch:
    """Follows one run until :meth:`close`."""

    def __init__(
        self, bus: Bus, ledger: Ledger, monitor: Monitor, config: RunConfig, running: Callable[[], list[str]]
    ) -> None:
        """``running``: names of the actors whose processes run."""
        self.bus, self.ledger, self.monitor, self.config, self.running = bus, ledger, monitor, config, running
        self._metrics_cursor = "0"
        self._dead_cursor = ""  # those of earlier launches were told then
        self._events_cursor = monitor.written_entry  # what an earlier launch has on disk is not read again
        self._deaths: dict[str, tuple[str, bool]] = {}
        self._trimmed = self._last_drop = ""
        self._trouble: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._progress: tuple[Any, ...] = ()
        self._progress_at = time.monotonic()
        self._stall_told = False
        self._kept, self._dropped_then = -1, 0
        self._tasks = [asyncio.create_task(self._pump()), asyncio.create_task(self._look())]

    async def trouble(self) -> str:
        """Wait for a reason to end the run."""
        return await asyncio.shield(self._trouble)

    async def cause_of_death(self, name: str, code: int) -> tuple[str, bool]:
        """Why ``name`` ended with ``code`` (what it said itself, or the signal), and whether a restart is pointless."""
        await self._read_events(block_ms=0)
        how = (
            f"killed by signal {-code}" if code < 0 else f"exit code {code}" if code else "it ended before the run did"
        )
        cause, fatal = self._deaths.pop(name, (how, False))
        return f"{name}: {cause}", fatal

    def tell(self, kind: str, **data: Any) -> None:
        """An event of the supervisor's own."""
        self.monitor.on_event(Event(actor="supervisor", kind=kind, time=time.time(), data=data))

    async def close(self) -> None:
        """Take in what is still on the bus, then stop."""
        await end(self._tasks)
        while await self._read_metrics(block_ms=0) or await self._read_events(block_ms=0):
            pass
        await self._look_once()

    async def _pump(self) -> None:
        async def forever(read: Any) -> None:
            while True:
                await read(block_ms=500)

        await asyncio.gather(forever(self._read_metrics), forever(self._read_events), forever(self._read_dead))

    async def _read_metrics(self, block_ms: int) -> int:
        messages, cursor = await self.bus.read("metrics", Metrics, self._metrics_cursor, block_ms=block_ms)
        for message in messages:
            self.monitor.on_metrics(message)
        if cursor != self._metrics_cursor:
            self._metrics_cursor = cursor
            await self.bus.trim("metrics", cursor)
        return len(messages)

    async def _read_events(self, block_ms: int) -> int:
        kinds = (Event, Transition)
        entries, cursor = await self.bus.read_entries("events", kinds, self._events_cursor, block_ms=block_ms)
        for entry in entries:
            self._note(entry.message)
            if isinstance(entry.message, Event):
                self.monitor.on_event(entry.message, entry.id)
            else:
                self.monitor.on_transition(entry.message, entry.id)
        self._events_cursor = cursor
        # only what is on disk: a kill of this process loses no transition
        if (written := self.monitor.written_entry) not in ("0", self._trimmed):
            await self.bus.trim("events", written)
            self._trimmed = written
        return len(entries)

    async def _read_dead(self, block_ms: int) -> int:
        self._dead_cursor = self._dead_cursor or await self.bus.last_id("dead")
        letters, self._dead_cursor = await self.ledger.dead_letters(self._dead_cursor, block_ms=block_ms)
        for letter, ticket in letters:
            prompt = ticket.prompt if ticket is not None else ""
            self.tell("dead_letter", group=letter.group_id, reason=letter.reason, causes=letter.causes, prompt=prompt)
        return len(letters)

    def _note(self, message: Event | Transition) -> None:
        if isinstance(message, Event):
            if message.kind == "died":
                self._deaths[message.actor] = (str(message.data.get("cause", "")), bool(message.data.get("fatal")))
        elif message.kind == "dropped":
            self._last_drop = f"{message.reason}: {message.detail}"

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look_once()

    async def _look_once(self) -> None:
        heartbeats = [beat for beat in await self.bus.heartbeats() if beat.actor in self.running()]
        counts, engines = await self.ledger.counts(), await self.bus.engines()
        self.monitor.on_engines({name: engine.version for name, engine in engines.items()})
        self.monitor.on_heartbeats(heartbeats)
        self.monitor.on_ledger(counts)
        self._check_drops(counts)
        self._check_progress(heartbeats, counts)

    def _check_drops(self, counts: dict[str, int]) -> None:
        kept = counts["ready"] + counts["batched"] + counts["trained"]
        if kept != self._kept:
            self._kept, self._dropped_then = kept, counts["dropped"]
        lost = counts["dropped"] - self._dropped_then
        if lost >= BATCHES_OF_DROPS * self.config.rollout.rollout_batch_size and not self._trouble.done():
            self._trouble.set_result(f"the last {lost} groups were all dropped; the last one: {self._last_drop}")

    def _check_progress(self, heartbeats: list[Heartbeat], counts: dict[str, int]) -> None:
        progress = (*sorted(counts.items()), self._metrics_cursor)
        now = time.monotonic()
        if progress != self._progress:
            self._progress, self._progress_at, self._stall_told = progress, now, False
        elif now - self._progress_at > self.config.run.watchdog_s and not self._stall_told:
            self._stall_told = True
            data = {"seconds": round(now - self._progress_at), "waits": who_waits(heartbeats, time.time())}
            self.tell("stalled", **data)


def who_waits(heartbeats: list[Heartbeat], now: float) -> dict[str, str]:
    """Actor -> whom it waits for and since when, or that it is silent."""
    waits = {}
    for beat in sorted(heartbeats, key=lambda beat: beat.actor):
        if now - beat.time > 10:
            waits[beat.actor] = f"silent for {now - beat.time:.0f} s"
        elif beat.waits_for:
            waits[beat.actor] = f"waits for {beat.waits_for} for {now - beat.waits_since:.0f} s"
    return waits
