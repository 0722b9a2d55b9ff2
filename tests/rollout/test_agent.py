"""A rollout that an agent plays: its branches, its reward, and what its failures cost. In front of a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import playing_agents
import pytest
from chat_models import chat_tokenizer

from bus.codec import MASK, TOKENS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.cli import hook_points
from miles_async.config import rules
from miles_async.config.schema import ConfigError, Data, Model, Reward, Rollout, RunConfig
from miles_async.engines.client import EngineClient
from miles_async.hooks.hook import HookError
from miles_async.rollout import agent, per_sample, single_turn
from miles_async.rollout.agent import AgentError
from miles_async.rollout.interface import RolloutContext
from miles_async.text.tokenizer import Tokenizer

DEADLINE_S = 60.0


def config_of(function: str | None, reward: Reward | None = None, **rollout: Any) -> RunConfig:
    path = None if function is None else f"playing_agents.{function}"
    settings = {"n_samples_per_prompt": 2, "rollout_max_response_len": 40, **rollout}
    return RunConfig(
        model=Model(hf_checkpoint="builtin:guess"),
        data=Data(prompt_data="none"),
        rollout=Rollout(generate_function="agent", agent_function=path, **settings),
        reward=reward or Reward(),
    )


@contextlib.asynccontextmanager
async def context_of(url: str, model: Path, config: RunConfig) -> AsyncIterator[RolloutContext]:
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
        client = EngineClient(url, session)

        async def ask(body: dict[str, Any]) -> Any:
            return await client.generate(body, timeout=DEADLINE_S)

        yield RolloutContext(config, Tokenizer(model), ask, stack)


def ticket(model: Path, number: int = 0) -> Ticket:
    tokens = pack(Tokenizer(model).encode("?>"), TOKENS)
    messages = [{"role": "user", "content": "?"}]
    return Ticket(
        group_id=f"0-{number}-0", prompt_tokens=tokens, sampling_seed=100, prompt="?>", metadata={"messages": messages}
    )


async def played(url: str, model: Path, config: RunConfig, index: int = 0) -> list[Sample]:
    async with context_of(url, model, config) as context:
        return await agent.generate(ticket(model), index, context)


def trained(samples: list[Sample]) -> int:
    return sum(int(unpack(sample.loss_mask, MASK).sum()) for sample in samples)


async def test_turns_of_an_agent_are_one_sample_behind_the_groups_prompt(
    engine_url: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # of a site: not to be asked for what lies on loopback
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "example.org")
    (sample,) = await played(engine_url, model, config_of("play"), index=1)
    mask = unpack(sample.loss_mask, MASK).tolist()
    assert mask[0] == mask[-1] == 1
    assert 0 in mask
    assert sample.prompt_tokens == b""  # the group's own
    assert (sample.reward, sample.reward_parts, sample.rollout_index) == (1.0, {"agent": 1.0}, 1)
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "example.org"  # as it was


async def test_one_turn_of_an_agent_is_what_the_single_turn_function_draws(engine_url: str, model: Path) -> None:
    config = config_of("ask_once")
    async with context_of(engine_url, model, config) as context:
        for index in range(2):
            (mine,) = await agent.generate(ticket(model), index, context)
            (plain,) = await single_turn.generate(ticket(model), index, context)
            assert (mine.tokens, mine.logprobs, mine.text) == (plain.tokens, plain.logprobs, plain.text)
            assert (mine.reward, mine.reward_parts) == (0.0, {})  # reward.rm_type has the say


async def test_branches_share_their_rollout_and_its_reward_and_each_token_is_trained_once(
    engine_url: str, model: Path
) -> None:
    config = config_of("branch", Reward(reward_key="won"))
    sampled: list[int] = []
    async with context_of(engine_url, model, config) as context:

        async def ask(body: dict[str, Any]) -> Any:
            answers = await context.ask(body)
            sampled.extend(len(answer["output_ids"]) for answer in answers)
            return answers

        counted = RolloutContext(config, context.tokenizer, ask, context.stack)
        samples = await per_sample.rollout(ticket(model), counted)
    assert len(samples) == 2 * 3
    assert [sample.index for sample in samples] == [0, 1, 2, 3, 4, 5]
    assert [sample.rollout_index for sample in samples] == [0, 0, 0, 1, 1, 1]
    assert [sample.reward for sample in samples] == [0.5] * 3 + [1.5] * 3
    assert all(sample.reward_parts["turns"] == 5.0 for sample in samples)
    assert trained(samples) == sum(sampled)
    assert len({sample.text for sample in samples[:3]}) == 1  # graded alike, where they are
    prompts = [unpack(sample.prompt_tokens, TOKENS).tolist() for sample in samples[:3]]
    assert prompts[0] == []
    assert prompts[2] == Tokenizer(model).encode("7>")


async def test_an_agent_that_blocks_runs_beside_the_others(engine_url: str, model: Path) -> None:
    async with context_of(engine_url, model, config_of("block")) as context:
        rollouts = await asyncio.gather(*(agent.generate(ticket(model, n), 0, context) for n in range(6)))
        assert len(context._resources) == 1
        (agents,) = context._resources.values()
        assert agents.server.sessions == {}
    assert [(len(samples), samples[0].reward) for samples in rollouts] == [(2, 1.0)] * 6


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("ask_nothing", "asked nothing of the policy"),
        ("return_a_word", "returned 'good': a reward must be a number, not str"),
        ("give_up", "the agent failed: LookupError: no such"),
        ("ask_for_too_much", "the agent failed: BadRequestError: .*messages"),
    ],
)
async def test_an_agent_that_fails_costs_its_rollout_with_the_reason(
    engine_url: str, model: Path, function: str, says: str
) -> None:
    with pytest.raises(AgentError, match=says):
        await played(engine_url, model, config_of(function))


@pytest.mark.parametrize("function", ["dawdle", "ask_without_end"])
async def test_an_agent_has_a_deadline_and_one_in_a_thread_ends_with_its_session(
    engine_url: str, model: Path, function: str
) -> None:
    playing_agents.THREAD_ENDED.clear()
    async with context_of(engine_url, model, config_of(function, agent_timeout_s=0.5)) as context:
        with pytest.raises(AgentError, match=r"not done within rollout\.agent_timeout_s = 0\.5 s"):
            await agent.generate(ticket(model), 0, context)
        if function == "ask_without_end":
            assert await asyncio.to_thread(playing_agents.THREAD_ENDED.wait, DEADLINE_S)


async def test_a_dict_needs_the_key_of_its_reward(engine_url: str, model: Path) -> None:
    with pytest.raises(AgentError, match="reward_key is not set"):
        await played(engine_url, model, config_of("branch"))


def test_an_agent_that_is_missing_or_is_called_otherwise_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.agent_function is missing"):
        rules.check(config_of(None))
    with pytest.raises(HookError, match=r'rollout\.agent_function = "playing_agents\.plya": .*did you mean "play"'):
        hook_points.check(config_of("plya"))
    with pytest.raises(HookError, match=r"must take \(task\)"):
        hook_points.check(config_of("play_alone"))
    hook_points.check(config_of("play"))


@pytest.mark.parametrize("template", ["chatml", "mistral", "tools"])
def test_an_agent_is_told_what_a_row_asks_and_not_what_the_template_makes_of_it(tmp_path: Path, template: str) -> None:
    tokenizer, config = chat_tokenizer(tmp_path, template), config_of("play")
    prompt = tokenizer.render_chat([{"role": "user", "content": "2+2?"}])
    asked = Ticket(group_id="0-0-0", prompt_tokens=b"", sampling_seed=1, prompt=prompt)
    for chats, expected in ((True, "2+2?"), (False, prompt)):
        made = msgspec.structs.replace(config, data=Data(prompt_data="none", apply_chat_template=chats))
        context = RolloutContext(made, tokenizer, None, contextlib.AsyncExitStack())  # type: ignore[arg-type]
        assert agent._asked(asked, context) == expected
