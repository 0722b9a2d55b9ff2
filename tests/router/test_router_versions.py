"""Requests that demand a weight version, against real HTTP servers while versions change."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_engines import FakeEngine, Receive, Send, fleet, respond
from multidict import CIMultiDict

from miles_async.router.policies.choice import make_policy

pytestmark = pytest.mark.usefixtures("with_and_without_connections")

EXACT, LEAST = "x-weight-version", "x-min-weight-version"


class Serving(FakeEngine):
    """Answers with the version it serves; where ``gate`` is not set it holds the answer back until it is."""

    def __init__(self, name: str, version: int) -> None:
        super().__init__(name, self.answer)
        self.version = version
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, _: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        first = self.version
        await self.gate.wait()
        spans = [{"version": str(version), "start": 0} for version in sorted({first, self.version})]
        meta = {"weight_version": str(self.version), "weight_versions": spans}
        await respond(send, 200, json.dumps({"engine": self.name, "meta_info": meta}).encode())


async def test_a_request_reaches_only_engines_that_serve_what_it_demands() -> None:
    old, new = Serving("old", 3), Serving("new", 4)
    async with fleet(old, new, wait_s=0.1) as (app, url, urls, session):
        app.add("old", urls[0], 3)
        app.add("new", urls[1], 4)
        for headers, expected in (
            ({EXACT: "3"}, "old"),
            ({EXACT: "4"}, "new"),
            ({LEAST: "4"}, "new"),
            ({LEAST: "4", EXACT: "4"}, "new"),
        ):
            for _ in range(3):
                async with session.post(url + "/generate", data=b"x", headers=headers) as answer:
                    assert (await answer.json(content_type=None))["engine"] == expected
        async with session.post(url + "/generate", data=b"x", headers={LEAST: "5"}) as answer:
            message = (await answer.json())["error"]["message"]
            assert answer.status == 503
            assert "weight version 5 or a later one" in message
            assert "old (weight version 3, up)" in message and "new (weight version 4, up)" in message


async def test_a_request_waits_for_the_version_that_it_demands() -> None:
    engine = Serving("a", 8)
    async with fleet(engine, wait_s=20.0) as (app, url, urls, session):
        waiting = asyncio.create_task(session.post(url + "/generate", data=b"x", headers={LEAST: "8"}))
        async with session.post(url + "/generate", data=b"x") as answer:  # one that came later, and waits for nothing
            assert answer.status == 200
        assert not waiting.done() and len(engine.seen) == 1
        app.add("a", urls[0], 8)
        async with await waiting as answer:
            assert answer.status == 200


async def test_an_exact_version_is_not_asked_of_an_engine_that_is_being_updated() -> None:
    a, b = Serving("a", 0), Serving("b", 0)
    async with fleet(a, b, wait_s=0.1) as (app, url, _, session):
        app.set_updating("a", True)
        for _ in range(3):
            async with session.post(url + "/generate", data=b"x", headers={EXACT: "0"}) as answer:
                assert (await answer.json(content_type=None))["engine"] == "b"
        app.set_updating("b", True)
        async with session.post(url + "/generate", data=b"x", headers={EXACT: "0"}) as answer:
            assert answer.status == 503 and "updating" in (await answer.json())["error"]["message"]
        async with session.post(url + "/generate", data=b"x", headers={LEAST: "0"}) as answer:
            assert answer.status == 200


async def test_an_answer_that_an_update_has_mixed_is_asked_of_another_engine() -> None:
    """The router hears of an update after it has begun, so it looks at the answer, too."""
    mixed, pure = Serving("mixed", 0), Serving("pure", 0)
    async with fleet(mixed, pure, wait_s=5.0) as (app, url, urls, session):
        mixed.gate.clear()
        app.set_updating("pure", True)  # so that the other one is chosen
        waiting = asyncio.create_task(session.post(url + "/generate", data=b"x", headers={EXACT: "0"}))
        async with asyncio.timeout(10):
            await mixed.arrived.acquire()
        mixed.version = 1
        app.add("mixed", urls[0], 1)
        app.set_updating("pure", False)
        mixed.gate.set()
        async with await waiting as answer:
            content = await answer.json(content_type=None)
        assert content["engine"] == "pure" and content["meta_info"]["weight_versions"] == [{"version": "0", "start": 0}]
        assert app.failovers == 1 and app.engines["mixed"].state == "up"


async def test_an_engine_that_serves_less_than_it_was_announced_with_is_found_and_taken_out() -> None:
    liar, honest = Serving("liar", 2), Serving("honest", 5)
    async with fleet(liar, honest, breaker_failures=2) as (app, url, urls, session):
        app.add("liar", urls[0], 5)
        app.add("honest", urls[1], 5)
        for _ in range(6):
            async with session.post(url + "/generate", data=b"x", headers={LEAST: "5"}) as answer:
                assert (await answer.json(content_type=None))["engine"] == "honest"
        assert len(liar.seen) == 2
        assert "answered with weight version 2" in app.engines["liar"].trouble


@pytest.mark.parametrize(
    "headers",
    [
        [(EXACT, "seven")],
        [(EXACT, "-1")],
        [(LEAST, "")],
        [(LEAST, "1.5")],
        [(LEAST, "9" * 16)],
        [(LEAST, "5"), (EXACT, "4")],
        [(EXACT, "4"), (EXACT, "4")],
    ],
)
async def test_a_header_that_is_no_version_is_a_400_and_reaches_no_engine(headers: list[tuple[str, str]]) -> None:
    engine = FakeEngine("a")
    async with fleet(engine) as (app, url, _, session):
        async with session.post(url + "/generate", data=b"x", headers=CIMultiDict(headers)) as answer:
            assert answer.status == 400
            assert "weight-version" in (await answer.json())["error"]["message"]
        assert app.refusals["400"] == 1
        async with session.post(url + "/generate", data=b"x") as answer:
            assert answer.status == 200
    assert len(engine.seen) == 1


async def test_requests_with_one_routing_key_share_an_engine_and_both_headers_name_it() -> None:
    engines = [FakeEngine(name) for name in "abcd"]
    async with fleet(*engines, policy=make_policy("consistent_hash")) as (_, url, _, session):
        for key in ("k1", "k2", "k3"):
            seen = set()
            for header in ("x-routing-key", "X-SMG-Routing-Key") * 3:
                async with session.post(url + "/generate", data=b"x", headers={header: key}) as answer:
                    seen.add(await answer.read())
            assert len(seen) == 1
