"""The ledger on a real Redis: every group is in one place, whatever is repeated, late or interleaved."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_steps import deal, group, make_ready, ticket

from bus import Bus, Ledger, LedgerError, balanced, connect
from bus.codec import TOKENS, VERSIONS, encode, pack
from bus.messages import Batch, Metrics, Sample, Transition


async def test_admission_stops_at_the_limit_and_deals_no_position_twice(bus: Bus) -> None:
    ledger = Ledger(bus)
    tickets = [ticket(i) for i in range(10)]
    assert await ledger.admit(tickets, limit=6, position=0) == (6, 6)
    assert await ledger.admit(tickets, limit=20, position=0) == (0, 6)  # the retry of a lost answer
    assert await ledger.admit(tickets[6:], limit=6, position=6) == (0, 6)
    assert (await ledger.counts())["dealt"] == 6


async def test_racing_dealers_never_pass_the_bound(bus: Bus) -> None:
    ledger = Ledger(bus)

    async def race() -> None:
        position = 0
        for _ in range(30):
            _, position = await ledger.admit([ticket(position + i) for i in range(7)], limit=50, position=position)

    await asyncio.gather(*(race() for _ in range(6)))
    counts = await ledger.counts()
    assert counts["dealt"] == counts["waiting"] == 50
    assert len(set((await ledger.open_groups()).order)) == 50


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


async def test_a_damaged_payload_is_named_instead_of_trained(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    (ready,) = await make_ready(ledger, 1)
    await bus.redis.set(ready.payload_key, b"\1garbage")
    with pytest.raises(LedgerError, match=r"0-0-0.*damaged"):
        await ledger.payloads([ready.payload_key])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
async def test_the_ledger_balances_after_any_interleaving(redis_url: str, seed: int) -> None:
    """Three clients make random transitions at once, repeat some, and lose leases; no group is lost or trained twice."""
    rng = random.Random(seed)
    bus = await connect(redis_url, f"interleaving-{seed}-{rng.random()}")
    ledger = Ledger(bus)
    await ledger.prepare()
    trained: list[str] = []
    leases: dict[str, list[str]] = {}

    async def client(name: str) -> None:
        lease = f"{name}/1"
        for _ in range(25):
            match rng.choice(["admit", "claim", "publish", "publish", "drop", "release", "batch", "batch", "commit"]):
                case "admit":
                    position = (await ledger.open_groups()).next_position
                    await ledger.admit([ticket(position + i) for i in range(3)], limit=12, position=position)
                case "claim":
                    open_now = await ledger.open_groups()
                    if "w" in open_now.states:
                        for c in await ledger.next_tickets(name, lease, 2, rng.choice([0, 60_000])):
                            leases.setdefault(lease, []).append(c.ticket.group_id)
                case "publish" if leases.get(lease):
                    gid = rng.choice(leases[lease])
                    for _ in range(rng.choice([1, 2])):
                        await ledger.publish(group(gid), lease, 0.0)
                case "drop" if (open_now := await ledger.open_groups()).order:
                    await ledger.drop(rng.choice(open_now.order), "test")
                case "release":
                    await ledger.release(lease)
                case "batch":
                    step = (await ledger.steps())[0] + 1
                    states = await ledger.open_groups()
                    waiting = {g for g, s in zip(states.order, states.states, strict=True) if s == "r"}
                    ready, _ = await ledger.ready_groups("0", block_ms=0)
                    chosen = [r for r in ready if r.group_id in waiting][:2]
                    if chosen:
                        try:
                            record = await ledger.batch(step, chosen)
                            if record.group_ids == tuple(r.group_id for r in chosen):
                                trained.extend(record.group_ids)
                        except LedgerError:
                            pass  # another client was first
                case "commit":
                    await ledger.commit((await ledger.steps())[0])
            assert balanced(await ledger.counts())

    await asyncio.gather(*(client(name) for name in "abc"))
    counts = await ledger.counts()
    states = await ledger.open_groups()
    for letter, name in (("w", "waiting"), ("f", "in_flight"), ("r", "ready")):
        assert states.states.count(letter) == counts[name]
    assert len(set(trained)) == counts["batched"] + counts["trained"]
    await bus.close()


async def transitions(bus: Bus) -> list[Transition]:
    found, _ = await bus.read("events", Transition, "0")
    return found


async def test_every_transition_is_on_record(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 3)
    first, second, third = await ledger.next_tickets("w", "w/1", 3, 60_000)
    tokens, versions = pack([5, 6, 7], TOKENS), pack([1, 1, 2], VERSIONS)
    sample = Sample(
        index=0, tokens=tokens, logprobs=b"", loss_mask=b"", versions=versions, reward=0.5, finish_reason="stop"
    )
    whole = msgspec.structs.replace(group(first.ticket.group_id), samples=(sample, sample))
    assert await ledger.publish(whole, "w/1", 12.5)
    assert await ledger.fail(second.ticket.group_id, "w/1", "reward_error", "no: ü", lengths=(3, 4)) == "again"
    assert await ledger.release("w/1") == 1
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    await ledger.batch(1, ready)
    await ledger.commit(1)
    await ledger.drop(third.ticket.group_id, "stale", "too old")

    found = await transitions(bus)
    kinds = ["admitted", "claimed", "claimed", "claimed", "published", "failed", "released", "batched", "trained"]
    assert [t.kind for t in found] == [*kinds, "dropped"]
    by_kind = {t.kind: t for t in found}
    assert by_kind["admitted"].group_ids == ("0-0-0", "0-1-0", "0-2-0")
    published = by_kind["published"].group
    assert published == ready[0]
    assert (published.lengths, published.rewards, published.versions) == ((3, 3), (0.5, 0.5), ((1, 4), (2, 2)))
    assert (published.oldest_version, published.newest_version, published.n_tokens) == (1, 2, 6)
    failed = by_kind["failed"]
    assert (failed.by, failed.reason, failed.detail, failed.lengths) == ("w/1", "reward_error", "no: ü", (3, 4))
    assert (by_kind["batched"].step, by_kind["trained"].step) == (1, 1)
    assert by_kind["dropped"].detail == "too old"


async def test_a_group_is_given_up_after_its_last_attempt_with_every_cause(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    for worker, done in (("a", "again"), ("b", "again"), ("c", "dropped")):
        (claimed,) = await ledger.next_tickets(worker, f"{worker}/1", 1, 60_000)
        assert await ledger.fail("0-0-0", f"{worker}/1", "reward_error", "it said\nno", attempts=3) == done
    assert claimed.attempt == 3
    assert (await ledger.counts())["dropped:reward_error"] == 1 and balanced(await ledger.counts())
    ((letter, told),), _ = await ledger.dead_letters("0")
    assert (letter.group_id, letter.attempts, letter.reason) == ("0-0-0", 3, "reward_error")
    assert letter.causes == tuple(f"{worker}/1: reward_error: it said no" for worker in "abc")
    assert told == ticket(0)


async def test_a_prompt_that_no_worker_survives_is_given_up(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    for life in range(3):
        (claimed,) = await ledger.next_tickets("w", f"w/{life}", 1, 60_000)
        assert claimed.attempt == life + 1
        if life == 2:
            assert await ledger.begin_last("0-0-0", f"w/{life}")
        assert await ledger.release(f"w/{life}", "the worker died") == 1
    assert await ledger.next_tickets("w", "w/3", 1, 60_000) == []
    assert (await ledger.counts())["dropped:worker_died"] == 1 and balanced(await ledger.counts())
    ((letter, _),), _ = await ledger.dead_letters("0")
    assert letter.causes == tuple(f"w/{life}: the worker died" for life in range(3))


async def test_a_last_attempt_that_never_began_was_none(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    for life in range(8):
        (claimed,) = await ledger.next_tickets("w", f"w/{life}", 1, 60_000)
        assert claimed.attempt == min(life + 1, 3)
        assert await ledger.release(f"w/{life}", "the worker died") == 1
    assert not await ledger.begin_last("0-0-0", "w/7")
    (claimed,) = await ledger.next_tickets("w", "w/8", 1, 60_000, attempts=3)
    assert await ledger.begin_last("0-0-0", "w/8")
    assert await ledger.fail("0-0-0", "w/8", "reward_error") == "dropped"


async def test_work_that_is_handed_back_was_no_attempt(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    for life in range(5):
        (claimed,) = await ledger.next_tickets("w", f"w/{life}", 1, 60_000)
        assert claimed.attempt == 1
        assert await ledger.release(f"w/{life}") == 1


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


async def test_strange_entries_among_the_batches_are_no_batches(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 2)
    ready = await make_ready(ledger, 2)
    await bus.redis.xadd(bus.key("batches"), {"m": b"junk"})
    await bus.redis.xadd(bus.key("batches"), {"m": encode(Batch(step=1, group_ids=("x",), payload_keys=("y",)))})
    assert await ledger.recorded_batch(1, block_ms=10) is None
    record = await ledger.batch(1, ready)
    assert await ledger.recorded_batch(1, block_ms=10) == record


async def test_no_stream_is_trimmed_to_make_room(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 300)
    ready = await make_ready(ledger, 150)
    assert await bus.redis.xlen(bus.key("tickets")) == 150  # those that wait
    assert await bus.redis.xlen(bus.key("samples")) == len(ready) == 150
    for _ in range(300):
        await bus.publish("metrics", Metrics(actor="a", step=0, time=0.0, values={}))
    assert await bus.redis.xlen(bus.key("metrics")) == 300


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


async def test_what_is_ready_counts_against_the_limit_until_it_is_batched(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 3)
    ready = await make_ready(ledger, 2)
    more = [ticket(3 + i) for i in range(3)]
    assert await ledger.admit(more, limit=3, position=3) == (0, 3)
    await ledger.batch(1, ready)
    assert await ledger.admit(more, limit=3, position=3) == (2, 5)


async def test_a_commit_beyond_the_record_is_refused_by_name(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 1)
    await ledger.batch(1, await make_ready(ledger, 1))
    with pytest.raises(LedgerError, match="commit of step 2, but the last batch is of step 1"):
        await ledger.commit(2)
    assert await ledger.steps() == (1, 0)
