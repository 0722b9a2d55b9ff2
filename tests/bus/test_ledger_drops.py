"""Drops in the ledger on a real Redis: each is recorded with its reason, and none touches a batch."""

from __future__ import annotations

from typing import Any

from ledger_steps import deal, group, make_ready, ticket, transitions

from bus import Bus, Ledger, balanced
from bus.messages import Ticket


async def test_a_drop_is_recorded_with_its_reason_and_never_touches_a_batch(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 4)
    ready = await make_ready(ledger, 2)
    await ledger.batch(1, ready[:1])
    assert not await ledger.drop(ready[0].group_id, "stale")
    assert await ledger.drop(ready[1].group_id, "stale")
    assert not await ledger.drop(ready[1].group_id, "stale")
    (claimed,) = await ledger.next_tickets("w", "w/2", 1, 60_000)
    assert await ledger.fail(claimed.ticket.group_id, "w/1", "reward_error", attempts=1) == "void"  # not its lease
    assert await ledger.fail(claimed.ticket.group_id, "w/2", "reward_error", attempts=1) == "dropped"
    counts = await ledger.counts()
    assert (counts["dropped"], counts["dropped:stale"], counts["dropped:reward_error"]) == (2, 1, 1)
    assert balanced(counts)


async def test_a_batch_drops_the_surplus_that_was_dealt_first_and_a_limit_of_an_earlier_step_admits_nothing(
    bus: Bus,
) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 5)
    ready = await make_ready(ledger, 3)
    await ledger.next_tickets("w", "w/1", 1, 60_000)
    await ledger.batch(1, ready[:1], surplus=3)  # of the ready, the one in flight and the waiting
    assert (await ledger.open_groups()).order == ("0-4-0",)
    assert (await ledger.batch(1, ready[:1], surplus=3)).step == 1  # the retry of a lost answer drops nothing more
    assert (await ledger.open_groups()).order == ("0-4-0",)
    drops = [t for t in await transitions(bus) if t.kind == "dropped"]
    assert [(t.group_ids, t.reason) for t in drops] == [((f"0-{i}-0",), "surplus") for i in (1, 2, 3)]
    counts = await ledger.counts()
    assert (counts["batched"], counts["waiting"], counts["dropped:surplus"]) == (1, 1, 3) and balanced(counts)
    assert await ledger.admit([ticket(5)], limit=99, position=5, step=0) == (0, 5)
    assert await ledger.admit([ticket(5)], limit=99, position=5, step=1) == (1, 6)


async def test_a_group_that_a_filter_refuses_is_dropped_by_its_holder_alone_and_leaves_its_place(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 2)
    first, second = await ledger.next_tickets("w", "w/1", 2, 60_000)
    gid = first.ticket.group_id
    assert await ledger.held([gid, second.ticket.group_id, "0-9-0"], "w/1") == {gid, second.ticket.group_id}
    assert await ledger.held([gid], "w/2") == set() == await ledger.held([], "w/1")
    assert not await ledger.discard(gid, "w/2", "zero_std")  # not its lease
    cursors: dict[Any, str] = {"batches": await bus.last_id("batches")}
    assert await ledger.discard(gid, "w/1", "zero_std", "rewards 1, 1", lengths=(3, 4))
    assert await bus.wait_for_news(cursors, block_ms=1)  # what wakes the dealer
    assert not await ledger.discard(gid, "w/1", "zero_std")  # the retry of a lost answer
    assert not await ledger.publish(group(gid), "w/1", 0.0)
    assert await ledger.held([gid], "w/1") == set()
    counts = await ledger.counts()
    assert counts["dropped:zero_std"] == counts["dropped"] == 1 and balanced(counts)
    assert (await ledger.dead_letters("0"))[0] == []  # it is no failure
    (dropped,) = [t for t in await transitions(bus) if t.kind == "dropped"]
    assert (dropped.by, dropped.detail, dropped.lengths) == ("w/1", "rewards 1, 1", (3, 4))
    assert await ledger.admit([ticket(2)], limit=2, position=2) == (1, 3)


async def test_a_prompt_that_is_to_be_made_again_is_dealt_again_once_and_before_all_that_came_to_wait_after_it(
    bus: Bus,
) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 3)
    ready = await make_ready(ledger, 2)
    cursors: dict[Any, str] = {"batches": await bus.last_id("batches")}
    assert await ledger.drop(ready[1].group_id, "stale", "ready at version 5", again=True)
    assert await bus.wait_for_news(cursors, block_ms=1)  # what wakes the dealer
    assert not await ledger.drop(ready[1].group_id, "stale", again=True)  # the retry of a lost answer
    assert await ledger.drop(ready[0].group_id, "stale", again=True)
    assert await ledger.waiting_again(9) == ["0-1-1", "0-0-1"] and (await ledger.room()).again == 2
    again = [again_ticket(group_id) for group_id in await ledger.waiting_again(9)]
    assert await ledger.admit_again(again, limit=9, step=1) == 0  # a limit of another step
    assert await ledger.admit_again(again, limit=2, step=0) == 1
    assert await ledger.admit_again(again, limit=9, step=0) == 0  # the retry of a lost answer
    assert await ledger.waiting_again(9) == ["0-0-1"] and await ledger.waiting_again(0) == []
    assert (await ledger.open_groups()).order == ("0-2-0", "0-1-1") and (await ledger.room()).next_position == 3
    claimed = await ledger.next_tickets("w", "w/2", 9, 60_000)
    assert [c.ticket for c in claimed][1:] == again[:1]
    assert await ledger.publish(group("0-1-1"), "w/2", 0.0)
    assert await ledger.drop("0-1-1", "stale", again=True)
    assert not await ledger.discard("0-2-0", "w/1", "stale_in_flight", again=True)  # not its lease
    assert await ledger.discard("0-2-0", "w/2", "stale_in_flight", again=True)
    assert not await ledger.discard("0-2-0", "w/2", "stale_in_flight", again=True)
    assert await ledger.waiting_again(9) == ["0-0-1", "0-1-2", "0-2-1"]
    counts = await ledger.counts()
    assert (counts["dealt"], counts["dropped:stale"], counts["dropped"]) == (4, 3, 4) and balanced(counts)
    (first, *_) = [t for t in await transitions(bus) if t.kind == "dropped"]
    assert first.detail == "ready at version 5; to be made again as 0-1-1"
    assert (await ledger.batch(1, [])).step == 1
    assert not await ledger.drop("0-2-1", "stale", again=True)  # of nobody


def again_ticket(group_id: str) -> Ticket:
    return Ticket(group_id=group_id, prompt_tokens=b"\1\0\0\0", sampling_seed=7)
