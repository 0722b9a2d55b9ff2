"""Starting, serving, paused, hung and dead are told apart: the judgement alone, and on a real engine that goes through them."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import aiohttp
import pytest
from embedded_engines import EngineProcess, engines
from hypothesis import given
from hypothesis import strategies as st

from actors.engine import EngineHost
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus
from bus.messages import Event
from miles_async.config.schema import Data, Engine, Model, RunConfig
from miles_async.engines.client import EngineClient
from miles_async.engines.sglang import observer as looking
from miles_async.engines.sglang.check import UnfitServerError
from miles_async.engines.sglang.driver import SglangServer
from miles_async.engines.sglang.health import Health, Look, judge
from miles_async.engines.sglang.observer import Observer

HANG_S = 100.0
flags = {name: st.booleans() for name in ("refused", "http", "ready", "scheduler", "generates")}


@st.composite
def looks(draw: st.DrawFn) -> list[Look]:
    """Looks as they can follow each other; who does not answer at all has said nothing else either."""
    found, at = [], 0.0
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.floats(0.1, 60.0))
        look = Look(at, draw(st.sampled_from([None, True, False])), **{k: draw(v) for k, v in flags.items()})
        if not look.http or look.process is False:
            look = Look(at, look.process, refused=look.refused)
        elif look.refused:
            look = Look(at, look.process, refused=True)
        found.append(look)
    return found


def states(seen: list[Look]) -> list[Health]:
    found: list[Health] = []
    for look in seen:
        found.append(judge(found[-1] if found else None, look, HANG_S))
    return found


@given(looks())
def test_each_state_means_what_it_says(seen: list[Look]) -> None:
    for number, (look, found) in enumerate(zip(seen, states(seen), strict=True)):
        before = states(seen[:number])
        generated = [one.ready and one.generates and one.process is not False for one in seen[: number + 1]]
        match found.state:
            case "serving":
                assert generated[-1] or (before and before[-1].state != "starting")
            case "paused":
                assert any(generated) and not generated[-1] and look.process is not False
            case "starting":
                assert not any(generated)
            case "dead":
                assert look.process is False or look.refused
            case "hung":
                # nothing that would be a sign of life came within hang_s
                late = [one for one in seen[: number + 1] if look.at - one.at < HANG_S]
                assert not any(one.ready and one.generates and one.process is not False for one in late)
                assert not any(one.scheduler and not one.ready and one.process is not False for one in late[-1:])
        if generated[-1]:
            assert found.state == "serving"
        if look.process is False:
            assert found.state == "dead"
        assert found.reason and "\n" not in found.reason


@given(looks(), st.lists(st.floats(1.0, 30.0), min_size=1, max_size=30))
def test_a_pause_in_which_the_scheduler_answers_is_never_a_hang_and_silence_always_becomes_one(
    seen: list[Look], steps: list[float]
) -> None:
    served = [
        *states(seen),
        judge(None, Look(seen[-1].at, http=True, ready=True, scheduler=True, generates=True), HANG_S),
    ]
    paused = hung = served[-1]
    at = silent = seen[-1].at
    for step in steps:
        at += step
        paused = judge(paused, Look(at, True, http=True, scheduler=True), HANG_S)
        assert paused.state == "paused"
        hung = judge(hung, Look(at, True), HANG_S)
        assert hung.state == ("hung" if at - silent >= HANG_S else "serving")
    assert judge(hung, Look(at + 1, True, http=True, ready=True, generates=True), HANG_S).state == "serving"


async def until(observer: Observer, state: str, deadline_s: float = 20.0) -> Health:
    """What the observer found, once it is ``state``."""
    deadline = time.monotonic() + deadline_s
    while (found := await observer.look()).state != state:
        assert time.monotonic() < deadline, f"still {found}, not {state}"
        await asyncio.sleep(0.05)
    return found


async def test_an_engine_is_seen_to_serve_to_be_paused_to_hang_and_to_die(
    digits_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_TIMEOUT_S", "SCHEDULER_TIMEOUT_S", "HEALTH_TIMEOUT_S"):
        monkeypatch.setattr(looking, name, 0.5)
    with engines(digits_model, 1) as (engine,):
        async with aiohttp.ClientSession() as session:
            client = EngineClient(engine.url, session)
            observer = Observer(client, hang_s=1.0)
            assert (await observer.look()).state == "serving"
            await client.pause("retract")
            assert (await observer.look()).state == "paused"
            await asyncio.sleep(1.2)  # longer than hang_s
            assert (await observer.look()).state == "paused"
            await client.resume()
            assert (await observer.look()).state == "serving"
            engine.freeze()
            assert (await observer.look()).state == "serving"  # it may be busy
            found = await until(observer, "hung")
            assert "HTTP side has not answered" in found.reason
            engine.thaw()
            await until(observer, "serving")
            engine.kill()
            assert (await observer.look()).state == "dead"
            assert (await Observer(client, 1.0).look(process=False)).state == "dead"
            assert (await Observer(client, 1.0).look()).state == "starting"  # nobody has seen it alive


def host(bus: Bus, model: Path, url: str, kind: str) -> EngineHost:
    config = RunConfig(
        model=Model(hf_checkpoint=str(model)),
        data=Data(),
        engine=Engine(kind=kind, urls=[url], hang_timeout_s=1.0),
    )
    spec = ActorSpec("engine-0", "engine", 0, "", config, Path(), str(model), "", bus.run_id, 1)
    return EngineHost(ActorContext(spec, bus))


async def until_event(bus: Bus, kind: str, count: int = 1) -> Event:
    """The event ``kind`` for the ``count``-th time; at most 20 s."""
    cursor, found = "0", []
    async with asyncio.timeout(20.0):
        while len(found) < count:
            events, cursor = await bus.read("events", Event, cursor, block_ms=200)
            found += [event for event in events if event.kind == kind]
    return found[-1]


async def test_a_hung_server_of_ours_is_killed_with_its_cause_and_somebodys_is_on_record(
    bus: Bus, digits_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_TIMEOUT_S", "SCHEDULER_TIMEOUT_S", "HEALTH_TIMEOUT_S"):
        monkeypatch.setattr(looking, name, 0.5)
    monkeypatch.setattr(looking, "LOOK_INTERVAL_S", 0.1)
    with engines(digits_model, 1) as (engine,):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 7}))
        with pytest.raises(UnfitServerError, match="another model: vocab_size"):
            await host(bus, tmp_path, engine.url, "external").run()

        theirs = host(bus, digits_model, engine.url, "external")
        running = asyncio.create_task(theirs.run())
        await until_event(bus, "engine_up")
        engine.freeze()
        assert "has not answered" in (await until_event(bus, "engine_hung")).data["reason"]
        engine.thaw()
        await until_event(bus, "engine_serving")
        theirs.ctx.stop.set()
        await asyncio.wait_for(running, 10.0)
        assert engine.process.poll() is None

        async def start(*_: object, **__: object) -> Stand:
            return Stand(engine)

        monkeypatch.setattr(SglangServer, "start", start)
        ours = asyncio.create_task(host(bus, digits_model, engine.url, "sglang").run())
        await until_event(bus, "engine_up", 2)
        engine.freeze()
        with pytest.raises(
            RuntimeError, match=r"its sglang server hangs, and is killed: its HTTP side has not answered"
        ):
            await asyncio.wait_for(ours, 20.0)
        assert engine.process.poll() == -9


class Stand:
    """An embedded engine's process in the place of an sglang server."""

    suspicious = ()

    def __init__(self, engine: EngineProcess) -> None:
        self.engine, self.url = engine, engine.url

    def alive(self) -> bool:
        return self.engine.process.poll() is None

    async def wait(self) -> int:
        return await asyncio.to_thread(self.engine.process.wait)

    async def stop(self) -> None:
        self.engine.kill()
