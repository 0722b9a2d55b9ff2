"""The actors of a large run as far as Redis sees them: real contexts, ledger, publisher and version ledger, and nothing behind.

Promises: each logical actor has its own bus with its own connections, beats and obeys as a real one does, and makes the calls
that a real one of its role makes, in the same order and as often; it generates by sleeping, and every group has the same bytes.
Many of them share a process. They stop when the bus says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from actors.dealer import MAX_TICKETS_AT_ONCE
from actors.rollout import LOOK_AT_THE_SILENT, TICKETS_AT_ONCE
from actors.routed_lines import follow_lines
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from actors.runtime.tasks import end
from bus import Ledger, Roster, VersionLedger, connect
from bus.codec import decode
from bus.ledger_batches import Batches
from bus.ledger_leases import ClaimedTicket, Publication
from bus.messages import Event, Group, Metrics, ReadyGroup, Ticket, Transition
from bus.publisher import Publisher
from miles_async.config.schema import Data, Engine, Model, Rollout, RunConfig

BEGIN = "begin"  # the key that says when the first phase begins, in seconds since the epoch
LOOK_S = 0.05  # how often the dealer looks
ROLL_S = 5.0  # between two versions


@dataclass(frozen=True)
class Load:
    """What the fleet is and does."""

    url: str
    run_id: str
    workers: int
    engines: int
    in_flight: int  # groups of a worker
    generation_s: float
    batch: int  # groups of a step
    payload: bytes  # of every group
    phase_s: float
    rates: tuple[int, ...]  # groups dealt a second, phase by phase

    def config(self) -> RunConfig:
        return RunConfig(
            model=Model(hf_checkpoint="none"),
            data=Data(prompt_data="none"),
            engine=Engine(num_engines=self.engines),
            rollout=Rollout(num_workers=self.workers),
        )


@dataclass
class Told:
    """What the actors of a process measured: (when, seconds it took)."""

    publications: list[tuple[float, float]] = field(default_factory=list)
    rolls: list[tuple[float, float]] = field(default_factory=list)


Work = Callable[[ActorContext, Load, Told], Awaitable[None]]


async def act(names: list[tuple[str, int]], load: Load) -> Told:
    """Be the actors ``names`` (role, index) until the bus says stop."""
    told, config = Told(), load.config()
    async with asyncio.TaskGroup() as tasks:
        for role, index in names:
            tasks.create_task(_live(role, index, config, load, told))
            await asyncio.sleep(0.001)  # they do not come in one instant
    return told


async def _live(role: str, index: int, config: RunConfig, load: Load, told: Told) -> None:
    bus = await connect(load.url, load.run_id, deadline_s=60.0)
    name = f"{role}-{index}" if role in ("rollout", "engine") else role
    ctx = ActorContext(ActorSpec(name, role, index, "", config, Path(), "", load.url, load.run_id, 1), bus)
    helpers = [asyncio.create_task(ctx.beat()), asyncio.create_task(ctx.obey())]
    try:
        await WORK[role](ctx, load, told)
    finally:
        ctx.stop.set()
        await end(helpers)
        await bus.close()


async def _roll_out(ctx: ActorContext, load: Load, told: Told) -> None:
    ledger, lease, lease_s = Ledger(ctx.bus), f"{ctx.name}/1", ctx.config.rollout.lease_s
    publisher, held, freed = Publisher(ledger, lease), dict[str, ClaimedTicket](), asyncio.Event()
    prototype, looked = decode(load.payload, Group), 0.0
    await ledger.own_tickets(ctx.name, lease)

    async def make(claimed: ClaimedTicket) -> None:
        await asyncio.sleep(load.generation_s)
        group = msgspec.structs.replace(prototype, group_id=claimed.ticket.group_id)
        began = time.perf_counter()
        await publisher.publish(Publication(group, time.time(), load.payload))
        told.publications.append((time.time(), time.perf_counter() - began))
        held.pop(claimed.ticket.group_id)
        freed.set()

    async def renew() -> None:
        while True:
            await asyncio.sleep(lease_s / 4)
            await ledger.renew(ctx.name, [claimed.entry_id for claimed in held.values()])
            await ledger.held(list(held), lease)

    duties, making = [asyncio.create_task(renew())], set[asyncio.Task[None]]()
    while not ctx.stop.is_set():
        freed.clear()
        if (free := load.in_flight - len(held)) <= 0:
            await freed.wait()
            continue
        silent_ms = None
        if time.monotonic() >= looked + lease_s * LOOK_AT_THE_SILENT:
            silent_ms, looked = int(lease_s * 1000), time.monotonic()
        for claimed in await ledger.next_tickets(ctx.name, lease, min(free, TICKETS_AT_ONCE), silent_ms):
            held[claimed.ticket.group_id] = claimed
            making.add(task := asyncio.create_task(make(claimed)))
            task.add_done_callback(making.discard)
    await end([*duties, *making])
    publisher.close()


async def _serve(ctx: ActorContext, load: Load, told: Told) -> None:
    await VersionLedger(ctx.bus).up(ctx.name, f"http://127.0.0.1:{1 + ctx.index}", 1, 0)
    await ctx.stop.wait()


async def _deal(ctx: ActorContext, load: Load, told: Told) -> None:
    ledger, begin = Ledger(ctx.bus), None
    while begin is None and not ctx.stop.is_set():
        begin = await ctx.bus.redis.get(ctx.bus.key(BEGIN))
        await asyncio.sleep(LOOK_S)
    while not ctx.stop.is_set():
        await ctx.engine_states()
        position = (await ledger.room()).next_position
        due = _due(load, time.time() - float(begin or 0))
        for start in range(position, due, MAX_TICKETS_AT_ONCE):
            upto = min(start + MAX_TICKETS_AT_ONCE, due)
            await ctx.bus.memory()
            tickets = [Ticket(group_id=f"0-{p}-0", prompt_tokens=b"", sampling_seed=p) for p in range(start, upto)]
            admitted, _ = await ledger.admit(tickets, limit=load.workers * load.in_flight, position=start)
            if admitted < len(tickets):
                break  # the fleet has as much as it can hold
        await asyncio.sleep(LOOK_S)


def _due(load: Load, elapsed_s: float) -> int:
    """How many groups are to be dealt so long after the first phase began."""
    passed = [min(max(elapsed_s - number * load.phase_s, 0.0), load.phase_s) for number in range(len(load.rates))]
    return int(sum(rate * seconds for rate, seconds in zip(load.rates, passed, strict=True)))


async def _learn(ctx: ActorContext, load: Load, told: Told) -> None:
    ledger: Batches = Ledger(ctx.bus)
    cursor, step, ready = "0", 0, list[ReadyGroup]()
    while not ctx.stop.is_set():
        more, cursor = await ledger.ready_groups(cursor)
        ready += more
        while len(ready) >= load.batch and not ctx.stop.is_set():
            step += 1
            record = await ledger.batch(step, ready[: load.batch])
            ready = ready[load.batch :]
            await ledger.payloads(record.payload_keys)
            await ledger.commit(step, forget=step - 1)


async def _broadcast(ctx: ActorContext, load: Load, told: Told) -> None:
    """A version after the other goes over all engines, half of them at a time."""
    ledger, version = VersionLedger(ctx.bus), 0
    await ctx.bus.set_roster(Roster(frozenset(f"engine-{i}" for i in range(load.engines))))
    while not ctx.stop.is_set():
        lines, version, began = await ctx.engine_states(), version + 1, time.perf_counter()
        names = sorted(lines)
        for wave in (names[::2], names[1::2]):
            for state in ("updating", "serving"):
                moved = await asyncio.gather(*(ledger.move(name, lines[name], state, version) for name in wave))
                lines.update({name: line for name, line in zip(wave, moved, strict=True) if line is not None})
        told.rolls.append((time.time(), time.perf_counter() - began))
        await asyncio.wait({stopped := asyncio.create_task(ctx.stop.wait())}, timeout=ROLL_S)
        stopped.cancel()


async def _route(ctx: ActorContext, load: Load, told: Told) -> None:
    async for _ in follow_lines(ctx, 1000):
        await asyncio.sleep(0)


async def _monitor(ctx: ActorContext, load: Load, told: Told) -> None:
    """What the supervisor's watch reads: transitions, metrics, heartbeats, counts; what it has read is trimmed."""
    ledger, looked = Ledger(ctx.bus), 0.0
    events = metrics = "0"
    while not ctx.stop.is_set():
        _, events = await ctx.bus.read("events", (Event, Transition), events, block_ms=500)
        _, metrics = await ctx.bus.read("metrics", Metrics, metrics)
        if time.monotonic() > looked + 1.0:
            looked = time.monotonic()
            await asyncio.gather(ctx.bus.heartbeats(), ledger.counts(), ctx.bus.engines())
            for topic, cursor in (("events", events), ("metrics", metrics)):
                if cursor != "0":
                    await ctx.bus.trim(topic, cursor)


WORK: dict[str, Work] = {
    "rollout": _roll_out,
    "engine": _serve,
    "dealer": _deal,
    "learner": _learn,
    "broadcaster": _broadcast,
    "router": _route,
    "monitor": _monitor,
}
