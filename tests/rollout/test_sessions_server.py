"""The server of sessions: who may speak to it, what it refuses in OpenAI's form, how a session begins and ends over HTTP."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI
from served_sessions import HI, TOOL, before_engine

from miles_async.rollout.sessions import server as server_module


async def test_without_the_key_or_the_session_nothing_is_served(engine_url: str, model: Path) -> None:
    async with before_engine(engine_url, model) as one:
        wrong = AsyncOpenAI(base_url=one.server.base_url(one.id), api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            await wrong.chat.completions.create(model="x", messages=HI)
        with pytest.raises(openai.NotFoundError, match="there is no session"):
            await one.client_of("nothere").chat.completions.create(model="x", messages=HI)
        one.session.close()  # as it is for a request that came in while it was being ended
        with pytest.raises(openai.NotFoundError, match="has ended"):
            await one.say(HI)
        one.server.end(one.id)
        with pytest.raises(openai.NotFoundError, match="it has ended, or never was"):
            await one.say(HI)
        assert one.server.refusals == {"401": 1, "404": 3}
        assert not one.asked
        assert one.server.url.startswith("http://127.0.0.1:")


async def test_a_session_can_be_opened_read_and_ended_over_http(engine_url: str, model: Path) -> None:
    async with before_engine(engine_url, model) as one:
        headers = {"Authorization": f"Bearer {one.server.api_key}"}
        async with aiohttp.ClientSession(one.server.url, headers=headers) as http:
            opened = await (await http.post("/sessions", json={"sampling_seed": 7})).json()
            async with AsyncOpenAI(base_url=opened["base_url"], api_key=one.server.api_key) as client:
                answer = await client.chat.completions.create(model="x", messages=HI, max_tokens=5)
            shown = await (await http.get(f"/sessions/{opened['id']}")).json()
            assert (shown["turns"], shown["answer"]) == (1, answer.choices[0].message.content)
            assert shown["samples"][0]["tokens"] == one.answered[0]["output_ids"]
            assert (await http.delete(f"/sessions/{opened['id']}")).status == 200
            assert (await http.get(f"/sessions/{opened['id']}")).status == 404
            assert (await http.post("/sessions", json={"sampling_seed": -1})).status == 400


JUNK: list[Any] = [
    b"",
    b"[]",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    {},
    {"messages": []},
    {"messages": HI * 2 + [5]},
    {"messages": "?"},
    {"messages": [{"role": "pope", "content": "?"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
    {"messages": HI, "tools": [{"type": "function"}]},
    {"messages": HI, "tools": {"a": 1}},
    {"messages": HI, "n": 2},
    {"messages": HI, "max_tokens": 0},
    {"messages": HI, "max_tokens": 1.5},
    {"messages": HI, "temperature": -1},
    {"messages": HI, "temperature": "warm"},
    {"messages": HI, "top_p": 1.5},
    {"messages": HI, "stop": ["x" * 5000]},
    {"messages": HI, "stop": [str(i) for i in range(100)]},
    {"messages": HI, "logit_bias": {"5": 100}},
    {"messages": HI, "presence_penalty": 1},
    {"messages": HI, "top_logprobs": 5},
    {"messages": HI, "tool_choice": "required"},
    {"messages": HI, "response_format": {"type": "json_object"}},
    {"messages": HI, "stream": "yes"},
    {"messages": [{"role": "user", "content": "5" * 5000}]},  # more than the model's context
    {"messages": [{"role": "system", "content": ""}] * 3000},
]


async def test_every_malformed_request_is_a_counted_4xx_in_openais_form_and_a_good_one_is_answered_after(
    engine_url: str, model: Path
) -> None:
    rng = random.Random(1)
    good = json.dumps({"messages": HI, "max_tokens": 3, "stop": ["5"], "tools": [TOOL]}).encode()
    bodies = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in JUNK]
    for _ in range(150):  # a good one with a few bytes of it changed
        body = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        bodies.append(bytes(body))
    async with before_engine(engine_url, model) as one:
        headers = {"Authorization": f"Bearer {one.server.api_key}"}
        path, refused = f"/sessions/{one.id}/v1/chat/completions", 0
        async with aiohttp.ClientSession(one.server.url, headers=headers) as http:
            for number, body in enumerate(bodies):
                async with http.post(path, data=body) as response:
                    content = await response.json(content_type=None)
                    assert 400 <= response.status < 500 or (response.status == 200 and number >= len(JUNK)), (
                        body[:200],
                        content,
                    )
                    if response.status != 200:
                        refused += 1
                        assert set(content["error"]) == {"message", "type", "param", "code"}, content
                        assert "\n" not in content["error"]["message"]
            for method, where in (
                ("GET", path),
                ("POST", "/v1/chat/completions"),
                ("PUT", "/sessions"),
                ("GET", "/..%2f"),
            ):
                async with http.request(method, where) as response:
                    assert response.status in (404, 405)
                    assert "message" in (await response.json())["error"]
                    refused += 1
        assert one.server.refusals.total() == refused > 150
        assert (await one.say(HI, max_tokens=3)).choices[0].finish_reason


async def test_a_body_that_is_too_long_is_refused_before_it_is_held(
    engine_url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_BODY_BYTES", 1000)
    async with before_engine(engine_url, model) as one:
        with pytest.raises(openai.APIStatusError) as refused:
            await one.say([{"role": "user", "content": "5" * 2000}])
        assert refused.value.status_code == 413
        assert (await one.say(HI, max_tokens=3)).choices[0].finish_reason
