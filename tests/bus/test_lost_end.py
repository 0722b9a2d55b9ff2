"""A Redis that lost the end of its file, whichever end, under a checkpoint that is ahead of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ledger_steps import deal, group, make_ready, ticket

from bus import Bus, Ledger, balanced, connect
from bus.append_only import appended_to
from bus.codec import encode
from bus.messages import Ticket
from bus.server import RedisServer

PROMPTS = 3
TRAINED = "0-0-2"  # in the step that is lost: the third attempt at the first prompt


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Bus]:
    server = RedisServer(directory)
    try:
        bus = await connect(server.start(), "lost")
        yield bus
        await bus.close()
    finally:
        server.stop()


async def deal_again(ledger: Ledger) -> None:
    waiting = await ledger.waiting_again(9)
    tickets = [Ticket(group_id=group_id, prompt_tokens=b"", sampling_seed=1) for group_id in waiting]
    assert await ledger.admit_again(tickets, limit=99, step=(await ledger.steps())[0]) == len(waiting)


async def live(ledger: Ledger, file: Path) -> list[int]:
    """A prompt is dealt three times: its first group is too old when it is ready, its second while it is generated, the third
    is trained. Returns how long the file was after each transition."""
    sizes: list[int] = []

    def note() -> None:
        sizes.append(file.stat().st_size)

    await deal(ledger, 1)
    note()
    for attempt in range(3):
        lease = f"w/{attempt}"
        (claimed,) = await ledger.next_tickets("w", lease, 1, 60_000)
        note()
        if attempt == 1:
            assert await ledger.discard(claimed.ticket.group_id, lease, "stale_in_flight", again=True)
        else:
            assert await ledger.publish(group(claimed.ticket.group_id), lease, 0.0)
        note()
        if attempt == 0:
            assert await ledger.drop(claimed.ticket.group_id, "stale", again=True)
            note()
        if attempt < 2:
            await deal_again(ledger)
            note()
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    assert (await ledger.batch(1, ready)).group_ids == (TRAINED,)
    note()
    return sizes


async def go_on(ledger: Ledger) -> list[str]:
    """All that is open or still to be dealt is trained, in a second step; returns its prompts."""
    await ledger.prepare()
    await ledger.release()
    await deal_again(ledger)
    position = (await ledger.room()).next_position
    await ledger.admit([ticket(p) for p in range(position, PROMPTS)], limit=99, position=position)
    await make_ready(ledger, 9, "v/1")
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    is_open = (await ledger.open_groups()).order
    record = await ledger.batch(2, [news for news in ready if news.group_id in is_open])
    return sorted(group_id.rpartition("-")[0] for group_id in record.group_ids)


async def test_a_prompt_that_was_dealt_again_is_trained_once_and_none_is_lost_whichever_end_is_lost(
    tmp_path: Path,
) -> None:
    async with served(tmp_path / "whole") as bus:
        file = appended_to(tmp_path / "whole")
        assert file is not None
        sizes = await live(Ledger(bus), file)
    assert sizes == sorted(set(sizes)) and len(sizes) == 11
    for number, size in enumerate([0, *sizes]):
        cut = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", cut)
        os.truncate(cut / file.relative_to(tmp_path / "whole"), size)
        async with served(cut) as bus:
            ledger = Ledger(bus)
            await ledger.reconcile(1, {1: [TRAINED]})
            counts = await ledger.counts()
            assert counts["trained"] == 1 and balanced(counts), f"cut {number}: {counts}"
            assert await go_on(ledger) == ["0-1", "0-2"], f"cut {number}"
            assert balanced(await ledger.counts()), f"cut {number}"


async def test_a_group_that_is_made_again_under_the_lease_it_had_is_published_with_what_was_made_then(
    tmp_path: Path,
) -> None:
    """The file ends behind its payload, and before its publication."""
    async with served(tmp_path / "whole") as bus:
        ledger = Ledger(bus)
        await deal(ledger, 1)
        (claimed,) = await ledger.next_tickets("w", "w/1", 1, 60_000)
        group_id = claimed.ticket.group_id
        key = bus.key(f"payload:{group_id}:w/1")
        await bus.redis.set(key, encode(group(group_id, "the first time")), ex=3600)
    async with served(tmp_path / "whole") as bus:
        ledger = Ledger(bus)
        (again,) = await ledger.own_tickets("w", "w/1")
        assert again.ticket == claimed.ticket and again.attempt == claimed.attempt
        assert await ledger.publish(group(group_id, "again"), "w/1", 0.0)
        (found,) = await ledger.payloads([key])
        assert found.worker == "again"
