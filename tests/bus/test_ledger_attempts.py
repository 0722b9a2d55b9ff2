"""Attempts in the ledger on a real Redis: what counts as one, and that a group is given up after its last, with every cause."""

from __future__ import annotations

from ledger_steps import deal, ticket

from bus import Bus, Ledger, balanced


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
