"""What is well-formed and untrue is refused where it is known to be: by the ledger, the broadcaster, the router, the watch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from fake_engines import FakeEngine, respond, served
from ledger_steps import deal, make_ready

from actors.learner_batches import _is_step
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, Ledger
from bus.codec import encode
from bus.messages import Control, ReadyGroup, Ticket
from miles_async.config.schema import Data, Model, Rollout, RunConfig
from miles_async.engines import client as engine_client
from miles_async.engines.client import EngineClient, EngineError
from miles_async.http import client_connection
from miles_async.http.client import Upstream
from miles_async.http.client_connection import UpstreamError
from miles_async.rollout.generate import AnswerError, generate_group
from miles_async.router.app import RouterApp


async def test_a_description_that_the_ledger_did_not_publish_is_not_taken_for_one(bus: Bus) -> None:
    """It would name a payload that is not there: the learner could never train the batch that it had recorded."""
    ledger = Ledger(bus)
    await deal(ledger, 1)
    (ready,) = await make_ready(ledger, 1)
    for forged in (
        msgspec.structs.replace(ready, payload_key="nowhere"),
        ReadyGroup(group_id="0-77-0", payload_key="x", oldest_version=0, newest_version=0, n_tokens=1, published=1.0),
    ):
        await bus.redis.xadd(bus.key("samples"), {"m": encode(forged)})
    groups, _ = await ledger.ready_groups("0", block_ms=1)
    assert groups == [ready]
    assert bus.refused["samples"] == 2
    assert await bus.redis.xlen(bus.key("samples")) == 1


async def test_a_second_ticket_of_a_group_is_not_taken_for_its_own(bus: Bus) -> None:
    ledger = Ledger(bus)
    await ledger.prepare()
    await deal(ledger, 1)
    forged = Ticket(group_id="0-0-0", prompt_tokens=b"", sampling_seed=9)
    await bus.redis.xadd(bus.key("tickets"), {"g": "0-0-0", "m": encode(forged)})
    (claimed,) = await ledger.next_tickets("w", "w/1", 10, 60_000)
    assert claimed.ticket.sampling_seed != 9
    assert bus.refused["tickets"] == 1


async def test_an_unknown_command_is_counted_in_the_heartbeat_and_stops_nobody(bus: Bus, tmp_path: Path) -> None:
    config = RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="x"))
    ctx = ActorContext(ActorSpec("dealer", "dealer", 0, "", config, tmp_path, "", "", bus.run_id, 1), bus)
    await bus.publish("control", Control(command="dance"))
    await bus.publish("control", Control(command="learner_stop", reason="no number"))
    obeying = asyncio.create_task(ctx.obey())
    async with asyncio.timeout(10):
        while not bus.refused["control"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        ctx.refusals.note(400, "x")
        assert ctx.heartbeat().refused == 2 and not ctx.stop.is_set()
        await bus.publish("control", Control(command="stop"))
        await obeying
    assert ctx.stop.is_set()
    assert [_is_step(text) for text in ("7", "", "no number", "²", "9" * 5000)] == [True, False, False, False, False]


ODD_ANSWERS: list[Any] = [
    None,
    5,
    {},
    "text",
    [],
    [{}],
    [{"meta_info": None}],
    [{"meta_info": {"finish_reason": "stop"}}],
    [{"meta_info": {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[]]}, "output_ids": [1]}],
    [
        {
            "meta_info": {"finish_reason": {"type": "stop"}, "output_token_logprobs": [["a", 2**70]]},
            "output_ids": [2**70],
        }
    ],
]


@pytest.mark.parametrize("odd", ODD_ANSWERS)
async def test_an_engine_that_answers_nonsense_costs_the_attempt_and_not_the_worker(odd: Any) -> None:
    async def ask(_: dict[str, Any]) -> Any:
        return odd

    ticket = Ticket(group_id="0-0-0", prompt_tokens=b"\1\0\0\0", sampling_seed=1)
    with pytest.raises(AnswerError):
        await generate_group(ticket, Rollout(n_samples_per_prompt=1), ask, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [b"[1]", b'"x"', b"\xff\xfe", b"[" * 50_000, b"{"])
async def test_an_engine_that_tells_nonsense_of_itself_is_an_engines_error(body: bytes) -> None:
    async def odd(engine: FakeEngine, scope: Any, _: bytes, receive: Any, send: Any) -> None:
        await respond(send, 200, body, [(b"content-type", b"text/plain; charset=unheard-of")])

    async with served(FakeEngine("e", odd)) as url, aiohttp.ClientSession() as session:
        with pytest.raises(EngineError):
            await EngineClient(url, session).model_info()


async def test_an_answer_that_is_too_long_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "MAX_ANSWER_BYTES", 1000)
    monkeypatch.setattr(client_connection, "MAX_BODY_BYTES", 1000)

    async def long(engine: FakeEngine, scope: Any, _: bytes, receive: Any, send: Any) -> None:
        headers = [(b"x", b"y" * 100_000)] if scope["path"] == "/head" else []
        await respond(send, 200, b"x" * 5000, headers)

    async with served(FakeEngine("e", long)) as url, aiohttp.ClientSession() as session:
        with pytest.raises(EngineError, match="more than 1000 bytes"):
            await EngineClient(url, session).model_info()
        engine = Upstream(url)
        answer = await engine.request(b"GET", b"/body")
        with pytest.raises(UpstreamError, match="more than 1000 bytes"):
            await answer.body()
        answer.done()
        with pytest.raises(UpstreamError, match="head"):
            await engine.request(b"GET", b"/head")
        engine.close()


async def test_a_url_that_is_none_is_no_engine() -> None:
    app = RouterApp()
    for url in (
        "",
        "x",
        "http://",
        "http://[",
        "http://h:99999",
        "http://h:x",
        "http://a b",
        "ftp://h",
        "http://h\r\nx: y",
    ):
        with pytest.raises(ValueError, match="http://host:port"):
            app.add("e", url)
    assert not app.engines
    with pytest.raises(UpstreamError):
        await Upstream("http://a..b:1").request(b"GET", b"/")
