"""A router that is replaced and says nothing, not even that it is gone: a machine that is lost, or cut off."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from actor_contexts import context
from fake_engines import FakeEngine, respond, served

from actors.rollout_requests import EngineRequests
from bus import Bus
from miles_async.rollout.slots import RolloutRequest

ANSWER = [{"text": "", "meta_info": {"id": "r", "weight_version": "0"}}]


async def _answer(engine: FakeEngine, scope: Any, body: bytes, receive: Any, send: Any) -> None:
    await respond(send, 200, json.dumps(ANSWER).encode())


async def _silence(engine: FakeEngine, scope: Any, body: bytes, receive: Any, send: Any) -> None:
    await asyncio.Event().wait()


async def test_what_a_silent_router_was_asked_is_asked_its_successor(bus: Bus) -> None:
    lost, successor = FakeEngine("lost", _silence), FakeEngine("successor", _answer)
    async with served(lost) as old, served(successor) as new, asyncio.timeout(60):
        await bus.set_address("router", old)
        requests = EngineRequests(context(bus, "rollout"))
        await requests.open()
        asked = asyncio.create_task(requests.send(RolloutRequest({"input_ids": [[1]], "rid": "r"}, "0-0-0")))
        await lost.arrived.acquire()
        await bus.set_address("router", new)
        watch = asyncio.create_task(requests.watch())
        assert await asked == ANSWER and requests.client.url == new
        watch.cancel()
        requests.close()
