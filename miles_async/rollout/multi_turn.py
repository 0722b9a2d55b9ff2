"""A conversation of the policy with tools, as one trainable sequence: the built-in generate function "multi_turn".

    prompt ─► turn ─► calls? ──none──► end
               ▲        │
               └─ answers of the tools, rendered by the chat template, masked

Promises: the sequence is what the engine sampled and what the template put between, token for token; only the policy's own
tokens are trained on; the response, tools included, has at most ``rollout_max_response_len`` tokens, and fits the engines'
context behind the prompt. A tool that raises or is too slow answers with that, and a text of its that is no UTF-8 with what of
it is: leaving the sample out would reward the policy for breaking its tools.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any

from bus.codec import TOKENS, unpack
from bus.messages import Sample, Ticket
from miles_async.rollout.first_failures import contained
from miles_async.rollout.generate import Turn, complete
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.registry import EXECUTE_TOOL
from miles_async.rollout.tool_parser import tool_call_parser
from miles_async.rollout.tool_turn import tool_turn_tokens
from miles_async.rollout.trajectory import Trajectory
from miles_async.text.unicode import well_formed, words_of

Execute = Callable[[str, dict[str, Any], dict[str, Any]], Awaitable[str]]


async def generate(ticket: Ticket, index: int, context: RolloutContext) -> list[Sample]:
    """Rollout ``index`` of the group: up to ``max_turns`` turns, until one calls no tool.

    The tools see the row's metadata in a copy of this rollout's own, which lasts from call to call. finish_reason:
    "length" where the tokens or the turns ran out. Raises what :func:`complete` raises, RolloutError of the
    parser, and TemplateError.
    """
    parse, (execute,) = tool_call_parser(context.config), EXECUTE_TOOL.functions(context.config)
    config, tokenizer, bounds = context.config.rollout, context.tokenizer, context.bounds
    metadata = copy.deepcopy(ticket.metadata)
    trajectory = Trajectory(unpack(ticket.prompt_tokens, TOKENS).tolist())
    finish = "length"
    for number in range(config.max_turns):
        turn = Turn(trajectory, rid=f"{ticket.group_id}.{index}.{number}", seed=ticket.sampling_seed + index)
        await complete([turn], config, context.ask, bounds)
        if turn.finish_reason == "length":
            break
        calls = parse(tokenizer.decode(trajectory.tokens[turn.start :], skip_special_tokens=False))
        if not calls:
            finish = "stop"
            break
        if number + 1 == config.max_turns:
            break
        answers = [(call["name"], await _answer(execute, call, metadata, config.tool_timeout_s)) for call in calls]
        told = tool_turn_tokens(tokenizer, answers, trajectory.tokens[-1])
        if len(told) >= bounds.room(trajectory, config):
            break  # no room for an answer to it
        trajectory.observed(told)
    return [trajectory.sample(index, finish, tokenizer)]


async def _answer(execute: Execute, call: dict[str, Any], metadata: dict[str, Any], timeout_s: float) -> str:
    try:
        async with asyncio.timeout(timeout_s):
            with contained():
                return well_formed(str(await execute(call["name"], call["arguments"], metadata)))
    except TimeoutError:
        return f"error: no answer within {timeout_s:g} s"
    except Exception as error:
        return f"error: {words_of(error)}"
