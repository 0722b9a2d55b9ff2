"""Only weights that a learner of this run has announced, as it wrote them, are taken for weights of the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from announcing import announce

from actors.broadcaster import Broadcaster
from actors.evaluator import Candidate, _damage
from actors.learner_offers import Offers, ask_again
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, LedgerError, SnapshotLedger
from bus.messages import Control, Event, Snapshot
from miles_async.config.schema import Data, Model, RunConfig, Weights
from miles_async.rollout.generate import AnswerError
from miles_async.rollout.published import PublishedVersions
from miles_async.weights.snapshot import WEIGHTS_FILE, SnapshotError, load_snapshot, write_snapshot
from miles_async.weights.verify import announced_checksum, check


@pytest.fixture
def hf(tmp_path: Path) -> str:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    return str(tmp_path / "hf")


def written(root: Path, hf: str, version: int = 3, incarnation: int = 1) -> Snapshot:
    tensors = {"a": torch.arange(5000, dtype=torch.float32), "b": torch.ones(3, dtype=torch.bfloat16)}
    path = write_snapshot(root, version, incarnation, tensors, hf)
    return Snapshot(version=version, incarnation=incarnation, path=str(path), checksum=announced_checksum(path))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(at: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage", [cut, *(flip(at) for at in (0, 9, 40, 120, 400, 5000, -1)), lambda file: file.write_bytes(b"")]
)
def test_weights_that_were_cut_short_or_changed_in_any_byte_are_found(damage: Any, tmp_path: Path, hf: str) -> None:
    snapshot = written(tmp_path / "s", hf)
    check(snapshot, [tmp_path / "s"])
    loaded = load_snapshot(snapshot.path)
    assert loaded["a"][4999] == 4999 and loaded["b"].sum() == 3
    del loaded
    damage(Path(snapshot.path) / WEIGHTS_FILE)
    with pytest.raises(SnapshotError) as caught:
        check(snapshot, [tmp_path / "s"])
    assert "\n" not in str(caught.value) and snapshot.path in str(caught.value)


def test_weights_of_another_version_or_learner_or_place_are_not_what_was_announced(tmp_path: Path, hf: str) -> None:
    root = tmp_path / "s"
    snapshot, other = written(root, hf), written(root, hf, version=2)
    for changed in ({"version": 53}, {"incarnation": 2}, {"checksum": ""}, {"checksum": other.checksum}):
        with pytest.raises(SnapshotError):
            check(msgspec.structs.replace(snapshot, **changed), [root])
    elsewhere = written(tmp_path / "elsewhere", hf)
    with pytest.raises(SnapshotError, match="no place"):
        check(elsewhere, [root])
    renamed = Path(snapshot.path).rename(root / "i0001-v00000053")  # old weights under a later number
    with pytest.raises(SnapshotError, match="is of version 3, incarnation 1"):
        check(msgspec.structs.replace(snapshot, version=53, path=str(renamed)), [root])


async def test_a_snapshot_that_no_learner_announced_is_nobodys(bus: Bus) -> None:
    ledger, published = SnapshotLedger(bus), PublishedVersions(bus)
    true = await announce(bus, 3)
    assert await ledger.knows(true)
    forged = [
        msgspec.structs.replace(true, version=53),
        msgspec.structs.replace(true, incarnation=9),
        msgspec.structs.replace(true, path="elsewhere"),
        msgspec.structs.replace(true, checksum="0" * 64),
    ]
    for snapshot in forged:
        await bus.publish("weights", snapshot)
        assert not await ledger.knows(snapshot)
    with pytest.raises(AnswerError, match="the newest that was ever published is 3"):
        await published.check({"meta_info": {"id": "g", "weight_versions": [{"version": "53", "start": 0, "end": 1}]}})
    assert bus.refused["weights"] >= len(forged)


async def test_a_learner_announces_no_version_without_batches_and_none_after_its_successor(bus: Bus) -> None:
    ledger = SnapshotLedger(bus)
    await ledger.announce(Snapshot(version=0, incarnation=4, path="p"))
    await bus.redis.hset(bus.key("l:meta"), "last_step", 2)
    await ledger.announce(Snapshot(version=2, incarnation=4, path="p"))
    with pytest.raises(LedgerError, match="version 3, incarnation 4: the ledger has no batch"):
        await ledger.announce(Snapshot(version=3, incarnation=4, path="p"))
    await ledger.announce(Snapshot(version=1, incarnation=6, path="p"))
    with pytest.raises(LedgerError, match="a learner of a later incarnation"):
        await ledger.announce(Snapshot(version=2, incarnation=4, path="late"))
    messages, _ = await bus.read("weights", Snapshot, "0")
    assert [(m.incarnation, m.version) for m in messages] == [(4, 0), (4, 2), (6, 1)]


def context(bus: Bus, role: str, run_dir: Path) -> ActorContext:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        weights=Weights(snapshot_dir=str(run_dir / "s")),
    )
    return ActorContext(ActorSpec(role, role, 0, "", config, run_dir, "", "", bus.run_id, 1), bus)


async def test_a_damaged_snapshot_is_refused_with_an_event_and_asked_for_again(
    bus: Bus, tmp_path: Path, hf: str
) -> None:
    broadcaster = Broadcaster(context(bus, "broadcaster", tmp_path))
    learner = Offers(context(bus, "learner", tmp_path))
    snapshot = written(tmp_path / "s", hf)
    broadcaster.fleet.fold(snapshot)
    flip(-1)(Path(snapshot.path) / WEIGHTS_FILE)
    assert not await learner.is_asked_for(3)
    assert await broadcaster._load(snapshot) is None and broadcaster.fleet.newest is None
    events, _ = await bus.read("events", Event, "0")
    assert [(event.kind, event.data["version"]) for event in events] == [("snapshot_refused", 3)]
    assert "is damaged" in str(events[0].data["cause"])
    assert not await Offers(context(bus, "learner", tmp_path)).is_asked_for(4)  # it has newer ones by now
    assert await learner.is_asked_for(3) and not await learner.is_asked_for(3)
    again = written(tmp_path / "s", hf)
    broadcaster.fleet.fold(again)
    update = await broadcaster._load(again)
    assert update is not None and update.version == 3


@pytest.mark.parametrize("begins", [True, False], ids=["a-new-broadcaster", "the-same-one"])
async def test_weights_that_were_announced_and_are_not_seen_here_are_asked_for_again(
    bus: Bus, tmp_path: Path, begins: bool
) -> None:
    learner = Offers(context(bus, "learner", tmp_path))
    broadcaster = Broadcaster(context(bus, "broadcaster", tmp_path))
    cursor = await broadcaster._read_history()
    await announce(bus, 3, path=tmp_path / "memory-of-another-machine" / "i0001-v00000003")
    if begins:
        await Broadcaster(context(bus, "broadcaster", tmp_path))._read_history()
    else:
        following = asyncio.create_task(broadcaster._follow(cursor))
        while not bus.refused["weights"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        broadcaster.ctx.stop.set()
        await following
    assert await learner.is_asked_for(3) and broadcaster.fleet.newest is None
    assert bus.refused["weights"] == 1
    events, _ = await bus.read("events", Event, "0")
    assert [(event.kind, event.data["version"]) for event in events] == [("snapshot_gone", 3)]


async def test_what_the_learner_is_asked_stops_no_actor(bus: Bus, tmp_path: Path) -> None:
    ctx = context(bus, "learner", tmp_path)
    await ask_again(ctx, 3)
    await bus.publish("control", Control(command="stop"))
    await ctx.obey()
    assert ctx.stop.is_set() and not ctx.finish.is_set() and not bus.refused["control"]


def test_a_damaged_pin_is_no_point_of_an_evaluation(tmp_path: Path, hf: str) -> None:
    snapshot = written(tmp_path / "s", hf)
    path = Path(snapshot.path)
    point = Candidate(3, 1, path, path, snapshot.checksum)
    assert _damage(point) is None
    flip(-1)(path / WEIGHTS_FILE)
    assert "is damaged" in str(_damage(point))
    assert _damage(Candidate(0, 1, path, None)) is None  # the checkpoint that training began with
