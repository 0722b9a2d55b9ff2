"""Agents for tests: written against the ``openai`` client, and knowing nothing of training."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from openai import AsyncOpenAI, OpenAI

from miles_async.rollout.agent import AgentTask

THREAD_ENDED = threading.Event()  # of a blocking agent whose session ended before it


def client_of(task: AgentTask) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=task.base_url, api_key=task.api_key, max_retries=0)


async def play(task: AgentTask) -> float:
    """Two turns."""
    async with client_of(task) as client:
        messages: list[Any] = list(task.messages)
        for feedback in ("+", "-"):
            answer = await client.chat.completions.create(model=task.model, messages=messages, max_tokens=3)
            messages += [answer.choices[0].message.model_dump(), {"role": "user", "content": feedback}]
    return float(task.index)


async def ask_once(task: AgentTask) -> None:
    """A single turn, to be graded by somebody else."""
    async with client_of(task) as client:
        await client.chat.completions.create(model=task.model, messages=task.messages)  # type: ignore[arg-type]


async def branch(task: AgentTask) -> dict[str, float]:
    """Asks twice for the second turn, at once, and rewrites the history for a last one."""
    async with client_of(task) as client:

        async def say(messages: list[Any]) -> Any:
            answer = await client.chat.completions.create(model=task.model, messages=messages, max_tokens=3)
            return answer.choices[0].message.model_dump()

        first = await say(task.messages)
        second = [*task.messages, first, {"role": "user", "content": "+"}]
        one, _ = await asyncio.gather(say(second), say(second))
        await say([*second, one, {"role": "user", "content": "-"}])
        await say([{"role": "user", "content": "7"}])
    return {"won": 0.5 + task.index, "turns": 5.0}


async def play_or_branch(task: AgentTask) -> dict[str, float]:
    """The one or the other, by turns."""
    return await branch(task) if task.index % 2 else {"won": await play(task)}


def block(task: AgentTask) -> float:
    """Two turns, from a thread."""
    with OpenAI(base_url=task.base_url, api_key=task.api_key, max_retries=0) as client:
        for _ in range(2):
            client.chat.completions.create(model=task.model, messages=task.messages)  # type: ignore[arg-type]
    return 1.0


async def ask_nothing(task: AgentTask) -> float:
    return 1.0


async def return_a_word(task: AgentTask) -> str:
    await ask_once(task)
    return "good"


async def give_up(task: AgentTask) -> float:
    await ask_once(task)
    raise LookupError("no such\nsandbox")


async def ask_for_too_much(task: AgentTask) -> float:
    async with client_of(task) as client:
        await client.chat.completions.create(model=task.model, messages=[])
    return 1.0


async def play_alone() -> float:
    return 1.0


async def dawdle(task: AgentTask) -> float:
    await asyncio.Event().wait()
    return 1.0


def ask_without_end(task: AgentTask) -> float:
    """Cannot be stopped from outside; its session can be ended."""
    try:
        with OpenAI(base_url=task.base_url, api_key=task.api_key, max_retries=0) as client:
            while True:
                client.chat.completions.create(model=task.model, messages=task.messages, max_tokens=1)  # type: ignore[arg-type]
    finally:
        THREAD_ENDED.set()
