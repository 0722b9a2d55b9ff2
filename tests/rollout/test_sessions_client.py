"""The endpoint of a session, spoken to by the unmodified ``openai`` client: turns, streams, budgets, seeds and tools."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from served_sessions import HI, TOOL, before_engine, scripted, served

from miles_async.models import builtin
from miles_async.text.tokenizer import Tokenizer

TAGGED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "</tool_call>{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


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
