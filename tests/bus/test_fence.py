"""The fence on a real Redis: whoever has been replaced changes nothing on the bus any more."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ledger_steps import deal, group, make_ready, ticket

from bus import Bus, EngineState, Ledger, Roster, SnapshotLedger, VersionLedger, connect
from bus.fence import LIVES, BusAway, Life, Lookout, ReplacedError
from bus.lives import Lives, begin_life
from bus.messages import Batch, Event, Heartbeat, Metrics, Snapshot
from bus.quarantine import Quarantine
from bus.whereabouts import tell_memory

LINE = EngineState("http://127.0.0.1:1", 3, 0, "starting", 1)
Act = Callable[[Bus], Awaitable[Any]]

# what an actor, or a supervisor, does to the bus. Group 0-0-0 is in the batch of step 1, 0-1-0 is ready, 0-2-0 in
# flight under w/1, and 0-3-0 waits.
CHANGES: dict[str, Act] = {
    "admit": lambda bus: Ledger(bus).admit([ticket(4)], limit=10, position=4),
    "claim": lambda bus: Ledger(bus).next_tickets("w", "w/1", 1, None),
    "claim what was delivered before": lambda bus: Ledger(bus).own_tickets("w", "w/1"),
    "begin": lambda bus: Ledger(bus).begin_last("0-2-0", "w/1"),
    "publish a group": lambda bus: Ledger(bus).publish(group("0-2-0"), "w/1", 1.0),
    "fail": lambda bus: Ledger(bus).fail("0-2-0", "w/1", "why"),
    "discard": lambda bus: Ledger(bus).discard("0-2-0", "w/1", "why"),
    "release": lambda bus: Ledger(bus).release(),
    "drop": lambda bus: Ledger(bus).drop("0-1-0", "why"),
    "drop and deal again": lambda bus: Ledger(bus).drop("0-1-0", "why", again=True),
    "batch": lambda bus: _batch(bus, 2),
    "commit": lambda bus: Ledger(bus).commit(1),
    "reconcile": lambda bus: Ledger(bus).reconcile(2, {2: ["0-1-0"]}),
    "quarantine": lambda bus: Quarantine(Ledger(bus)).put(1, "0-0-0", "why", ""),
    "announce weights": lambda bus: SnapshotLedger(bus).announce(Snapshot(version=1, incarnation=9, path="/p")),
    "an engine is up": lambda bus: VersionLedger(bus).up("engine-0", LINE.url, 3, 0),
    "an engine serves": lambda bus: VersionLedger(bus).move("engine-0", LINE, "serving", 1),
    "an engine is down": lambda bus: VersionLedger(bus).down("engine-0", "why"),
    "an event": lambda bus: bus.publish("events", Event(actor="w", kind="late", time=1.0)),
    "metrics": lambda bus: bus.publish("metrics", Metrics(actor="w", step=1, time=1.0, values={})),
    "a heartbeat": lambda bus: bus.beat(Heartbeat(actor="w", role="rollout", incarnation=1, time=1.0)),
    "an address": lambda bus: bus.set_address("router", LINE.url),
    "whose memory it sees": lambda bus: tell_memory(bus, "w", "here"),
    "a roster": lambda bus: bus.set_roster(Roster(frozenset())),
    "a life": lambda bus: Lives(bus).replace({"w": 7}),
    "a trim": lambda bus: bus.trim("events", f"{int(time.time() * 1000) + 1}-0"),
}

CHANGE_NOTHING = (
    "begin",
    "claim what was delivered before",
)  # of these groups: they are in flight, and counted, already


async def _batch(bus: Bus, step: int) -> Batch:
    ready, _ = await Ledger(bus).ready_groups("0", block_ms=0)
    return await Ledger(bus).batch(step, ready[-1:])


async def _everything(bus: Bus) -> dict[str, Any]:
    """What lies on the bus, but for what expires by itself: payloads that nobody has published."""
    found: dict[str, Any] = {}
    for key in sorted(await bus.redis.keys(bus.key("*"))):
        if await bus.redis.ttl(key) == -1:
            found[key] = await bus.redis.dump(key)
    # a read delivers a ticket to its consumer, which is no change of the ledger's
    found.pop(bus.key("tickets").encode())
    found["tickets"] = await bus.redis.xrange(bus.key("tickets"))
    return found


async def _furnish(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 4)
    ready = await make_ready(ledger, 2, "v/1")
    await ledger.batch(1, ready[:1])
    await ledger.next_tickets("w", "w/1", 1, None)
    await VersionLedger(bus).up("engine-0", LINE.url, 3, 0)


@pytest.mark.parametrize("change", CHANGES)
async def test_who_has_been_replaced_changes_nothing_and_hears_of_it(bus: Bus, redis_url: str, change: str) -> None:
    await _furnish(bus)
    await Lives(bus).replace({"w": 2})
    old = await connect(redis_url, bus.run_id)
    heard: list[str] = []
    old.life, old.replaced = Life("w", 1), heard.append
    before = await _everything(bus)
    with pytest.raises(ReplacedError, match="w, incarnation 1, has been replaced: incarnation 2 lives"):
        await CHANGES[change](old)
    assert await _everything(bus) == before and len(heard) == 1
    old.life = Life("w", 2)
    # a ticket that was read and not claimed is the next life's
    await CHANGES["claim what was delivered before" if change == "claim" else change](old)
    assert await _everything(bus) != before or change in CHANGE_NOTHING
    await old.close()


def test_every_script_that_changes_something_is_behind_the_fence(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts: list[str] = []
    monkeypatch.setattr(bus.redis, "register_script", lambda text: scripts.append(text) or type("S", (), {"sha": ""}))
    Bus(bus.redis, "x")
    for one in (Ledger, VersionLedger, SnapshotLedger, Lives):
        one(bus)
    assert len(scripts) > 20
    writes = re.compile(r"redis\.call\((ARGV|'(H?SET|H?DEL|XADD|XDEL|XTRIM|HINCRBY|ZADD|ZREM|SADD|SREM|PERSIST)')")
    for text in scripts:
        assert ("'REPLACED '" in text) == bool(writes.search(text)), text


async def test_a_launch_ends_every_earlier_life_of_whatever_name(bus: Bus) -> None:
    await Lives(bus).begin(5)
    for name, incarnation, lives in (("w", 4, False), ("engine-77", 4, False), ("w", 5, True), ("supervisor", 6, True)):
        bus.life = Life(name, incarnation)
        if lives:
            await bus.set_address(name, LINE.url)
        else:
            with pytest.raises(ReplacedError):
                await bus.set_address(name, LINE.url)


async def test_a_life_that_begins_ends_the_earlier_ones_and_does_not_begin_when_it_is_over(bus: Bus) -> None:
    bus.life = Life("w", 3)
    await begin_life(bus)
    await begin_life(bus)
    assert await bus.redis.hgetall(bus.key(LIVES)) == {b"w": b"3"}
    bus.life = Life("w", 2)
    with pytest.raises(ReplacedError):
        await begin_life(bus)


async def test_no_life_is_begun_again_and_what_a_redis_lost_is_said_again(bus: Bus) -> None:
    lives = Lives(bus)
    await lives.replace({"w": 5})
    await Lives(bus).replace({"w": 3})  # a supervisor that is behind
    assert await bus.redis.hgetall(bus.key(LIVES)) == {b"w": b"5"}
    await lives.retire("w", 5)
    assert await bus.redis.hgetall(bus.key(LIVES)) == {b"w": b"6"}
    await bus.redis.delete(bus.key(LIVES))
    assert await lives.greatest() == 0
    await lives.keep()
    assert await bus.redis.hgetall(bus.key(LIVES)) == {b"w": b"6"} and await lives.greatest() == 6


async def test_what_is_no_number_replaces_nobody_and_is_written_over(bus: Bus, redis_url: str) -> None:
    lookout = Lookout(redis_url, bus.key(LIVES), Life("w", 1), 5.0)
    for junk in (b"", b"x", b"-3", b"1e9", b"7.5", b"0x10"):
        await bus.redis.hset(bus.key(LIVES), mapping={"w": junk, "*": junk})
        bus.life = Life("w", 1)
        await bus.set_address("w", LINE.url)
        assert lookout.successor() == 0
    await Lives(bus).replace({"*": 1, "w": 1})
    assert await bus.redis.hgetall(bus.key(LIVES)) == {b"w": b"1", b"*": b"1"}
    lookout.close()


async def test_a_life_is_looked_up_as_the_fence_reads_it(bus: Bus, redis_url: str, tmp_path: Path) -> None:
    lookout = Lookout(redis_url, bus.key(LIVES), Life("w", 3), 5.0)
    assert lookout.successor() == 0
    await Lives(bus).replace({"w": 3, "v": 9})
    assert lookout.successor() == 0
    await Lives(bus).begin(4)
    assert lookout.successor() == 4
    await Lives(bus).replace({"w": 6})
    assert lookout.successor() == 6
    lookout.close()
    with pytest.raises(BusAway):
        Lookout(f"unix://{tmp_path}/none", bus.key(LIVES), Life("w", 3), 5.0).successor()
