"""Weights with adapters: engines get what has changed, and are bit by bit what a whole push would have made them, whoever comes
late, comes back or was in the middle of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from announcing import announce
from embedded_engines import EngineProcess, snapshot_of
from weights_stage import DEADLINE_S, Stage

from actors.broadcaster import Broadcaster
from bus.messages import EngineDown, EngineServes, Metrics
from miles_async.config.schema import Learner
from miles_async.engines.client import EngineClient
from miles_async.weights.buckets import make_buckets
from miles_async.weights.changes import to_send
from miles_async.weights.check import bucket_sums
from miles_async.weights.group import WeightGroup
from miles_async.weights.snapshot import load_snapshot, snapshot_name, write_snapshot

ADAPTED = ("q_proj.weight", "down_proj.weight")


@pytest.fixture
def adapted(stage: Stage) -> Stage:
    stage.learner = Learner(lora_rank=4)
    return stage


async def push(stage: Stage, version: int, *names: str) -> None:
    """A snapshot that differs from the model in what adapters change, and have the engines brought to it."""
    root = Path(str(stage.weights.snapshot_dir))
    noisy = load_snapshot(snapshot_of(stage.model, stage.run_dir / "noisy", version))
    base = load_snapshot(stage.model)
    tensors = {name: noisy[name] if name.endswith(ADAPTED) else tensor for name, tensor in base.items()}
    await announce(stage.bus, version, 0, write_snapshot(root, version, 0, tensors, str(stage.model)))
    for name in names:
        await stage.hear(EngineServes, engine=name, version=version)


async def sums(engine: EngineProcess) -> dict[str, str]:
    async with aiohttp.ClientSession() as session:
        answer: Any = await EngineClient(engine.url, session).checksums()
    return answer["ranks"][0]["checksums"]


def whole_push(stage: Stage, version: int) -> dict[str, str]:
    """The checksums of an engine that has all of that version's snapshot."""
    path = Path(str(stage.weights.snapshot_dir)) / snapshot_name(0, version)
    return bucket_sums(make_buckets(load_snapshot(path), 1 << 30), "float32")


async def bytes_sent(stage: Stage, waves: int) -> list[float]:
    """Of each of the first waves, to all of its engines together."""
    found, cursor = list[Metrics](), "0"
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < waves:
            more, cursor = await stage.bus.read("metrics", Metrics, cursor, block_ms=200)
            found += more
    return [message.values["weights/bytes"] for message in found]


def sizes(stage: Stage) -> tuple[int, int]:
    """Bytes of all weights, and of what is sent of the changed ones."""
    tensors = load_snapshot(stage.model)
    changed = to_send(tensors, {name for name in tensors if name.endswith(ADAPTED)})
    return sum(t.nbytes for t in tensors.values()), sum(t.nbytes for t in changed.values())


async def test_engines_get_what_has_changed_and_have_the_bits_of_the_whole(
    adapted: Stage, pair: list[EngineProcess]
) -> None:
    whole, part = sizes(adapted)
    assert part < 0.7 * whole
    async with adapted.running(Broadcaster):
        await adapted.engine_up("engine-0", pair[0], version=-1)
        await push(adapted, 1, "engine-0")
        await push(adapted, 2, "engine-0")
        await push(adapted, 3, "engine-0")
        assert await bytes_sent(adapted, 3) == [whole, part, part]
        await adapted.engine_up("engine-1", pair[1], version=-1)  # which is late
        await adapted.hear(EngineServes, engine="engine-1", version=3)
        assert await bytes_sent(adapted, 4) == [whole, part, part, whole]
        expected = whole_push(adapted, 3)
        assert await sums(pair[0]) == await sums(pair[1]) == expected
        await push(adapted, 4, "engine-0", "engine-1")
        await push(adapted, 5, "engine-0", "engine-1")
        assert await sums(pair[0]) == await sums(pair[1]) == whole_push(adapted, 5)
        # of two waves, of one engine each; the wave of the one that was late is a new group
        assert sorted((await bytes_sent(adapted, 8))[4:]) == [part, part, part, part]


async def test_an_engine_that_is_not_where_it_was_gets_all(adapted: Stage, pair: list[EngineProcess]) -> None:
    """One that left the group is for the broadcaster one that was started again at its address, and noticed by nobody."""
    whole, part = sizes(adapted)
    broadcaster: list[Broadcaster] = []

    class Known(Broadcaster):
        def __init__(self, ctx: Any) -> None:
            super().__init__(ctx)
            broadcaster.append(self)

    async with adapted.running(Known):
        await adapted.engine_up("engine-0", pair[0], version=-1)
        await push(adapted, 1, "engine-0")
        await push(adapted, 2, "engine-0")
        [group] = broadcaster[0].transport.groups._groups.values()  # type: ignore[attr-defined]
        async with aiohttp.ClientSession() as session:
            client = EngineClient(pair[0].url, session)
            await client.destroy_group(group.name)
            await client.update_from_disk(
                str(adapted.model), version="7", flush_cache=True, timeout=20.0
            )  # as who starts again has other weights
        await push(adapted, 3, "engine-0")
        assert await bytes_sent(adapted, 3) == [whole, part, whole]
        assert await sums(pair[0]) == whole_push(adapted, 3)


async def test_a_broadcaster_that_is_killed_in_the_middle_leaves_nothing_half_sent(
    adapted: Stage, pair: list[EngineProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = sizes(adapted)
    begun = asyncio.Event()
    broadcast = WeightGroup.broadcast

    async def never_ends(_: WeightGroup, __: Any, receive: dict[str, Any], ___: float) -> None:
        for call in receive.values():
            call.close()
        begun.set()
        await asyncio.Event().wait()

    ctx = adapted.context("broadcaster")
    killed = asyncio.create_task(Broadcaster(ctx).run())
    await adapted.engine_up("engine-0", pair[0], version=-1)
    await push(adapted, 1, "engine-0")
    monkeypatch.setattr(WeightGroup, "broadcast", never_ends)
    await push(adapted, 2)
    async with asyncio.timeout(30):
        await begun.wait()
    killed.cancel()
    ctx.stop.set()
    with pytest.raises((asyncio.CancelledError, BaseExceptionGroup)):
        await killed
    monkeypatch.setattr(WeightGroup, "broadcast", broadcast)
    async with adapted.running(Broadcaster):
        await adapted.hear(EngineServes, engine="engine-0", version=2)
        assert await sums(pair[0]) == whole_push(adapted, 2)
        await push(adapted, 3, "engine-0")
        assert await sums(pair[0]) == whole_push(adapted, 3)
    assert await bytes_sent(adapted, 3) == [whole, whole, part]


async def test_an_engine_that_was_found_to_differ_gets_all(adapted: Stage, pair: list[EngineProcess]) -> None:
    async with adapted.running(Broadcaster):
        await adapted.engine_up("engine-0", pair[0], version=-1)
        await push(adapted, 1, "engine-0")
        other = snapshot_of(adapted.model, adapted.run_dir / "other", 9)
        async with aiohttp.ClientSession() as session:
            client = EngineClient(pair[0].url, session)
            await client.update_from_disk(str(other), version="1", flush_cache=True, timeout=20.0)
        await adapted.bus.publish("weights", EngineDown(engine="engine-0", reason="it differs", incarnation=1))
        await push(adapted, 2, "engine-0")
        assert await sums(pair[0]) == whole_push(adapted, 2)
