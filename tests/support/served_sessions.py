"""A server of sessions with a client of one of them, in front of an engine or of a policy that says what it is told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from miles_async.config.schema import Rollout
from miles_async.engines.client import EngineClient
from miles_async.rollout.interface import Ask
from miles_async.rollout.sessions import server as server_module
from miles_async.rollout.sessions.server import SessionServer, serve_sessions
from miles_async.rollout.sessions.session import Session
from miles_async.rollout.tool_calls import qwen
from miles_async.text.tokenizer import Tokenizer

HI: list[Any] = [{"role": "user", "content": "?"}]
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


class Served:
    """A server, a client of one of its sessions, and what the engine was asked and answered."""

    def __init__(self, server: SessionServer, asked: list[Any], answered: list[Any]) -> None:
        self.server, self.asked, self.answered = server, asked, answered
        self.id, self.session = server.begin(seed=7)
        self.client = self.client_of(self.id)

    def client_of(self, session_id: str) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.server.base_url(session_id), api_key=self.server.api_key, max_retries=0)

    async def say(self, messages: list[Any], **options: Any) -> Any:
        return await self.client.chat.completions.create(model="any", messages=messages, **options)

    def readable(self) -> list[dict[str, Any]]:
        return [server_module._readable(sample) for sample in self.session.samples(0, b"")]


@contextlib.asynccontextmanager
async def served(ask: Ask, tokenizer: Tokenizer, **rollout: Any) -> AsyncIterator[Served]:
    asked, answered = [], []

    async def recorded(body: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(body)
        answers = await ask(body)
        answered.extend(answers)
        return answers

    config = Rollout(**{"rollout_max_response_len": 40, **rollout})

    def make(name: str, seed: int) -> Session:
        return Session(name, seed, config, tokenizer, recorded, qwen)

    async with serve_sessions(SessionServer("tiny", make)) as server:
        one = Served(server, asked, answered)
        async with one.client:
            yield one


@contextlib.asynccontextmanager
async def before_engine(url: str, model: Path, **rollout: Any) -> AsyncIterator[Served]:
    async with aiohttp.ClientSession() as session:
        client = EngineClient(url, session)

        async def ask(body: dict[str, Any]) -> Any:
            return await client.generate(body, timeout=60)

        async with served(ask, Tokenizer(model), **rollout) as one:
            yield one


def scripted(tokenizer: Tokenizer, *texts: str) -> Ask:
    """A policy that says ``texts``, one after the other."""
    left = list(texts)

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        tokens = tokenizer.encode(left.pop(0))
        meta = {
            "finish_reason": {"type": "stop", "matched": 1},
            "output_token_logprobs": [[-0.25, token, None] for token in tokens],
            "weight_versions": [{"version": "3", "start": 0, "end": len(tokens)}],
        }
        return [{"output_ids": tokens, "meta_info": meta}]

    return ask
