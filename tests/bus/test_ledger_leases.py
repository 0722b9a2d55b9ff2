"""Leases in the ledger on a real Redis: a group has one holder at a time, and only its holder publishes it."""

from __future__ import annotations

import asyncio

import pytest
from ledger_steps import deal, group, make_ready, ticket

from bus import Bus, Ledger, balanced
from bus.codec import encode
from bus.ledger_leases import Publication


async def test_a_publication_is_idempotent_and_a_given_up_worker_cannot_publish(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    (claimed,) = await ledger.next_tickets("slow", "slow/1", 1, 60_000)
    await asyncio.sleep(0.02)  # the lease below is 10 ms
    (again,) = await ledger.next_tickets("other", "other/1", 1, 10)
    assert again.ticket == claimed.ticket
    gid = claimed.ticket.group_id
    assert not await ledger.publish(group(gid), "slow/1", 0.0)
    assert await ledger.publish(group(gid), "other/1", 0.0)
    assert await ledger.publish(group(gid), "other/1", 0.0)
    assert not await ledger.publish(group(gid), "slow/1", 0.0)
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    assert [r.group_id for r in ready] == [gid]
    assert len(await bus.redis.keys(bus.key("payload:*"))) == 1


async def test_a_renewed_lease_is_not_taken_over(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    (claimed,) = await ledger.next_tickets("w", "w/1", 1, 60_000)
    for _ in range(4):
        await asyncio.sleep(0.05)
        await ledger.renew("w", [claimed.entry_id])
        assert await ledger.next_tickets("other", "other/1", 1, 100) == []


async def test_released_groups_are_dealt_again_with_the_same_ticket(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 3)
    first = await ledger.next_tickets("w", "w/1", 2, 60_000)
    assert await ledger.release("w/1") == 2
    again = await ledger.next_tickets("x", "x/1", 3, 60_000)
    assert sorted(c.ticket.group_id for c in again) == ["0-0-0", "0-1-0", "0-2-0"]
    assert not await ledger.publish(group(first[0].ticket.group_id), "w/1", 0.0)


async def test_a_worker_that_died_before_it_claimed_gets_its_tickets_back_at_once(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 3)
    key = bus.key("tickets")
    await bus.redis.xreadgroup("rollout", "w", {key: ">"}, count=2)  # delivered, and the worker is dead
    await ledger.next_tickets("other", "other/1", 1, 60_000)
    again = await ledger.own_tickets("w", "w/2")
    assert sorted(c.ticket.group_id for c in again) == ["0-0-0", "0-1-0"]
    assert (await ledger.counts())["in_flight"] == 3
    assert await ledger.publish(group("0-0-0"), "w/2", 0.0)
    assert [c.ticket.group_id for c in await ledger.own_tickets("w", "w/3")] == ["0-1-0"]


async def test_what_is_no_ticket_is_refused_and_leaves_the_stream(bus: Bus) -> None:
    ledger = Ledger(bus)
    await ledger.prepare()
    key = bus.key("tickets")
    for fields in ({"x": "y"}, {"m": b"\1\x90"}, {"g": "0-0-0", "m": b"junk"}, {"g": "other", "m": encode(ticket(0))}):
        await bus.redis.xadd(key, fields)
    await deal(ledger, 1)
    (claimed,) = await ledger.next_tickets("w", "w/1", 10, 60_000)
    assert claimed.ticket == ticket(0)
    assert bus.refused["tickets"] == 4
    assert await bus.redis.xlen(key) == 1


async def test_a_payload_that_was_never_published_goes_away_by_itself(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    (ready,) = await make_ready(ledger, 1)
    assert await bus.redis.ttl(ready.payload_key) == -1  # lasting
    await ledger.publish(group("0-9-0"), "w/1", 0.0)  # refused: no such group
    assert await bus.redis.keys(bus.key("payload:0-9-0:*")) == []
    orphan = bus.key("payload:0-0-0:dead/1")
    await bus.redis.set(orphan, b"x", ex=3600, nx=True)
    assert await bus.redis.ttl(orphan) > 0


async def test_a_claim_is_repeated_without_a_second_attempt_and_a_waiting_group_has_no_holder(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    (claimed,) = await ledger.next_tickets("w", "w/1", 1, 60_000)
    (again,) = await ledger.own_tickets("w", "w/1")  # the answer to the first claim was lost
    assert again == claimed and again.attempt == 1
    assert await ledger.release("other/1") == 0  # somebody else's lease
    assert await ledger.release("w/1", "it died") == 1
    assert await ledger.fail("0-0-0", "w/1", "reward_error") == "void"
    assert not await ledger.publish(group("0-0-0"), "w/1", 0.0)
    assert balanced(await ledger.counts()) and (await ledger.counts())["waiting"] == 1


async def test_a_group_whose_payload_has_expired_is_not_ready(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    await ledger.next_tickets("w", "w/1", 1, 60_000)
    run = ledger._run

    async def after_an_hour(script: str, *args: str) -> object:
        if script == "publish":
            await bus.redis.delete(args[2])
        return await run(script, *args)

    monkeypatch.setattr(ledger, "_run", after_an_hour)
    assert not await ledger.publish(group("0-0-0"), "w/1", 0.0)
    assert (await ledger.counts())["ready"] == 0


async def test_several_groups_are_published_at_once_each_under_its_own_fate(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 3)
    await ledger.next_tickets("w", "w/1", 2, 60_000)
    await ledger.next_tickets("x", "x/1", 1, 60_000)
    groups = [group(f"0-{i}-0") for i in (0, 0, 1, 2)]
    all_at_once = [Publication(one, 0.0, encode(one)) for one in groups]
    assert await ledger.publish_all(all_at_once, "w/1") == [True, True, True, False]
    ready, _ = await ledger.ready_groups("0")
    assert [one.group_id for one in ready] == ["0-0-0", "0-1-0"]
    assert await bus.redis.xlen(bus.key("samples")) == 2
    counts = await ledger.counts()
    assert (counts["ready"], counts["in_flight"]) == (2, 1) and balanced(counts)
    assert await ledger.publish_all(all_at_once, "w/1") == [True, True, True, False]  # the answer was lost
    assert await ledger.counts() == counts


async def test_a_publication_whose_payload_was_lost_on_its_way_is_made_all_the_same(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    await ledger.next_tickets("w", "w/1", 1, 60_000)
    monkeypatch.setattr(bus.redis, "ahead", lambda *args: None)
    assert await ledger.publish(group("0-0-0"), "w/1", 0.0)
    (ready,), _ = await ledger.ready_groups("0")
    assert (await ledger.payloads([ready.payload_key]))[0].group_id == "0-0-0"
