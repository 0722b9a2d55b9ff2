"""One agent's session: requests of its chat in, samples out.

Promises: every token that is answered was sampled by an engine for this very request, and is kept with its log-prob and
version; a request that fails or whose client leaves adds nothing; a sequence has at most ``rollout_max_response_len``
response tokens, what the agent told included, and fits the engines' context; the same requests in the same order draw the
same tokens from the same weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from bus.codec import TOKENS, pack
from bus.messages import Sample
from miles_async.config.schema import Rollout
from miles_async.engines.client import EngineError
from miles_async.rollout.bounds import Bounds
from miles_async.rollout.generate import AbortedError, AnswerError, OutdatedError, Turn, complete, continuation_seed
from miles_async.rollout.interface import Ask
from miles_async.rollout.sessions.chat import ChatMessage, ChatRequest, Reply, check_rendered, normalized
from miles_async.rollout.sessions.conversation import Begun, Conversation
from miles_async.rollout.sessions.errors import ApiError
from miles_async.text.tokenizer import Tokenizer, TokenizerError
from miles_async.text.unicode import well_formed

MAX_TURNS = 10_000  # of one session: each is kept until it ends

CALL_MARKS = ("<tool_call>", "<|python_tag|>", "[TOOL_CALLS]")  # what comes before one of them is said to the user

ParseCalls = Callable[[str], list[dict[str, Any]]]


class Session:
    """``name``: of its requests at the engines. ``seed``: of its first turn; those of later ones follow from it. ``bounds``:
    None for those of the model."""

    def __init__(
        self,
        name: str,
        seed: int,
        config: Rollout,
        tokenizer: Tokenizer,
        ask: Ask,
        parse_calls: ParseCalls,
        bounds: Bounds | None = None,
    ) -> None:
        self.name, self.seed = name, seed
        self.turns = 0  # begun
        self.answer = ""  # what the policy said last
        self.raw_answer = ""  # with special tokens
        self.conversation = Conversation(tokenizer)
        self._config, self._tokenizer, self._ask, self._parse_calls = config, tokenizer, ask, parse_calls
        self._bounds = Bounds.of(tokenizer) if bounds is None else bounds
        self._running = set[asyncio.Task[Any] | None]()
        self._closed = False

    async def chat(self, request: ChatRequest) -> Reply:
        """The policy's answer. Raises ApiError."""
        if self._closed:
            raise ApiError(404, f"session {self.name} has ended")
        if self.turns >= MAX_TURNS:
            raise ApiError(400, f"a session may have {MAX_TURNS} turns")
        messages, tools = normalized(request.messages), request.offered_tools
        try:
            begun = self.conversation.begin(messages, tools)
        except TokenizerError as error:
            raise ApiError(400, str(error), param="messages") from None
        number, self.turns = self.turns, self.turns + 1
        task = asyncio.current_task()
        self._running.add(task)
        try:
            check_rendered(messages, begun.asked)
            turn = await self._generate(begun, number, request)
            reply = self._reply(request, turn, number)
            returned = normalized([msgspec.convert(reply.message, ChatMessage)])[0]
        except BaseException:
            self.conversation.abandon(begun)
            raise
        finally:
            self._running.discard(task)
        self.conversation.finish(begun, returned, turn.trajectory.tokens[turn.start :], turn.finish_reason)
        self.answer = reply.content
        sampled = turn.trajectory.tokens[turn.start :]
        self.raw_answer = self._tokenizer.decode(sampled, skip_special_tokens=False)
        return reply

    async def _generate(self, begun: Begun, number: int, request: ChatRequest) -> Turn:
        branch = begun.branch
        trajectory = branch.trajectory
        room = self._bounds.room(trajectory, self._config)
        left = min(room, self._config.rollout_max_response_len - branch.length)
        if left <= 0:
            raise ApiError(
                400,
                f"the conversation has {len(trajectory.input_ids)} tokens, {branch.length} of them of the response: neither "
                f"rollout.rollout_max_response_len = {self._config.rollout_max_response_len} nor the engines' context of "
                f"{self._bounds.context_length} may be exceeded, and no token is left for an answer",
                param="messages",
                code="context_length_exceeded",
            )
        told = len(trajectory.tokens)
        limit = left if request.limit is None else min(left, request.limit)
        config = msgspec.structs.replace(
            self._config,
            rollout_max_response_len=told + limit,
            rollout_stop=[*self._config.rollout_stop, *request.stops],
        )
        # the number of the turn is mixed in where the number of tokens behind an abort cannot reach
        turn = Turn(trajectory, rid=f"{self.name}.{number}", seed=continuation_seed(self.seed, number << 32))
        try:
            await complete([turn], config, self._ask, self._bounds)
        except EngineError as error:
            status = 400 if error.status is not None and 400 <= error.status < 500 else 503
            raise ApiError(status, str(error)) from None
        except OutdatedError as error:
            raise ApiError(410, str(error)) from None  # not to be tried again
        except (AbortedError, AnswerError) as error:
            raise ApiError(503, str(error)) from None
        return turn

    def _reply(self, request: ChatRequest, turn: Turn, number: int) -> Reply:
        trajectory, decode = turn.trajectory, self._tokenizer.decode
        sampled = trajectory.tokens[turn.start :]
        content, raw = decode(sampled, skip_special_tokens=True), decode(sampled, skip_special_tokens=False)
        if isinstance(stop := turn.finish.get("matched"), str):  # a stop string, which is no part of the answer
            content = content.partition(stop)[0]
        reply = Reply(content, turn.finish_reason, len(trajectory.prompt) + turn.start, len(sampled))
        calls = self._parse_calls(raw) if request.offered_tools and turn.finish_reason == "stop" else []
        calls = well_formed(calls)  # a parser of the user's reads JSON, too
        if calls:
            reply.finish_reason, reply.content = "tool_calls", _before_calls(raw)
            reply.calls = [{"id": f"call_{number}_{i}", **call} for i, call in enumerate(calls)]
        if request.logprobs:
            texts = [decode([token], skip_special_tokens=False) for token in sampled]
            reply.logprobs = list(zip(texts, trajectory.logprobs[turn.start :], strict=True))
        return reply

    def samples(self, index: int, prompt: bytes) -> list[Sample]:
        """A sample of each branch, unscored, without turns under way. ``prompt``: the group's (``<i4``); only branches
        with another one name theirs.

        Their text is what the policy said last in the whole session, so that all of them are graded alike.
        """
        samples: list[Sample] = []
        for branch in self.conversation.branches:
            own = pack(branch.trajectory.prompt, TOKENS)
            sample = branch.finished().sample(index, branch.finish_reason, self._tokenizer)
            samples.append(
                msgspec.structs.replace(
                    sample,
                    prompt_tokens=b"" if own == prompt else own,
                    rollout_index=index,
                    text=self.answer,
                    raw_text=self.raw_answer,
                )
            )
        return samples

    def close(self) -> None:
        """No more requests; those under way end."""
        self._closed = True
        for task in self._running:
            if task is not None:
                task.cancel()


def _before_calls(text: str) -> str:
    places = [text.find(mark) for mark in CALL_MARKS if mark in text]
    return text[: min(places, default=0)].rstrip()
