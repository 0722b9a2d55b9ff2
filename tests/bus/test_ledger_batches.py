"""Batches in the ledger on a real Redis: a step has one record, and its payloads stay until a checkpoint contains it."""

from __future__ import annotations

import pytest
from ledger_steps import deal, group, make_ready, ticket, transitions
from msgspec.structs import replace

from bus import Bus, Ledger, LedgerError, balanced
from bus.codec import encode
from bus.ledger_batches import part_of, sizes_of
from bus.messages import Batch, Transition


async def test_a_step_has_one_record_for_ever(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 4)
    ready = await make_ready(ledger, 4)
    first = await ledger.batch(1, ready[:2])
    assert await ledger.batch(1, ready[2:]) == first  # a learner that lost the answer, or restarted
    assert await ledger.recorded_batch(1) == first
    assert await ledger.recorded_batch(2) is None
    with pytest.raises(LedgerError, match="step 3"):
        await ledger.batch(3, ready[2:])
    with pytest.raises(LedgerError, match="step 2"):
        await ledger.batch(2, ready[:2])  # batched already
    with pytest.raises(LedgerError, match="step 2"):
        await ledger.batch(2, [ready[2], ready[2]])
    assert balanced(await ledger.counts())


async def test_payloads_stay_until_a_checkpoint_contains_their_step(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 4)
    ready = await make_ready(ledger, 4)
    record = await ledger.batch(1, ready[:2])
    assert len(await ledger.payloads(record.payload_keys)) == 2
    assert await ledger.commit(1) == 2
    assert await ledger.commit(1) == 0
    with pytest.raises(LedgerError, match="missing"):
        await ledger.payloads(record.payload_keys)
    counts = await ledger.counts()
    assert (counts["trained"], counts["ready"], counts["batched"]) == (2, 2, 0)
    with pytest.raises(LedgerError, match="commit of step 2"):
        await ledger.commit(2)


async def test_a_step_can_be_trained_again_until_an_older_checkpoint_contains_it_too(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 6)
    ready = await make_ready(ledger, 6)
    records = [await ledger.batch(step, ready[2 * step - 2 : 2 * step]) for step in (1, 2, 3)]
    assert await ledger.commit(2, forget=0) == 4
    counts = await ledger.counts()
    assert (counts["trained"], counts["batched"], await ledger.steps(), await ledger.forgotten()) == (4, 2, (3, 2), 0)
    for record in records:
        assert await ledger.recorded_batch(record.step) == record
        assert [group.group_id for group in await ledger.payloads(record.payload_keys)] == list(record.group_ids)
    assert await ledger.commit(3, forget=2) == 2
    assert await ledger.commit(3, forget=2) == 0
    assert (await ledger.steps(), await ledger.forgotten()) == ((3, 3), 2)
    assert await ledger.recorded_batch(2) is None and await ledger.recorded_batch(3) == records[2]
    with pytest.raises(LedgerError, match="missing"):
        await ledger.payloads(records[1].payload_keys)
    assert len(await ledger.payloads(records[2].payload_keys)) == 2
    assert (await ledger.open_groups()).order == () and balanced(await ledger.counts())
    assert (await ledger.ready_groups("0", block_ms=0))[0] == []


async def test_a_step_whose_weights_are_held_is_extended_once_by_each_part_and_its_record_has_all_of_them(
    bus: Bus,
) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 5)
    ready = await make_ready(ledger, 5)
    first = await ledger.batch(1, ready[:1], ticks=False, max_lag=2, masked_tokens=3)
    more = await ledger.extend(first, ready[1:3], ticks=False, masked_tokens=4)
    assert await ledger.extend(first, ready[3:4]) == more  # a learner that lost the answer, or restarted
    assert await ledger.recorded_batch(1) == more and (sizes_of(more), more.masked_tokens, more.ticks) == (
        (1, 2),
        7,
        False,
    )
    with pytest.raises(LedgerError, match="step 1 cannot be extended: it is not the last, or one of its groups"):
        await ledger.extend(more, ready[2:3])  # batched already
    last = await ledger.extend(more, ready[3:4], masked_tokens=0)
    with pytest.raises(LedgerError, match="its weights change with what it has"):
        await ledger.extend(last, ready[4:])
    assert [part_of(last, index).group_ids for index in range(3)] == [
        tuple(group.group_id for group in some) for some in (ready[:1], ready[1:3], ready[3:4])
    ]
    assert len(await ledger.payloads(part_of(last, 1).payload_keys)) == 2
    kinds = [(t.kind, t.step, t.detail) for t in (await bus.read("events", Transition, "0"))[0] if t.step]
    assert kinds == [("batched", 1, "held"), ("extended", 1, "held"), ("extended", 1, "")]
    assert await ledger.commit(1) == 4 and balanced(await ledger.counts())
    with pytest.raises(LedgerError, match="step 1 cannot be extended"):
        await ledger.extend(more, ready[4:])


async def test_what_an_earlier_version_committed_is_forgotten(bus: Bus) -> None:
    ledger = Ledger(bus)
    await bus.redis.hset(bus.key("l:meta"), mapping={"last_step": 4, "committed_step": 3})
    assert await ledger.forgotten() == 3


async def test_a_ledger_that_lost_its_end_learns_from_the_checkpoint_what_is_trained(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 6)
    ready = await make_ready(ledger, 4)
    await ledger.batch(1, ready[:2])
    # what the lost end held: 2 batched in step 2, the waiting 4 in step 3, and the never dealt 6 and 7 in steps 3 and 4
    trained = {1: ["0-0-0", "0-1-0"], 2: ["0-2-0", "0-3-0"], 3: ["0-4-0", "0-6-0"], 4: ["0-5-0", "0-7-0"]}
    with pytest.raises(LedgerError, match="does not name the groups of 4"):
        await ledger.reconcile(4, {step: ids for step, ids in trained.items() if step < 4})
    assert await ledger.reconcile(4, trained) == 6
    assert await ledger.reconcile(4, trained) == 0
    counts = await ledger.counts()
    assert (counts["trained"], counts["dealt"], counts["waiting"]) == (8, 8, 0) and balanced(counts)
    assert (await ledger.steps(), await ledger.forgotten()) == ((4, 4), 4)
    # the dealer passes over what is trained already, and goes on behind it
    assert await ledger.admit([ticket(i) for i in range(6, 10)], limit=100, position=6) == (2, 10)
    assert (await ledger.open_groups()).order == ("0-8-0", "0-9-0")
    more = await make_ready(ledger, 2)
    assert (await ledger.batch(5, more)).step == 5
    assert balanced(await ledger.counts())


async def test_what_a_checkpoint_trained_at_a_later_attempt_is_trained_wherever_the_ledger_has_its_prompt(
    bus: Bus,
) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 4)
    ready = await make_ready(ledger, 2)
    (claimed,) = await ledger.next_tickets("w", "w/2", 1, 60_000)
    await ledger.drop(ready[1].group_id, "stale", again=True)
    # ready, waiting to be dealt again, in flight, waiting, and not dealt: each was made again in the lost end
    trained = {1: ["0-0-1", "0-1-2", "0-2-1", "0-3-1", "0-4-3"]}
    assert await ledger.reconcile(1, trained) == 5
    assert await ledger.reconcile(1, trained) == 0
    counts = await ledger.counts()
    assert (counts["dealt"], counts["trained"], counts["dropped:superseded"]) == (9, 5, 3) and balanced(counts)
    assert (await ledger.open_groups()).order == () and await ledger.waiting_again(9) == []
    assert not await ledger.publish(group(claimed.ticket.group_id), "w/2", 0.0)
    said = [(t.group_ids, t.detail) for t in await transitions(bus) if t.reason == "superseded"]
    assert said == [((f"0-{i}-0",), f"its prompt is trained, as 0-{i}-1") for i in (0, 2, 3)]
    assert await ledger.admit([ticket(i) for i in range(4, 6)], limit=100, position=4) == (1, 6)
    assert (await ledger.open_groups()).order == ("0-5-0",)


async def test_a_part_of_a_step_that_the_ledger_lost_is_learnt_from_the_checkpoint_and_never_taken_for_another(
    bus: Bus,
) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 5)
    ready = await make_ready(ledger, 4)
    record = await ledger.batch(1, ready[:1], ticks=False)
    ids = [news.group_id for news in ready]
    part = replace(
        record, group_ids=tuple(ids[:2]), payload_keys=tuple(news.payload_key for news in ready[:2]), parts=(1, 1)
    )
    with pytest.raises(LedgerError, match="or the ledger lost its end, and groups of the step with it"):
        await ledger.extend(part, ready[2:3])  # a learner that has trained it, and lives
    with pytest.raises(LedgerError, match="does not name the groups of 1"):
        await ledger.reconcile(1, {})
    assert await ledger.reconcile(1, {1: ids[:3]}) == 2
    assert await ledger.reconcile(1, {1: ids[:3]}) == 0
    counts = await ledger.counts()
    assert (counts["trained"], counts["batched"], counts["ready"]) == (3, 0, 1) and balanced(counts)
    assert (await ledger.steps(), await ledger.forgotten()) == ((1, 1), 1)
    assert await ledger.recorded_batch(1) is None  # half of it would be no step
    with pytest.raises(LedgerError, match="missing"):
        await ledger.payloads([ready[0].payload_key])
    assert (await ledger.batch(2, ready[3:])).step == 2


async def test_a_damaged_payload_is_named_instead_of_trained(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    (ready,) = await make_ready(ledger, 1)
    await bus.redis.set(ready.payload_key, b"\1garbage")
    with pytest.raises(LedgerError, match=r"0-0-0.*damaged"):
        await ledger.payloads([ready.payload_key])


async def test_strange_entries_among_the_batches_are_no_batches(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 2)
    ready = await make_ready(ledger, 2)
    await bus.redis.xadd(bus.key("batches"), {"m": b"junk"})
    await bus.redis.xadd(bus.key("batches"), {"m": encode(Batch(step=1, group_ids=("x",), payload_keys=("y",)))})
    assert await ledger.recorded_batch(1, block_ms=10) is None
    record = await ledger.batch(1, ready)
    assert await ledger.recorded_batch(1, block_ms=10) == record


async def test_what_is_batched_is_neither_dropped_nor_reconciled_nor_batched_again(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 4)
    ready = await make_ready(ledger, 4)
    await ledger.batch(1, ready[:2])
    with pytest.raises(LedgerError, match="step 2"):
        await ledger.batch(2, ready[1:3])
    with pytest.raises(LedgerError, match="in a batch of its own record"):
        await bus_reconcile(ledger, 2, ready[1].group_id)
    assert not await ledger.drop(ready[0].group_id, "stale")
    counts = await ledger.counts()
    assert (counts["batched"], counts["ready"], counts["dropped"]) == (2, 2, 0)
    assert len(await ledger.payloads([r.payload_key for r in ready])) == 4


async def bus_reconcile(ledger: Ledger, step: int, group_id: str) -> None:
    """The script itself: the method commits first, which would hide what it refuses."""
    await ledger._run("reconcile", step, group_id)


async def test_a_commit_beyond_the_record_is_refused_by_name(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    await ledger.batch(1, await make_ready(ledger, 1))
    with pytest.raises(LedgerError, match="commit of step 2, but the last batch is of step 1"):
        await ledger.commit(2)
    assert await ledger.steps() == (1, 0)
