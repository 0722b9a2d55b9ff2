"""No silent waiting: every wait ends by a deadline that names whom it waited for, or is shown while it lasts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from actor_contexts import context, worker

from bus import Bus, Ledger
from bus.messages import Ticket
from bus.waits import WaitKind
from miles_async.engines.client import EngineClient, EngineError
from miles_async.rollout.slots import RolloutRequest

LONG_S = 10.0  # what waits for so long here waits for ever


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """The URL of somebody who takes connections and says nothing."""
    server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(LONG_S), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    yield f"http://{host}:{port}"
    server.close()


async def test_the_wait_for_an_address_ends_and_names_it(bus: Bus) -> None:
    async with asyncio.timeout(LONG_S):
        with pytest.raises(TimeoutError, match="the address of router"):
            await bus.address("router", deadline_s=0.1)


async def test_a_call_of_an_engine_that_says_nothing_ends_and_names_the_engine() -> None:
    async with silent_server() as url, aiohttp.ClientSession() as session, asyncio.timeout(LONG_S):
        with pytest.raises(EngineError, match=r"engine e0, /model_info: no answer within 0\.2 s"):
            await EngineClient(url, session, name="e0").model_info(timeout=0.2)


async def test_a_request_that_nobody_answers_ends_at_its_deadline(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = worker(bus, monkeypatch, request_timeout_s=0.5)
    await bus.set_address("router", "http://127.0.0.1:9")
    async with asyncio.timeout(LONG_S):
        await rollout.requests.open()
        with pytest.raises(EngineError, match="/generate"):
            await rollout.requests.send(RolloutRequest({"rid": ["a"], "input_ids": [[1]]}))


async def test_the_heartbeat_names_whom_an_actor_has_waited_for_longest(bus: Bus) -> None:
    ctx = context(bus, "dealer")
    assert ctx.heartbeat().waits == ()
    with ctx.waiting(WaitKind.TEACHER), ctx.waiting(WaitKind.ROUTER) as second:
        second.begin_again()
        beat = ctx.heartbeat()
    assert [wait.kind for wait in beat.waits] == [WaitKind.TEACHER, WaitKind.ROUTER]
    assert 0 <= time.time() - beat.waits[0].since < LONG_S
    assert ctx.heartbeat().waits == ()


async def test_a_worker_without_a_ticket_says_that_it_waits_for_the_dealer(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = worker(bus, monkeypatch)
    seen: list[str] = []

    async def take(count: int, lease_ms: int) -> None:
        seen.extend(wait.sentence for wait in rollout.ctx.heartbeat().waits)
        rollout.ctx.stop.set()

    monkeypatch.setattr(rollout, "_take", take)
    async with asyncio.timeout(LONG_S):
        await rollout._work()
    assert seen == ["the dealer for a ticket"]


async def test_the_lease_of_a_slow_worker_goes_on_while_it_works(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(bus)
    await ledger.prepare()
    await ledger.admit([Ticket(group_id="0-0-0", prompt_tokens=b"", sampling_seed=0)], limit=1, position=0)
    rollout = worker(bus, monkeypatch, lease_s=0.4)
    (claimed,) = await ledger.next_tickets(rollout.ctx.name, rollout.lease, 1, 400)
    rollout.last_chances.append(claimed)  # held, like one that is being generated
    renewal = asyncio.create_task(rollout._renew())
    await asyncio.sleep(1.0)
    taken = await bus.redis.xautoclaim(bus.key("tickets"), "rollout", "other", 400, start_id="0-0")
    renewal.cancel()
    assert taken[1] == []
