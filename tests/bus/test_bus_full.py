"""Redis without room: admission waits, what was begun goes on, nothing is lost, and room lets everything go on."""

from __future__ import annotations

import asyncio
import os
import resource
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
from actor_contexts import context
from ledger_steps import deal, group, make_ready, ticket

from bus import Bus, Ledger, balanced, connect
from bus.messages import Event, Heartbeat, Metrics
from bus.server import RedisServer, find_redis


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """A Redis of its own that survives SIGXFSZ, so that a limit on its files is a full disk to it."""
    program = tmp_path / "redis"
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {find_redis()} \"$@\"\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    server = RedisServer(tmp_path / "data", program=str(program))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def bus(server: RedisServer) -> AsyncIterator[Bus]:
    bus = await connect(server.url, "full")
    yield bus
    await bus.close()


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    async with asyncio.timeout(20):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # Redis tells nobody
    assert await holds(), what


async def blocked(bus: Bus, operation: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """``operation`` as a task that waits for room."""
    before = len(bus.redis.troubles)
    task = asyncio.create_task(operation)

    async def waits() -> bool:
        return len(bus.redis.troubles) > before

    await until(waits, "it waits for room")
    assert not task.done()
    return task


async def test_a_full_memory_stops_admission_and_lets_go_on_whatever_frees_memory(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 6)
    ready = await make_ready(ledger, 2)
    in_flight = await ledger.next_tickets("w", "w/1", 3, 60_000)
    used, limit = await bus.memory()
    assert used > 0 and limit == 0
    await bus.redis.config_set("maxmemory", 1)
    assert (await bus.memory())[1] == 1

    admission = await blocked(bus, ledger.admit([ticket(6)], limit=100, position=6))
    publication = await blocked(bus, ledger.publish(group(in_flight[0].ticket.group_id), "w/1", 0.0))
    # all of these are small, or free memory in the end
    await bus.publish("events", Event(actor="a", kind="b", time=0.0))
    await bus.publish("metrics", Metrics(actor="a", step=0, time=0.0, values={}))
    await bus.beat(Heartbeat(actor="a", role="a", incarnation=1, time=0.0))
    await ledger.batch(1, ready)
    assert await ledger.commit(1) == 2
    assert await ledger.fail(in_flight[1].ticket.group_id, "w/1", "reward_error") == "again"
    assert await ledger.drop(in_flight[2].ticket.group_id, "stale")
    assert len(await ledger.next_tickets("v", "v/1", 2, 60_000)) == 2
    assert await ledger.release("v/1") == 2
    assert not admission.done() and not publication.done()
    assert balanced(await ledger.counts())

    await bus.redis.config_set("maxmemory", 0)
    assert await admission == (1, 7)
    assert await publication
    counts = await ledger.counts()
    assert balanced(counts)
    assert (counts["dealt"], counts["trained"], counts["ready"], counts["dropped"]) == (7, 2, 1, 1)
    assert not bus.redis.troubles


async def test_the_heartbeat_of_an_actor_whose_command_finds_no_room_says_so(bus: Bus) -> None:
    ledger, dealer = Ledger(bus), context(bus, "dealer")
    await deal(ledger, 1)
    await bus.redis.config_set("maxmemory", 1)
    began = time.time()
    admission = await blocked(bus, ledger.admit([ticket(1)], limit=100, position=1))
    (wait,) = dealer.heartbeat().waits
    assert wait.sentence == "room in Redis" and began <= wait.since <= time.time()
    await bus.redis.config_set("maxmemory", 0)
    await admission
    assert dealer.heartbeat().waits == ()


async def test_a_full_disk_makes_everybody_wait_and_loses_nothing(bus: Bus, server: RedisServer) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 2)
    (claimed,) = await ledger.next_tickets("w", "w/1", 1, 60_000)
    assert server.pid is not None
    process = psutil.Process(server.pid)
    log = max((server.directory).rglob("*.aof"), key=os.path.getsize)
    unlimited = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, unlimited[1]))
    await bus.redis.set("the first", "that does not reach the disk")

    async def refuses() -> bool:
        return (await bus.redis.info("persistence"))["aof_last_write_status"] == "err"

    await until(refuses, "Redis sees that its disk is full")
    waiting = [
        await blocked(bus, ledger.admit([ticket(2)], limit=100, position=2)),
        await blocked(bus, ledger.publish(group(claimed.ticket.group_id), "w/1", 0.0)),
    ]
    other = await connect(server.url, "full", deadline_s=5.0)  # who only looks is answered
    assert (await Ledger(other).counts())["dealt"] == 2
    await other.close()
    assert not await bus.trim("events", "1-0")  # which waits for nothing
    assert all("MISCONF" in refusal or "AOF" in refusal for refusal, _ in bus.redis.troubles.values())
    process.rlimit(resource.RLIMIT_FSIZE, unlimited)
    assert await waiting[0] == (1, 3) and await waiting[1]

    # and it is all on the disk
    await bus.redis.execute_command("BGREWRITEAOF")
    process.kill()
    server.wait()
    server.start()
    counts = await ledger.counts()
    assert balanced(counts)
    assert (counts["dealt"], counts["waiting"], counts["ready"]) == (3, 2, 1)


async def test_a_bus_that_stays_full_is_an_error_that_says_what_it_has_no_room_for(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bus import patience

    monkeypatch.setattr(patience, "FULL_TIMEOUT_S", 0.3)
    ledger = Ledger(bus)
    await deal(ledger, 1)
    await bus.redis.config_set("maxmemory", 1)
    with pytest.raises(patience.BusFullError, match=r"waited 0 s for room in Redis.*maxmemory"):
        await ledger.admit([ticket(1)], limit=100, position=1)
    assert (await ledger.counts())["dealt"] == 1
