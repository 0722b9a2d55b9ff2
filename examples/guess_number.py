"""Guess the number: an agent for any OpenAI-compatible endpoint, and the whole environment it plays in.

    miles-async launch examples/guess_number.toml

The agent below is an ordinary program that uses the ``openai`` client. The run calls it once for each rollout, with an address
of its own, and trains on what the policy answered there.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from openai import AsyncOpenAI

if TYPE_CHECKING:
    from miles_async.rollout.agent import AgentTask

NUMBERS = 8  # 0 .. 7
GUESSES = 4


async def play(task: AgentTask) -> dict[str, float]:
    """One game. Success is worth 1; without it every guess that was a number at all is worth a little."""
    client = _client(task.api_key).with_options(base_url=task.base_url)
    secret, numbers_said = int(task.label or ""), 0
    messages: list[Any] = list(task.messages)
    for _ in range(GUESSES):
        completion = await client.chat.completions.create(model=task.model, messages=messages, max_tokens=2)
        answer = completion.choices[0].message
        messages.append(answer.model_dump(exclude_none=True))
        feedback = judge(answer.content or "", secret)
        if feedback == "=":
            return {"reward": 1.0, "success": 1.0}
        numbers_said += feedback != "?"
        messages.append({"role": "user", "content": feedback})
    return {"reward": 0.1 * numbers_said / GUESSES, "success": 0.0}


def judge(guess: str, secret: int) -> str:
    """ "=" for the number, "+" if it is higher than the guess, "-" if it is lower, "?" for what is no number of the game."""
    if len(guess) != 1 or not guess.isdecimal() or int(guess) >= NUMBERS:
        return "?"
    return "=" if int(guess) == secret else "+" if secret > int(guess) else "-"


@cache
def _client(api_key: str) -> AsyncOpenAI:
    """One for all games of a process: making one costs 30 ms."""
    return AsyncOpenAI(api_key=api_key, base_url="http://set.for.each.game", max_retries=0)
