"""What is asked of an engine fits its context, whatever the prompt and the tools have taken of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from chat_models import chat_tokenizer

from bus.codec import TOKENS, pack, unpack
from bus.messages import Ticket
from miles_async.config.schema import Data, Engine, Model, Rollout, RunConfig
from miles_async.rollout import multi_turn, single_turn
from miles_async.rollout.bounds import Bounds
from miles_async.rollout.failures import reason_of
from miles_async.rollout.generate import NoRoomError
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.sessions import chat
from miles_async.rollout.sessions.errors import ApiError
from miles_async.rollout.sessions.session import Session
from miles_async.rollout.tool_calls import qwen
from miles_async.text.tokenizer import Tokenizer

CONTEXT = 2048  # of the model


class BoundedEngine:
    """Answers with "x" and an end, and refuses what does not fit, as engines do."""

    def __init__(self, tokenizer: Tokenizer, context: int, says: str = "x<eos>") -> None:
        self.context, self.tokens = context, tokenizer.encode(says)
        self.asked: list[int] = []

    async def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        answers = []
        for ids, params in zip(body["input_ids"], body["sampling_params"], strict=True):
            self.asked.append(params["max_new_tokens"])
            assert 1 <= params["max_new_tokens"] <= self.context - len(ids)
            tokens = self.tokens[: params["max_new_tokens"]]
            meta = {
                "finish_reason": {"type": "stop" if tokens == self.tokens else "length"},
                "output_token_logprobs": [[-1.0, token, None] for token in tokens],
                "weight_versions": [{"version": "1", "start": 0, "end": len(tokens)}],
            }
            answers.append({"output_ids": tokens, "meta_info": meta})
        return answers


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return chat_tokenizer(tmp_path, "chatml")


@contextlib.asynccontextmanager
async def context_of(
    tokenizer: Tokenizer, engine: BoundedEngine, context_length: int | None = None, **rollout: Any
) -> AsyncIterator[RolloutContext]:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        rollout=Rollout(**{"rollout_max_response_len": 1500, "n_samples_per_prompt": 2} | rollout),
        engine=Engine(context_length=context_length),
    )
    async with contextlib.AsyncExitStack() as stack:
        yield RolloutContext(config, tokenizer, engine.ask, stack)


def ticket(length: int) -> Ticket:
    return Ticket(group_id="0-0-0", prompt_tokens=pack([5] * length, TOKENS), sampling_seed=1, metadata={})


@pytest.mark.parametrize(
    ("prompt", "context_length", "free"),
    [(719, None, 1329), (100, None, 1500), (100, 256, 156), (2047, None, 1), (255, 256, 1)],
)
async def test_a_response_is_given_what_is_free_of_the_context(
    tokenizer: Tokenizer, prompt: int, context_length: int | None, free: int
) -> None:
    engine = BoundedEngine(tokenizer, context_length or CONTEXT)
    async with context_of(tokenizer, engine, context_length) as context:
        await single_turn.rollout(ticket(prompt), context)
        await single_turn.generate(ticket(prompt), 0, context)
    assert engine.asked == [free] * 3


async def test_a_prompt_that_fills_the_context_is_said_before_an_engine_is_asked(tokenizer: Tokenizer) -> None:
    engine = BoundedEngine(tokenizer, 256)
    async with context_of(tokenizer, engine, 256) as context:
        with pytest.raises(
            NoRoomError, match=r"256 tokens of prompt .* context is 256 \(engine\.context_length\)"
        ) as error:
            await single_turn.rollout(ticket(256), context)
    assert engine.asked == [] and reason_of(error.value)[0] == "too_long"


async def test_a_conversation_with_tools_ends_where_the_context_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tools = tmp_path / "bounded_tools.py"
    tools.write_text("async def answer(name, arguments, metadata):\n    return 'y' * 60\n")
    engine = BoundedEngine(tokenizer, 256, '<tool_call>{"name": "f"}</tool_call><eos>')
    rollout = {"execute_tool_function": f"{tools}:answer", "max_turns": 9}
    async with context_of(tokenizer, engine, 256, **rollout) as context:
        (sample,) = await multi_turn.generate(ticket(20), 0, context)
    assert sample.finish_reason == "length" and engine.asked == [236, 119, 2]
    assert len(unpack(sample.tokens, TOKENS)) + 20 <= 256


def session(tokenizer: Tokenizer, engine: BoundedEngine, **options: Any) -> Session:
    return Session("s", 1, Rollout(rollout_max_response_len=1500), tokenizer, engine.ask, qwen, **options)


def request(content: str, **fields: Any) -> chat.ChatRequest:
    return chat.ChatRequest(messages=[chat.ChatMessage(role="user", content=content)], **fields)


async def test_an_endpoint_answers_with_what_is_free_of_the_context(tokenizer: Tokenizer) -> None:
    engine = BoundedEngine(tokenizer, CONTEXT)
    asked = "q" * 700
    prompt = len(tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": asked}])))
    one = session(tokenizer, engine)
    for fields in ({}, {"max_tokens": 9000}, {"max_completion_tokens": 3}):
        await one.chat(request(asked, **fields))
    assert engine.asked == [CONTEXT - prompt, CONTEXT - prompt, 3]
    small = session(tokenizer, BoundedEngine(tokenizer, 256), bounds=Bounds(256))
    with pytest.raises(ApiError, match=rf"has {prompt} tokens.* context of 256") as error:
        await small.chat(request(asked))
    assert (error.value.status, error.value.code) == (400, "context_length_exceeded")
    assert small.conversation.branches == []


def test_stop_strings_of_a_request_are_looked_at_before_an_engine_is_asked() -> None:
    def parsed(stop: str) -> list[str]:
        return chat.parse(b'{"messages": [{"role": "user", "content": "a"}], "stop": %s}' % stop.encode()).stops

    assert parsed('""') == [] == parsed('["", ""]') == parsed("null")
    assert parsed('["a", ""]') == ["a"] == parsed('"a"')
    for wrong in ("[3]", "7", "{}", '["%s"]' % ("x" * 1001), str(["x"] * 17).replace("'", '"')):
        with pytest.raises(ApiError) as error:
            parsed(wrong)
        assert error.value.status == 400
