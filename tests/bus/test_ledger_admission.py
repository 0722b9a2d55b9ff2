"""Admission to the ledger on a real Redis: no more groups are open than the limit allows, and no position is dealt twice."""

from __future__ import annotations

import asyncio

from ledger_steps import deal, make_ready, ticket

from bus import Bus, Ledger


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


async def test_what_is_ready_counts_against_the_limit_until_it_is_batched(bus: Bus) -> None:
    ledger = Ledger(bus)
    await deal(ledger, 3)
    ready = await make_ready(ledger, 2)
    more = [ticket(3 + i) for i in range(3)]
    assert await ledger.admit(more, limit=3, position=3) == (0, 3)
    await ledger.batch(1, ready)
    assert await ledger.admit(more, limit=3, position=3) == (2, 5)
