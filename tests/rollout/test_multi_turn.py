"""Conversations with tools: every trained token is one that an engine sampled, what is between them is the template's."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from embedded_engines import EngineProcess, snapshot_of
from tool_templates import EOS, QWEN, with_template

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config.schema import Data, Model, Rollout, RunConfig
from miles_async.engines.client import EngineClient
from miles_async.rollout import multi_turn
from miles_async.rollout.interface import RolloutContext
from miles_async.text.tokenizer import Tokenizer

TOOLS = """
import json

def every_turn(text):
    return [{"name": "count", "arguments": {"text": text}}]

def two_calls(text):
    return [{"name": "count", "arguments": {}}, {"name": "fail", "arguments": {}}]

async def tool(name, arguments, metadata):
    metadata["calls"] = metadata.get("calls", 0) + 1
    if name == "fail":
        raise ZeroDivisionError("of nothing")
    return f"{metadata['secret']} {metadata['calls']}"

async def endless(name, arguments, metadata):
    import asyncio
    await asyncio.Event().wait()
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "my_tools.py"
    path.write_text(TOOLS)
    return path


class Log:
    """An engine over HTTP, and everything that it was asked and sampled."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.turns: list[tuple[dict[str, Any], dict[str, Any]]] = []

    async def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        answers: Any = await self.client.generate(body)
        self.turns += [
            ({key: body[key][i] for key in ("rid", "input_ids", "sampling_params")}, answer)
            for i, answer in enumerate(answers)
        ]
        return answers


@contextlib.asynccontextmanager
async def conversation(
    engine: EngineProcess, tokenizer: Tokenizer, **rollout: Any
) -> AsyncIterator[tuple[Log, RolloutContext]]:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        rollout=Rollout(**{"generate_function": "multi_turn", "rollout_max_response_len": 400} | rollout),
    )
    async with contextlib.AsyncExitStack() as stack, aiohttp.ClientSession() as session:
        log = Log(EngineClient(engine.url, session))
        yield log, RolloutContext(config, tokenizer, log.ask, stack)


def ticket(tokenizer: Tokenizer, number: int = 0) -> Ticket:
    prompt = tokenizer.render_chat([{"role": "user", "content": "guess"}])
    return Ticket(
        group_id=f"0-{number}-0",
        prompt_tokens=pack(tokenizer.encode(prompt), TOKENS),
        sampling_seed=100 * number + 7,
        prompt=prompt,
        metadata={"secret": 42},
    )


def column(sample: Sample, name: str) -> list[Any]:
    dtype = {"tokens": TOKENS, "logprobs": LOGPROBS, "loss_mask": MASK, "versions": VERSIONS}[name]
    return unpack(getattr(sample, name), dtype).tolist()


def between(sample: Sample) -> list[list[int]]:
    """The runs of masked tokens."""
    runs: list[list[int]] = [[]]
    for token, trained in zip(column(sample, "tokens"), column(sample, "loss_mask"), strict=True):
        if not trained:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


async def test_versions_are_kept_per_turn_across_a_weight_update(
    engine: EngineProcess, words: Path, tools: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(words)
    asked = {"tool_call_parser": f"{tools}:every_turn", "execute_tool_function": f"{tools}:tool", "max_turns": 2}
    async with conversation(engine, tokenizer, **asked, rollout_stop=["e", "t", "a"]) as (log, context):

        async def update_after_each_turn(body: dict[str, Any]) -> list[dict[str, Any]]:
            answers = await log.ask(body)
            version = len(log.turns)
            path = snapshot_of(words, tmp_path, version)
            await log.client.update_from_disk(str(path), version=str(version), flush_cache=True, timeout=30)
            return answers

        (sample,) = await multi_turn.generate(
            ticket(tokenizer), 0, dataclasses.replace(context, ask=update_after_each_turn)
        )
    first, second = (len(answer["output_ids"]) for _, answer in log.turns)
    (told,) = between(sample)
    assert column(sample, "versions") == [0] * (first + len(told)) + [1] * second


async def test_every_trained_token_is_one_that_the_engine_sampled_and_the_rest_is_the_templates(
    engine: EngineProcess, words: Path, tools: Path, tmp_path: Path
) -> None:
    tokenizer = with_template(words, tmp_path / "model", QWEN)
    asked = {"tool_call_parser": f"{tools}:every_turn", "execute_tool_function": f"{tools}:tool", "max_turns": 3}
    async with conversation(engine, tokenizer, **asked, rollout_stop=["e", "t"]) as (log, context):
        for number in range(2):
            log.turns.clear()
            (sample,) = await multi_turn.generate(ticket(tokenizer, number), 1, context)
            whole = unpack(ticket(tokenizer).prompt_tokens, TOKENS).tolist() + column(sample, "tokens")
            sampled: list[int] = []
            logprobs: list[float] = []
            for body, answer in log.turns:
                assert body["input_ids"] == whole[: len(body["input_ids"])]  # never tokenised again
                assert answer["output_ids"] == whole[len(body["input_ids"]) :][: len(answer["output_ids"])]
                sampled += answer["output_ids"]
                logprobs += [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
            trained = [bool(bit) for bit in column(sample, "loss_mask")]
            assert [t for t, bit in zip(column(sample, "tokens"), trained, strict=True) if bit] == sampled
            mine = [lp for lp, bit in zip(column(sample, "logprobs"), trained, strict=True) if bit]
            assert mine == pytest.approx(logprobs, rel=1e-6)
            assert all(lp == 0.0 for lp, bit in zip(column(sample, "logprobs"), trained, strict=True) if not bit)
            assert len(log.turns) == 3 and sample.finish_reason == "length"  # the turns ran out
            for call, told in enumerate(between(sample), 1):
                end = "" if log.turns[call - 1][1]["output_ids"][-1] == EOS else "<eos>"
                expected = f"{end}\n[user\n<tool_response>\n42 {call}\n</tool_response><eos>\n[assistant\n"
                assert tokenizer.decode(told, skip_special_tokens=False) == expected
            seeds = [body["sampling_params"]["sampling_seed"] for body, _ in log.turns]
            assert seeds[0] == 100 * number + 8 and len(set(seeds)) == 3


async def test_the_response_with_its_tools_stays_within_its_limit(
    engine: EngineProcess, words: Path, tools: Path
) -> None:
    tokenizer = Tokenizer(words)
    asked = {"tool_call_parser": f"{tools}:two_calls", "execute_tool_function": f"{tools}:tool", "max_turns": 16}
    reasons = set[str]()
    async with conversation(engine, tokenizer, **asked, rollout_max_response_len=150) as (log, context):
        for number in range(4):
            log.turns.clear()
            (sample,) = await multi_turn.generate(ticket(tokenizer, number), 0, context)
            assert len(column(sample, "tokens")) <= 150
            assert column(sample, "loss_mask")[-1] == 1  # no tool speaks last
            budgets = [body["sampling_params"]["max_new_tokens"] for body, _ in log.turns]
            assert budgets == [
                150 - len(body["input_ids"]) + len(log.turns[0][0]["input_ids"]) for body, _ in log.turns
            ]
            for told in between(sample):
                text = tokenizer.decode(told)
                assert "42" in text and "error: ZeroDivisionError: of nothing" in text
            reasons.add(sample.finish_reason)
    assert reasons == {"length"}


async def test_a_tool_that_is_too_slow_answers_with_that(engine: EngineProcess, words: Path, tools: Path) -> None:
    tokenizer = Tokenizer(words)
    asked = {"tool_call_parser": f"{tools}:every_turn", "execute_tool_function": f"{tools}:endless", "max_turns": 2}
    async with conversation(engine, tokenizer, **asked, tool_timeout_s=0.05, rollout_stop=["e"]) as (_, context):
        (sample,) = await multi_turn.generate(ticket(tokenizer), 0, context)
    assert "error: no answer within 0.05 s" in sample.text


async def test_a_turn_without_a_call_ends_the_conversation(engine: EngineProcess, words: Path, tools: Path) -> None:
    tokenizer = Tokenizer(words)
    async with conversation(engine, tokenizer, execute_tool_function=f"{tools}:tool", rollout_stop=["e"]) as (
        log,
        context,
    ):
        (sample,) = await multi_turn.generate(ticket(tokenizer), 0, context)
    assert len(log.turns) == 1 and sample.finish_reason == "stop" and set(column(sample, "loss_mask")) == {1}
