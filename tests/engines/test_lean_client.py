"""The client of who asks all the time says of every answer what the other one says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from fake_engines import FakeEngine, respond, served

from miles_async.engines.client import EngineClient, EngineError
from miles_async.engines.lean_client import LeanEngineClient

ANSWERS = [
    (200, b'[{"text": "x", "output_ids": [1]}]'),
    (200, b""),
    (200, b'{"success": false}'),
    (200, b"[NaN, Infinity]"),
    (200, b'["\\ud83d"]'),
    (200, b"\xff\xfe"),
    (400, b'{"error": "no"}'),
    (503, b"not now"),
]


async def said(client: EngineClient, body: dict[str, Any], timeout: float = 20.0) -> Any:
    """The answer, or what is said of its error; the engine's address aside."""
    try:
        return repr(await client.generate(body, timeout, routing_key="g"))
    except EngineError as error:
        return (error.endpoint, error.answer, error.status)


@pytest.mark.parametrize(("status", "content"), ANSWERS)
async def test_both_clients_say_the_same_of_an_answer(status: int, content: bytes) -> None:
    seen: list[Any] = []

    async def engine(_: FakeEngine, scope: Any, body: bytes, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        seen.append((json.loads(body), [headers.get(name) for name in (b"x-routing-key", b"authorization")]))
        await respond(send, status, content)

    body = {"rid": ["a"], "input_ids": [[1, 2]], "text": "\ud83d ü", "sampling_params": [{"temperature": 1.0}]}
    async with served(FakeEngine("e", engine)) as url, aiohttp.ClientSession() as session:
        lean = LeanEngineClient(url, "key", vocab_size=16)
        answers = [await said(client, body) for client in (EngineClient(url, session, "key"), lean)]
        lean.close()
    assert answers[0] == answers[1]
    assert seen == [(body, [b"g", b"Bearer key"])] * 2


async def test_no_answer_in_time_and_nobody_there_are_an_engines_errors() -> None:
    async def silent(_: FakeEngine, scope: Any, body: bytes, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async with served(FakeEngine("e", silent)) as url, asyncio.timeout(20):
        client = LeanEngineClient(url)
        assert await said(client, {}, timeout=0.1) == ("/generate", "no answer within 0.1 s", None)
    with pytest.raises(EngineError) as refused:
        await LeanEngineClient("http://127.0.0.1:9").generate({})
    assert refused.value.refused and refused.value.status is None


async def test_an_id_without_a_row_is_not_sent() -> None:
    with pytest.raises(EngineError, match="not sent: input_ids of prompt 0: token id 16") as error:
        await LeanEngineClient("http://127.0.0.1:9", vocab_size=16).generate({"input_ids": [[16]]})
    assert error.value.status == 400
