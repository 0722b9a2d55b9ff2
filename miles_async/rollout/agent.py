"""A rollout played by an agent that knows nothing of training: the built-in generate function "agent".

    ticket ─► session ─► agent_function(task) ──openai client──► /sessions/ID/v1/chat/completions ─► engines
                 └─ its branches become samples ◄─ reward (or None: reward.rm_type grades what the policy said last)

Promises: the agent's session is its own and ends with it; what it was answered, and nothing else, is in the samples; an agent
that raises, makes no request or exceeds ``rollout.agent_timeout_s`` costs its one rollout, with the reason. A plain function
runs in a thread, an ``async`` one on the worker's event loop, which it must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bus.messages import Sample, Ticket
from miles_async.hooks.calls import shown
from miles_async.hooks.daemon_thread import in_thread
from miles_async.hooks.environment import environment
from miles_async.rewards.graded import graded, numbers
from miles_async.rollout.failures import RolloutError
from miles_async.rollout.first_failures import OwnCancellation, contained
from miles_async.rollout.interface import Ask, RolloutContext
from miles_async.rollout.registry import AGENT
from miles_async.rollout.sessions.server import SessionServer, serve_sessions
from miles_async.rollout.sessions.session import Session
from miles_async.rollout.tool_parser import tool_call_parser
from miles_async.text.tokenizer import MARK, TokenizerError
from miles_async.text.unicode import well_formed, words_of

LOOPBACK = "127.0.0.1"  # where sessions are served
PART = "agent"  # the name of a reward that is a plain number, among ``reward_parts``


class AgentError(RolloutError):
    """The agent gave up, was too slow, asked nothing of the policy, or returned no reward; one line."""


@dataclass(frozen=True)
class AgentTask:
    """What an agent is given. ``base_url``, ``api_key``: for an OpenAI client, of this rollout alone. ``prompt``: its text;
    ``messages``: the row's own, or the prompt as a user's. ``label``, ``metadata``: of the row. ``index``: which rollout of
    its group."""

    base_url: str
    api_key: str
    model: str
    prompt: str
    messages: list[dict[str, Any]]
    label: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    group_id: str = ""
    index: int = 0


@dataclass(frozen=True)
class _Agents:
    """The agents of one worker."""

    server: SessionServer
    function: Callable[[AgentTask], Any]
    asks: dict[str, Ask]  # of rollouts whose sessions begin just now, by name


async def generate(ticket: Ticket, index: int, context: RolloutContext) -> list[Sample]:
    """Rollout ``index`` of the group: a sample of each branch of the agent's session, all with the agent's reward.

    Raises AgentError.
    """
    agents = await context.resource("agents", lambda: _open(context))
    server, name = agents.server, f"{ticket.group_id}.{index}"
    agents.asks[name] = context.ask
    try:
        session_id, session = server.begin(ticket.sampling_seed + index, name)
    finally:
        del agents.asks[name]
    task = AgentTask(
        base_url=server.base_url(session_id),
        api_key=server.api_key,
        model=server.model,
        prompt=ticket.prompt,
        messages=ticket.metadata.get("messages") or [{"role": "user", "content": _asked(ticket, context)}],
        label=ticket.label,
        metadata=ticket.metadata,
        group_id=ticket.group_id,
        index=index,
    )
    try:
        result = await _play(agents.function, task, context.config.rollout.agent_timeout_s)
        samples = session.samples(index, ticket.prompt_tokens)
    finally:
        server.end(session_id)
    if not samples:
        raise AgentError("the agent asked nothing of the policy: there is no completion in its session")
    return samples if result is None else _rewarded(samples, result, context.config.reward.reward_key)


def _asked(ticket: Ticket, context: RolloutContext) -> str:
    """What a prompt that was given as text says: without what the chat template has put around it, which it will put there
    again."""
    if not context.config.data.apply_chat_template:
        return ticket.prompt
    chat, tools = [{"role": "user", "content": MARK}], ticket.metadata.get("tools")
    try:
        before, _, behind = context.tokenizer.render_chat(chat, tools=tools).partition(MARK)
    except TokenizerError:
        return ticket.prompt
    if not (ticket.prompt.startswith(before) and ticket.prompt.endswith(behind)):
        return ticket.prompt
    return ticket.prompt[len(before) : len(ticket.prompt) - len(behind)]


async def _play(function: Callable[[AgentTask], Any], task: AgentTask, timeout_s: float) -> Any:
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
                with contained():
                    return await function(task)
            result = await in_thread(lambda: function(task))
            with contained():
                return await result if inspect.isawaitable(result) else result
    except Exception as error:
        if deadline.expired():
            raise AgentError(f"the agent was not done within rollout.agent_timeout_s = {timeout_s:g} s") from None
        what = str(error) if isinstance(error, OwnCancellation) else words_of(error)
        raise AgentError(f"the agent failed: {what}") from error


def _rewarded(samples: list[Sample], result: Any, reward_key: str | None) -> list[Sample]:
    try:
        grade = graded(numbers(result), reward_key)
    except Exception as error:
        raise AgentError(f"the agent returned {shown(result)}: {well_formed(str(error))}") from None
    parts = grade.parts or {PART: grade.reward}
    return [msgspec.structs.replace(sample, reward=grade.reward, reward_parts=parts) for sample in samples]


@contextlib.asynccontextmanager
async def _open(context: RolloutContext) -> AsyncIterator[_Agents]:
    (function,), parse_calls = AGENT.functions(context.config), tool_call_parser(context.config)

    asks: dict[str, Ask] = {}

    def make(name: str, seed: int) -> Session:
        ask = asks.get(name, context.ask)
        return Session(name, seed, context.config.rollout, context.tokenizer, ask, parse_calls, context.bounds)

    logging.getLogger("httpx").setLevel(logging.WARNING)  # an OpenAI client's: it logs a line for every request
    with environment(_past_proxies()):
        async with serve_sessions(SessionServer(context.config.model.hf_checkpoint, make)) as server:
            yield _Agents(server, function, asks)


def _past_proxies() -> dict[str, str]:
    """Variables by which an OpenAI client asks no proxy of the site for what lies on loopback."""
    found = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    return {name: f"{value},{LOOPBACK}" if value else LOOPBACK for name, value in found.items()}
