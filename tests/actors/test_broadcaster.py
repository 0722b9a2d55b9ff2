"""The broadcaster as an actor: a real bus, real engines, snapshots as the learner writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from embedded_engines import EngineProcess, engines, snapshot_of
from weights_stage import Stage, body

from actors.broadcaster import Broadcaster
from actors.engine import EngineHost
from actors.router import Router
from bus.messages import EngineDown, EngineServes, Event, Metrics
from miles_async.config.schema import Weights
from miles_async.engines.client import EngineClient
from miles_async.weights.delta import checksum
from miles_async.weights.snapshot import load_snapshot
from miles_async.weights.transports.collective import Collective
from miles_async.weights.update import PushReport, Receiver, Update


async def version_of(engine: EngineProcess) -> str:
    async with aiohttp.ClientSession() as session:
        return (await EngineClient(engine.url, session).model_info())["weight_version"]


async def test_a_version_is_announced_for_each_engine_only_after_that_engine_serves_it(
    stage: Stage, pair: list[EngineProcess]
) -> None:
    async with stage.running(Broadcaster):
        for index, engine in enumerate(pair):
            await stage.engine_up(f"engine-{index}", engine, version=-1)
        for version in (1, 2, 3):
            await stage.snapshot(version)
            for index, engine in enumerate(pair):
                await stage.hear(EngineServes, engine=f"engine-{index}", version=version)
                assert await version_of(engine) == str(version)
        ledger = await stage.bus.engines()
        assert {(name, line.version, line.state) for name, line in ledger.items()} == {
            ("engine-0", 3, "serving"),
            ("engine-1", 3, "serving"),
        }
    metrics, _ = await stage.bus.read("metrics", Metrics, "0")
    assert all(m.values["weights/bytes"] > 0 and m.values["weights/update_s"] > 0 for m in metrics)
    assert metrics[-1].values["weights/publish_lag"] == 0
    assert (
        metrics[-1].values["weights/publish_s"] >= metrics[-1].values["weights/update_s"]
    )  # it begins before the update


async def test_one_engine_generates_while_the_other_is_paused_for_its_update(
    stage: Stage, pair: list[EngineProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = EngineClient.pause
    answered: list[tuple[str, str]] = []

    async def pause_and_ask_the_other(self: EngineClient, mode: str, timeout: float = 30.0) -> None:
        await pause(self, mode, timeout)
        other = next(engine for engine in pair if engine.url != self.url)
        body = {"input_ids": [3, 2, 4, 2], "sampling_params": {"max_new_tokens": 3}}
        async with aiohttp.ClientSession() as session:
            answer: Any = await EngineClient(other.url, session).generate(body, timeout=5.0)
        answered.append((self.url, answer["meta_info"]["weight_version"]))

    async with stage.running(Broadcaster):
        for index, engine in enumerate(pair):
            await stage.engine_up(f"engine-{index}", engine, version=-1)
        await stage.snapshot(1)
        await stage.hear(EngineServes, count=2, version=1)
        monkeypatch.setattr(EngineClient, "pause", pause_and_ask_the_other)
        await stage.snapshot(2)
        await stage.hear(EngineServes, count=2, version=2)
    assert len({url for url, _ in answered}) == 2
    assert [version for _, version in answered] == ["1", "2"]  # the wave before its own update, the other one after


async def test_engines_that_come_with_the_start_weights_are_announced_without_a_transfer(
    stage: Stage, digits_model: Path
) -> None:
    with engines(digits_model, 1) as [engine]:
        async with stage.running(Broadcaster):
            await stage.engine_up("engine-0", engine)
            await stage.snapshot(0)
            await stage.hear(EngineServes, engine="engine-0", version=0)
        assert (await stage.bus.read("metrics", Metrics, "0"))[0] == []


async def test_a_late_engine_and_a_broadcaster_that_starts_again_catch_up_from_the_stream(
    stage: Stage, pair: list[EngineProcess]
) -> None:
    async with stage.running(Broadcaster):
        await stage.engine_up("engine-0", pair[0], version=-1)
        await stage.snapshot(4)
        await stage.hear(EngineServes, engine="engine-0", version=4)
    await stage.snapshot(5)  # nobody is there to send it
    await stage.engine_up("engine-1", pair[1], version=-1)
    async with stage.running(Broadcaster):
        for index, engine in enumerate(pair):
            await stage.hear(EngineServes, engine=f"engine-{index}", version=5)
            assert await version_of(engine) == "5"
        # a learner that went back to a checkpoint counts down, with a new incarnation
        await stage.snapshot(2, incarnation=2)
        for index, engine in enumerate(pair):
            await stage.hear(EngineServes, engine=f"engine-{index}", version=2)
            assert await version_of(engine) == "2"


async def test_a_killed_engine_is_reported_the_others_go_on_and_its_successor_catches_up(
    stage: Stage, pair: list[EngineProcess], digits_model: Path
) -> None:
    with engines(digits_model, 1) as [doomed]:
        async with stage.running(Broadcaster), stage.running(Router):
            url = await stage.bus.address("router", deadline_s=10)
            await stage.engine_up("engine-0", pair[0], version=-1)
            await stage.engine_up("engine-1", doomed, version=-1)
            await stage.snapshot(1)
            await stage.hear(EngineServes, count=2, version=1)
            doomed.kill()
            await stage.snapshot(2)
            await stage.hear(EngineServes, engine="engine-0", version=2)
            await stage.hear(EngineDown, engine="engine-1", incarnation=1)
            with engines(digits_model, 1) as [successor]:
                await stage.engine_up("engine-1", successor, incarnation=2)
                await stage.hear(EngineServes, engine="engine-1", version=2, incarnation=2)
                assert await version_of(successor) == "2"
                async with aiohttp.ClientSession() as session:
                    client = EngineClient(url, session)
                    answers = [await client.generate(body(5)) for _ in range(4)]
            assert {answer["meta_info"]["weight_version"] for answer in answers if isinstance(answer, dict)} == {"2"}


async def test_an_engine_that_no_collective_reaches_loads_its_own_copy_which_follows_by_deltas(
    stage: Stage, tmp_path: Path
) -> None:
    shared, local = tmp_path / "shared", tmp_path / "local"
    stage.weights = Weights(
        timeout_s=20.0,
        transport="disk_delta",
        snapshot_dir=str(stage.run_dir / "snapshots"),
        delta_dir=str(shared),
        mirror_dir=str(local),
        pause_mode="retract",
    )
    async with stage.running(Broadcaster), stage.running(EngineHost, "engine-0"), aiohttp.ClientSession() as session:
        await stage.snapshot(0)
        await stage.hear(EngineServes, engine="engine-0", version=0)
        for version in (1, 2, 3):
            if version == 3:
                flip(local / "i0001-v00000002" / "model.safetensors")  # it is found, and a full copy makes it good
            await stage.snapshot(version)
            [serves] = await stage.hear(EngineServes, engine="engine-0", version=version)
            assert isinstance(serves, EngineServes)
            client = EngineClient(serves.url, session)
            copy = local / f"i0001-v{version:08d}"
            assert (await client.model_info())["model_path"] == str(copy)
            sums = (await client.checksums())["ranks"][0]["checksums"]
            sent = load_snapshot(stage.run_dir / "snapshots" / f"i0001-v{version:08d}")
            assert sums == {name: checksum(sent[name]) for name in sums}
    events, _ = await stage.bus.read("events", Event, "0")
    asked = [event.data for event in events if event.kind == "full_copy"]
    assert [(data["version"], "by its checksum" in str(data["cause"])) for data in asked] == [(3, True)]
    assert sorted(path.name for path in shared.glob("i*-v*")) == [
        "i0001-v00000002.delta",
        "i0001-v00000003.delta",
        "i0001-v00000003.full",
    ]


async def test_an_engine_whose_weights_were_tampered_with_is_named_taken_out_and_made_right(
    stage: Stage, pair: list[EngineProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.weights = msgspec.structs.replace(stage.weights, check_interval=1)
    tampered = snapshot_of(stage.model, stage.run_dir / "other", 9)
    spoiled: list[str] = []

    push = Collective.push

    async def push_and_tamper(self: Collective, receivers: list[Receiver], update: Update, **more: Any) -> PushReport:
        report = await push(self, receivers, update, **more)
        for receiver in receivers:
            if receiver.name == "engine-1" and update.version >= 2 and not spoiled:
                spoiled.append(receiver.name)
                await receiver.client.update_from_disk(str(tampered), version="2", flush_cache=True, timeout=20)
        return report

    monkeypatch.setattr(Collective, "push", push_and_tamper)
    async with stage.running(Broadcaster):
        for index, engine in enumerate(pair):
            await stage.engine_up(f"engine-{index}", engine, version=-1)
        for version in (1, 2):
            await stage.snapshot(version)
            await stage.hear(EngineServes, engine="engine-0", version=version)
        [down] = await stage.hear(EngineDown, engine="engine-1")
        assert isinstance(down, EngineDown) and down.reason.endswith("is not as in the snapshot")
        await stage.hear(EngineServes, engine="engine-1", version=2)
    async with aiohttp.ClientSession() as session:
        sums = [await EngineClient(engine.url, session).checksums() for engine in pair]
    assert sums[0] == sums[1]
    events, _ = await stage.bus.read("events", Event, "0")
    named = [event.data for event in events if event.kind == "weights_differ"]
    assert [(data["engine"], data["version"]) for data in named] == [("engine-1", 2)]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
