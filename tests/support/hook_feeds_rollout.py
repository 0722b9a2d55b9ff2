"""How a rollout worker calls a function of the user's: its data, its conversations, its filters and its rewards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hook_feed import FINE, SAMPLE, TICKET, Ctx, Feed, Outcome, config, ends_the_run, of_attempt

from actors.rollout import RolloutWorker
from miles_async.config.schema import Data, Model, Rollout
from miles_async.config.schema import Reward as RewardSection
from miles_async.data import load_prompts
from miles_async.filters.apply import GroupFilters
from miles_async.models.builtin import make_model
from miles_async.rewards import RewardSample, grading_process
from miles_async.rewards.graded import graded
from miles_async.rewards.sample import GradingRequest
from miles_async.rollout import agent, multi_turn, per_sample
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.registry import AGENT, EXECUTE_TOOL, ROLLOUT
from miles_async.rollout.tool_parser import tool_call_parser
from miles_async.text.tokenizer import Tokenizer

_model: dict[str, Tokenizer] = {}


def data_source(path: str, directory: Path) -> Outcome:
    if not _model:
        (directory / "model").mkdir()
        make_model("builtin:digits", directory / "model", seed=1)
        _model["digits"] = Tokenizer(directory / "model")
    tokenizer = _model["digits"]
    found = config(model=Model(hf_checkpoint=str(tokenizer.directory)), data=Data(prompt_data="x", data_source=path))
    return ends_the_run(lambda: load_prompts(found, tokenizer))


def context(**rollout: Any) -> RolloutContext:
    none: Any = None
    return RolloutContext(config(rollout=Rollout(n_samples_per_prompt=2, **rollout)), none, none, none)


def rollout(path: str, _: Path) -> Outcome:
    async def one() -> Outcome:
        found, failed = context(), list[str]()
        stub: Any = SimpleNamespace(ctx=Ctx(found.config), make=ROLLOUT.load(path), teachers=None, graded=False)
        stub.filters, stub.requests = GroupFilters(found.config), None

        async def nothing(*_: Any) -> None: ...

        async def fail(_: Any, reason: str, detail: str, *__: Any) -> None:
            failed.append(f"{reason}: {detail}")

        stub._sound = stub._publish = stub._tell_first = stub._is_outdated = nothing
        stub._fail = fail
        stub.ledger = SimpleNamespace(discard=nothing)
        await RolloutWorker._rollout(stub, TICKET, found)
        return ("attempt", failed[0]) if failed else FINE

    return asyncio.run(one())


def generate(path: str, _: Path) -> Outcome:
    return of_attempt(lambda: asyncio.run(per_sample.rollout(TICKET, context(generate_function=path))))


def parser(path: str, _: Path) -> Outcome:
    return of_attempt(lambda: tool_call_parser(context(tool_call_parser=path).config)("a turn"))


def tool(path: str, _: Path) -> Outcome:
    call = {"name": "add", "arguments": {}}
    text = asyncio.run(multi_turn._answer(EXECUTE_TOOL.load(path), call, {}, 10.0))
    text.encode()
    return ("answer", text) if text.startswith("error: ") else FINE


def agents(path: str, _: Path) -> Outcome:
    async def one() -> None:
        task: Any = None
        result = await agent._play(AGENT.load(path), task, 10.0)
        if result is not None:
            agent._rewarded([SAMPLE], result, None)

    return of_attempt(lambda: asyncio.run(one()))


def filters(key: str) -> Feed:
    def feed(path: str, _: Path) -> Outcome:
        of_reward = key == "reward_post_process"
        sections = {"reward": RewardSection(**{key: path})} if of_reward else {"rollout": Rollout(**{key: path})}
        found = GroupFilters(config(**sections))
        return of_attempt(lambda: (found.refusal([SAMPLE]), found.finished([SAMPLE])))

    return feed


def reward(group: bool) -> Feed:
    def feed(path: str, _: Path) -> Outcome:
        request = GradingRequest(path, [RewardSample(prompt="p", response="r")], group)
        with asyncio.Runner() as runner:
            reply = grading_process._answer(runner, request)
        if reply.error:
            return "attempt", f"{reply.error} ({reply.place})" if reply.place else reply.error
        return of_attempt(lambda: graded(reply.results[0], "a"))

    return feed
