"""The endpoint, spoken to by the unmodified ``openai`` client and by whatever else may come, in front of a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from embedded_engines import engines
from openai import AsyncOpenAI, OpenAI

from miles_async.config.schema import Rollout
from miles_async.engines.client import EngineClient, EngineError
from miles_async.models import builtin
from miles_async.rollout.interface import Ask
from miles_async.rollout.sessions import server as server_module
from miles_async.rollout.sessions.server import SessionServer, serve_sessions
from miles_async.rollout.sessions.session import Session
from miles_async.rollout.tool_calls import qwen
from miles_async.text.tokenizer import Tokenizer

HI: list[Any] = [{"role": "user", "content": "?"}]
TAGGED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "</tool_call>{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("guess")
    builtin.make_model("builtin:guess", directory, seed=1)
    return directory


@pytest.fixture(scope="module")
def engine_url(model: Path) -> Iterator[str]:
    with engines(model, 1) as (engine,):
        yield engine.url


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


async def test_a_request_without_a_limit_is_given_what_the_engines_context_leaves(engine_url: str, model: Path) -> None:
    async with before_engine(engine_url, model, rollout_max_response_len=5000) as one:
        answer = await one.say(HI)
        assert answer.choices[0].finish_reason == "stop"
    assert one.asked[0]["sampling_params"][0]["max_new_tokens"] == 256 - answer.usage.prompt_tokens


async def test_the_openai_client_plays_turns_that_become_one_sequence(engine_url: str, model: Path) -> None:
    async with before_engine(engine_url, model) as one:
        messages = list(HI)
        for feedback in ("+", "-", None):
            answer = await one.say(messages, max_tokens=4, logprobs=True)
            choice = answer.choices[0]
            assert choice.finish_reason in ("stop", "length")
            assert answer.usage.completion_tokens == len(choice.logprobs.content) <= 4
            assert (answer.model, choice.message.role) == ("tiny", "assistant")
            messages += [choice.message, {"role": "user", "content": feedback}]
        (sample,) = one.readable()
        assert [card.id for card in (await one.client.models.list()).data] == ["tiny"]
    # token by token what the engine said, with its log-probs and version, and each request goes on from all that was there
    assert len(one.answered) == 3
    place, sequence = 0, list(sample["prompt_tokens"])
    for body, answer in zip(one.asked, one.answered, strict=True):
        told = len(body["input_ids"][0]) - len(sequence)
        assert sample["loss_mask"][place : place + told] == [0] * told
        sequence += sample["tokens"][place : place + told]
        place += told
        assert body["input_ids"][0] == sequence
        end = place + len(answer["output_ids"])
        assert sample["tokens"][place:end] == answer["output_ids"]
        logprobs = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
        assert sample["logprobs"][place:end] == pytest.approx(logprobs, abs=1e-6)
        assert sample["loss_mask"][place:end] == [1] * (end - place)
        assert set(sample["versions"]) == {0}
        sequence += sample["tokens"][place:end]
        place = end
    assert place == len(sample["tokens"])


async def test_a_stream_says_the_same_and_counts_it(engine_url: str, model: Path) -> None:
    async with before_engine(engine_url, model) as one:
        whole = await one.say(HI)
    async with before_engine(engine_url, model) as one:
        stream = await one.say(HI, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == whole.choices[0].message.content
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [
        None,
        whole.choices[0].finish_reason,
    ]
    assert chunks[-1].usage == whole.usage


async def test_a_client_that_blocks_works_from_a_thread(engine_url: str, model: Path) -> None:
    async with before_engine(engine_url, model) as one:

        def play() -> str | None:
            with OpenAI(base_url=one.server.base_url(one.id), api_key=one.server.api_key) as client:
                return client.chat.completions.create(model="x", messages=HI).choices[0].message.content

        said = await asyncio.to_thread(play)
        assert said == one.session.answer


async def test_what_a_request_draws_is_the_runs_to_decide_and_comes_again_with_the_seed(
    engine_url: str, model: Path
) -> None:
    """Temperature, top_p and seed of the client are not used; turns and repetitions differ from each other."""
    rounds = []
    for options in ({}, {"temperature": 0.0, "top_p": 0.1, "seed": 3}):
        async with before_engine(engine_url, model, rollout_max_response_len=100) as one:
            answers = [(await one.say(HI, max_tokens=20, **options)).choices[0].message.content for _ in range(4)]
            rounds.append(answers)
            assert {body["sampling_params"][0]["temperature"] for body in one.asked} == {1.0}
            assert len({body["sampling_params"][0]["sampling_seed"] for body in one.asked}) == 4
            assert (
                one.asked[0]["sampling_params"][0]["sampling_seed"] == 7
            )  # a single turn draws as a single response does
    assert rounds[0] == rounds[1]
    assert len(set(rounds[0])) == 4


async def test_stop_strings_end_an_answer_and_are_not_in_it(model: Path, engine_url: str) -> None:
    async with before_engine(engine_url, model) as one:
        free = (await one.say(HI)).choices[0].message.content
    assert free and len(free) > 5
    stop = free[4:6]
    async with before_engine(engine_url, model) as one:
        cut = (await one.say(HI, stop=[stop])).choices[0]
        (sample,) = one.readable()
    said = free.partition(stop)[0]
    assert (cut.message.content, cut.finish_reason) == (said, "stop")
    assert Tokenizer(model).decode(sample["tokens"]) == said + stop  # it was sampled, and is trained on


async def test_the_sequence_has_its_budget_and_a_conversation_without_any_left_is_told_so(
    engine_url: str, model: Path
) -> None:
    tokenizer = Tokenizer(model)
    async with served(scripted(tokenizer, "55555", "66"), tokenizer, rollout_max_response_len=10) as one:
        said = (await one.say(HI)).choices[0].message
        again = [*HI, said, {"role": "user", "content": "+"}]  # behind 5 tokens: an end of the message, "+" and ">"
        await one.say(again, max_tokens=50)
        assert one.asked[1]["sampling_params"][0]["max_new_tokens"] == 2
        (before,) = one.readable()
        assert len(before["tokens"]) == 10
        with pytest.raises(openai.BadRequestError, match="rollout_max_response_len = 10") as refused:
            await one.say([*again, {"role": "assistant", "content": "66"}, {"role": "user", "content": "+"}])
        assert refused.value.code == "context_length_exceeded"
        assert one.readable() == [before]
        # a branch has used up what it inherited
        with pytest.raises(openai.BadRequestError, match="rollout_max_response_len = 10"):
            await one.say([*HI, said, {"role": "user", "content": "+-+-+-"}])


async def test_tools_are_called_and_their_answers_go_on_from_the_call(tmp_path: Path) -> None:
    builtin.make_model("builtin:words", tmp_path, seed=0)
    (tmp_path / "template.jinja").write_text(TAGGED)
    tokenizer = Tokenizer(tmp_path).for_chats(tmp_path / "template.jinja", {})
    call = 'Let me see.<tool_call>{"name": "add",  "arguments": {"a": 2}}</tool_call><eos>'
    async with served(scripted(tokenizer, call, "4<eos>"), tokenizer, rollout_max_response_len=200) as one:
        choice = (await one.say(HI, tools=[TOOL])).choices[0]
        (called,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content, called.function.name) == (
            "tool_calls",
            "Let me see.",
            "add",
        )
        assert json.loads(called.function.arguments) == {"a": 2}
        result = {"role": "tool", "tool_call_id": called.id, "content": "4"}
        final = (await one.say([*HI, choice.message, result], tools=[TOOL])).choices[0]
        assert (final.finish_reason, final.message.content) == ("stop", "4")
        (sample,) = one.readable()
        text = tokenizer.decode(sample["tokens"], skip_special_tokens=False)
        assert text == f"{call}<tool>4<eos><assistant>4<eos>"
        assert sum(sample["loss_mask"]) == len(tokenizer.encode(call)) + 2
        assert set(sample["versions"]) == {3}


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
