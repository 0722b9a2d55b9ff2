"""Turns of a session that do not come to an end: the engine fails, the client leaves, or the session is read meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from served_sessions import HI, scripted, served

from miles_async.engines.client import EngineError
from miles_async.text.tokenizer import Tokenizer


async def test_a_failing_engine_reaches_the_agent_as_an_error_and_the_turn_can_be_asked_for_again(model: Path) -> None:
    errors = [EngineError("e", "/generate", "no answer"), EngineError("e", "/generate", "too long", 400)]
    tokenizer = Tokenizer(model)
    good = scripted(tokenizer, "5<eos>")

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        if errors:
            raise errors.pop(0)
        return await good(body)

    async with served(ask, tokenizer) as one:
        with pytest.raises(openai.InternalServerError, match="no answer"):
            await one.say(HI)
        with pytest.raises(openai.BadRequestError, match="too long"):
            await one.say(HI)
        assert one.readable() == []
        assert (await one.say(HI)).choices[0].message.content == "5"
        assert len(one.readable()) == 1


@pytest.mark.parametrize("how", ["the client leaves", "the session ends"])
async def test_a_request_nobody_waits_for_ends_and_adds_nothing(model: Path, how: str) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()
        raise AssertionError

    async with served(ask, Tokenizer(model)) as one:
        request = asyncio.create_task(one.say(HI))
        await asyncio.wait_for(started.wait(), 10)
        if how == "the client leaves":
            request.cancel()
        else:
            one.server.end(one.id)
        with pytest.raises((asyncio.CancelledError, openai.NotFoundError)):
            await asyncio.wait_for(request, 10)
        await asyncio.wait_for(ended.wait(), 10)
        assert one.readable() == []


async def test_a_turn_under_way_is_in_no_sample(model: Path) -> None:
    tokenizer, started = Tokenizer(model), asyncio.Event()
    first = scripted(tokenizer, "5<eos>")

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        if body["rid"][0].endswith(".0.0"):
            return await first(body)
        started.set()
        return await asyncio.get_running_loop().create_future()

    async with served(ask, tokenizer) as one:
        said = (await one.say(HI)).choices[0].message
        before = one.readable()
        request = asyncio.create_task(one.say([*HI, said, {"role": "user", "content": "+"}]))
        await asyncio.wait_for(started.wait(), 10)
        assert one.readable() == before
        request.cancel()
