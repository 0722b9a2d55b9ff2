"""``miles-async scale``: engines and workers come and go while a run trains; nothing is lost, and no attempt fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web
from engine_lines import set_engine
from launching import TINY, begin, events, left_behind, metrics, summary, wait_for_step, wait_until, write_config
from typer.testing import CliRunner

from actors.broadcaster import Broadcaster
from actors.router import Router
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, Roster
from bus.messages import EngineDown, EngineUp, Snapshot
from miles_async.cli import app as cli
from miles_async.cli.scale import ScaleError, scale
from miles_async.config.schema import Data, Engine, Model, RunConfig
from miles_async.monitor.status import status


def context(bus: Bus, role: str, tmp_path: Path) -> ActorContext:
    config = RunConfig(model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"), engine=Engine(num_engines=2))
    return ActorContext(ActorSpec(role, role, 0, "", config, tmp_path, "", "", bus.run_id, 1), bus)


async def test_an_engine_that_was_added_is_known_at_once_and_any_other_is_still_refused(
    bus: Bus, tmp_path: Path
) -> None:
    ctx = context(bus, "router", tmp_path)
    assert await ctx.has_engine("engine-1") and not await ctx.has_engine("engine-2")
    await bus.set_roster(Roster(frozenset({"engine-0", "engine-1", "engine-2"}), frozenset({"engine-1"})))
    assert await ctx.has_engine("engine-2") and not await ctx.has_engine("engine-3")
    assert await ctx.engine_leaves("engine-1") and not await ctx.engine_leaves("engine-2")
    await set_engine(bus, "engine-2", "http://127.0.0.1:1", 1, 0, "serving")
    await set_engine(bus, "engine-3", "http://127.0.0.1:1", 1, 0, "serving")
    assert set(await ctx.engine_states()) == {"engine-2"} and bus.refused["engines"] == 1
    await bus.redis.set(bus.key("roster"), b"\xc1junk")
    assert await ctx.has_engine("engine-2") and not await ctx.has_engine("engine-9")  # it goes on with what it knows
    assert bus.refused["roster"] == 1


class SlowEngine:
    """Answers its requests when it is told to."""

    def __init__(self) -> None:
        self.asked, self.answers = asyncio.Event(), asyncio.Event()
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SlowEngine]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.path == "/generate":
            self.asked.set()
            await self.answers.wait()
        return web.json_response({"from": self.url})


async def test_an_engine_that_leaves_answers_what_it_has_and_gets_nothing_new(bus: Bus, tmp_path: Path) -> None:
    ctx = context(bus, "router", tmp_path)
    names = ("engine-0", "engine-1")
    async with asyncio.timeout(30), SlowEngine().running() as one, SlowEngine().running() as two:
        for name, engine in zip(names, (one, two), strict=True):
            await set_engine(bus, name, engine.url, 1, 0, "serving")
        router = asyncio.create_task(Router(ctx).run())
        url = await bus.address("router", deadline_s=10)
        async with aiohttp.ClientSession() as session:

            async def ask() -> str:
                async with session.post(f"{url}/generate", json={}) as answer:
                    return (await answer.json())["from"]

            first = asyncio.create_task(ask())
            await asyncio.wait({asyncio.create_task(e.asked.wait()) for e in (one, two)}, return_when="FIRST_COMPLETED")
            slow, other = (one, two) if one.asked.is_set() else (two, one)
            leaves = names[(one, two).index(slow)]
            await bus.set_roster(Roster(frozenset(names), frozenset({leaves})))
            while True:
                async with session.get(f"{url}/workers") as answer:
                    workers = {worker["id"]: worker for worker in (await answer.json())["workers"]}
                if workers[leaves]["state"] != "up":
                    break
            other.answers.set()
            assert await asyncio.gather(*(ask() for _ in range(4))) == [other.url] * 4
            assert await bus.read("weights", EngineDown, "0") == ([], "0") and not first.done()
            slow.answers.set()
            assert await first == slow.url
            cursor, heard = "0", []
            while not heard:
                heard, cursor = await bus.read("weights", EngineDown, cursor, block_ms=200)
            assert (heard[0].engine, heard[0].incarnation) == (leaves, 1)
        ctx.stop.set()
        await router


async def test_the_line_of_an_engine_that_leaves_goes_when_it_is_down_and_no_update_is_under_way(
    bus: Bus, tmp_path: Path
) -> None:
    broadcaster = Broadcaster(context(bus, "broadcaster", tmp_path))
    start = Snapshot(version=0, incarnation=1, path="nowhere")
    for name in ("engine-0", "engine-1"):
        broadcaster.fleet.fold(EngineUp(engine=name, url=f"http://{name}", incarnation=1, version=0))
        await broadcaster.told.serves(broadcaster.fleet.members[name], start)
    await bus.set_roster(Roster(frozenset({"engine-0", "engine-1"}), frozenset({"engine-1"})))

    async def lines() -> set[str]:
        await broadcaster.told.let_go(await broadcaster.ctx.engine_states())
        return set(await bus.engines())

    assert await lines() == {"engine-0", "engine-1"}  # it still answers requests
    broadcaster.fleet.fold(EngineDown(engine="engine-1", incarnation=1, reason="it has answered all"))
    broadcaster.told.wave = {"engine-1"}
    assert await lines() == {"engine-0", "engine-1"}
    broadcaster.told.wave = set()
    assert await lines() == {"engine-0"}
    assert set(broadcaster.fleet.members) == {"engine-0"}


def serving(run_dir: Path) -> set[str]:
    return {name for name, line in status(run_dir)["engines"].items() if line["state"] in ("serving", "updating")}


def pids(run_dir: Path) -> dict[str, int]:
    return {actor["actor"]: actor["pid"] for actor in status(run_dir)["actors"]}


def engines_that_answered(run_dir: Path) -> set[str]:
    values = [pair for line in metrics(run_dir, "router") for pair in line["values"].items()]
    return {name.partition("/")[2] for name, rate in values if name.startswith("engine_requests_per_s/") and rate > 0}


def transitions(run_dir: Path, kind: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in (run_dir / "transitions.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def leave(run_dir: Path, changes: list[str], names: set[str], process: subprocess.Popen[str]) -> None:
    """Scale down; these processes end, and nobody speaks of them any more."""
    before, gone = pids(run_dir), len(events(run_dir, "left"))
    answer = scale(run_dir, changes)
    assert set(answer["leaves"]) == names and answer["starts"] == []
    if "engines=1" in changes:  # in the middle of it
        os.kill(before["router"], signal.SIGKILL)
    wait_until(lambda: len(events(run_dir, "left")) == gone + len(names), f"end of {names}", process)
    assert all(event["data"]["finished"] for event in events(run_dir, "left"))
    assert not any(psutil.pid_exists(before[name]) for name in names)
    found = status(run_dir)
    assert not names & {*found["engines"], *(actor["actor"] for actor in found["actors"])}


def test_engines_and_workers_come_and_go_while_a_run_trains(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 4000},
        engine={"num_engines": 1},
        rollout=TINY["rollout"] | {"num_workers": 1},
        staleness={"max_lag": 2},
    )
    run_dir = tmp_path / "run"
    with pytest.raises(ScaleError, match="no run is alive"):
        scale(run_dir, ["engines=2"])
    process = begin(config, run_dir)
    try:
        wait_for_step(run_dir, 2, process)

        os.kill(pids(run_dir)["broadcaster"], signal.SIGKILL)  # its successor learns from the roster who was added
        result = CliRunner().invoke(cli.app, ["scale", str(run_dir), "engines=3", "workers=3", "--json"])
        answer = json.loads(result.stdout)
        assert answer["engines"] == answer["workers"] == {"before": 1, "now": 3}
        assert answer["starts"] == ["engine-1", "engine-2", "rollout-1", "rollout-2"] and not answer["leaves"]
        three = {f"engine-{index}" for index in range(3)}
        wait_until(lambda: engines_that_answered(run_dir) == three, "an answer of each engine", process)
        workers = {f"rollout-{index}" for index in range(3)}
        wait_until(
            lambda: {line["by"].partition("/")[0] for line in transitions(run_dir, "published")} == workers,
            "a group of each worker",
            process,
        )

        leave(run_dir, ["engines=2", "workers=1"], {"engine-2", "rollout-1", "rollout-2"}, process)
        os.kill(pids(run_dir)["engine-1"], signal.SIGKILL)  # one that was added is replaced like any other
        wait_until(lambda: len(events(run_dir, "restarted")) == 2, "another engine-1", process)
        wait_until(lambda: serving(run_dir) == {"engine-0", "engine-1"}, "two engines", process)
        leave(run_dir, ["engines=1"], {"engine-1"}, process)
        assert serving(run_dir) == {"engine-0"}

        wait_for_step(run_dir, metrics(run_dir)[-1]["step"] + 3, process)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    found = summary(run_dir)
    assert found["balanced"] and found["ledger"]["dropped"] == {} and found["max_token_lag"] <= 2
    assert transitions(run_dir, "failed") == []
    assert [event["data"]["actor"] for event in events(run_dir, "restarted")] == ["broadcaster", "engine-1", "router"]
    assert not [log.name for log in (run_dir / "logs").iterdir() if " bus WARNING refused " in log.read_text()]
    assert left_behind(run_dir) == []
