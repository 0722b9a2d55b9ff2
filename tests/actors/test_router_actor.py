"""The router as an actor: a real bus and real engines, which are updated and die."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import msgspec
import pytest
from embedded_engines import EngineProcess, engines
from engine_lines import set_engine
from weights_stage import DEADLINE_S, Stage, body

from actors.broadcaster import Broadcaster
from actors.router import Router, bind
from bus.messages import EngineDown, EngineServes, Metrics
from miles_async.config.schema import ConfigError
from miles_async.config.schema import Router as RouterConfig
from miles_async.engines.client import EngineClient


async def test_requests_through_the_router_all_get_answers_while_engines_are_updated_and_one_dies(
    stage: Stage, pair: list[EngineProcess], digits_model: Path
) -> None:
    with engines(digits_model, 1) as [doomed]:
        async with stage.running(Broadcaster), stage.running(Router), aiohttp.ClientSession() as session:
            client = EngineClient(await stage.bus.address("router", deadline_s=10), session)
            for index, engine in enumerate([*pair, doomed]):
                await stage.engine_up(f"engine-{index}", engine, version=-1)
            await stage.snapshot(1)
            await stage.hear(EngineServes, count=3, version=1)
            finished = asyncio.Event()

            async def ask() -> list[dict]:
                answers = []
                while not finished.is_set():
                    answer = await client.generate(body(60), timeout=DEADLINE_S)
                    assert isinstance(answer, dict)
                    answers.append(answer)
                return answers

            askers = [asyncio.create_task(ask()) for _ in range(8)]
            await stage.snapshot(2)
            await stage.hear(EngineServes, count=3, version=2)
            doomed.kill()
            await stage.snapshot(3)
            await stage.hear(EngineServes, engine="engine-0", version=3)
            await stage.hear(EngineServes, engine="engine-1", version=3)
            async with asyncio.timeout(DEADLINE_S):
                await until_reported(stage, "engine_tokens_per_s/engine-0")
            finished.set()
            answers = [answer for task in askers for answer in await task]
            assert all(len(answer["output_ids"]) == 60 for answer in answers)
            await stage.hear(EngineDown, engine="engine-2")


async def until_reported(stage: Stage, name: str) -> None:
    """Until something above 0 is."""
    cursor, found = "0", list[Metrics]()
    while not any(line.values.get(name, 0) > 0 for line in found):
        found, cursor = await stage.bus.read("metrics", Metrics, cursor, block_ms=500)


async def test_the_router_of_a_later_time_learns_from_the_ledger_who_serves(
    stage: Stage, pair: list[EngineProcess]
) -> None:
    await set_engine(stage.bus, "engine-0", pair[0].url, 1, 7, "serving")
    await set_engine(stage.bus, "engine-1", pair[1].url, 1, 7, "down")
    async with stage.running(Router), aiohttp.ClientSession() as session:
        url = await stage.bus.address("router", deadline_s=10)
        await EngineClient(url, session).generate(body(1))
        async with session.get(url + "/workers") as answer:
            assert [(w["id"], w["version"]) for w in (await answer.json())["workers"]] == [("engine-0", 7)]
        async with asyncio.timeout(DEADLINE_S):
            report: list[Metrics] = []
            while not report:
                report, _ = await stage.bus.read("metrics", Metrics, "0", block_ms=500)
        assert (
            report[0].step == 7 and "engine_busy/engine-0" in report[0].values and "router/inflight" in report[0].values
        )


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = replace_port(RouterConfig(), taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"router\.port = \d+: another program listens there") as caught:
            bind(config)
    assert "\n" not in str(caught.value)


def replace_port(config: RouterConfig, port: int) -> RouterConfig:
    return msgspec.structs.replace(config, port=port)
