"""How many tokens a second an engine generates, from answers that it gives to others' questions."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fake_engines import FakeEngine, Receive, Send, fleet, respond

from miles_async.router.observe.pace import LEAST_S, Pace, Paces


class Counting(FakeEngine):
    """Says of its load what ``says`` holds, and counts who asks."""

    def __init__(self, **says: float) -> None:
        super().__init__("a", self.answer)
        self.says, self.asked = says, 0

    async def answer(self, _: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        self.asked += 1
        await respond(send, 200, json.dumps({"loads": [self.says]}).encode())


Look = Callable[[float], Awaitable[Pace | None]]


async def looked_at(engine: Counting, test: Callable[[Look], Awaitable[None]]) -> None:
    """``test`` is given: let so many seconds pass, have somebody ask the engine, and look at its pace."""
    now = 100.0
    async with fleet(engine, clock=lambda: now) as (app, _, _, _):
        paces, routed = Paces(), app.engines["a"]

        async def look(seconds: float) -> Pace | None:
            nonlocal now
            now += seconds
            if seconds:
                await app.loads.load(routed)
            return paces.look([routed], app.loads).get(routed)

        await test(look)


async def test_what_an_engine_counted_between_two_answers_is_said_once_and_nobody_is_asked_for_it() -> None:
    engine = Counting(num_running_reqs=3, num_generated_tokens=1000, gen_throughput=7.0)

    async def test(look: Look) -> None:
        assert await look(0) is None and engine.asked == 0
        assert await look(1) == Pace(3, None)  # since when it counts is not known
        engine.says["num_generated_tokens"] += 50
        assert await look(2) == Pace(3, 25.0)
        assert await look(0) is None and engine.asked == 2
        engine.says["num_running_reqs"] = 0
        assert await look(4) == Pace(0, 0.0)

    await looked_at(engine, test)


async def test_a_count_that_began_anew_says_nothing_and_two_that_are_close_are_not_compared() -> None:
    engine = Counting(num_running_reqs=1, num_generated_tokens=1000)

    async def test(look: Look) -> None:
        await look(1)
        engine.says["num_generated_tokens"] = 10
        assert await look(1) == Pace(1, None)
        engine.says["num_generated_tokens"] = 15
        assert await look(LEAST_S / 2) is None
        engine.says["num_generated_tokens"] = 20
        assert await look(LEAST_S / 2) == Pace(1, 10 / LEAST_S)

    await looked_at(engine, test)


async def test_an_engine_that_counts_nothing_is_believed_while_it_has_requests() -> None:
    engine = Counting(num_running_reqs=2, gen_throughput=70.5)

    async def test(look: Look) -> None:
        assert await look(1) == Pace(2, 70.5)
        engine.says["num_running_reqs"] = 0
        assert await look(1) == Pace(0, 0.0)
        del engine.says["num_running_reqs"], engine.says["gen_throughput"]
        assert await look(1) == Pace(None, None)

    await looked_at(engine, test)
