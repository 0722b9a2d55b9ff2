"""A version is announced when the engine has confirmed it, and to nobody else's name: pushes to engines that lie or die."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.broadcaster import Broadcaster
from actors.engine import EngineHost
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus
from bus.messages import EngineDown, EngineServes, EngineUp, Snapshot
from miles_async.config.schema import Data, Engine, Model, RunConfig, Weights
from miles_async.engines.client import EngineClient, EngineError
from miles_async.weights.fleet import Member
from miles_async.weights.push import push
from miles_async.weights.transports.disk import load_from_disk
from miles_async.weights.update import PushReport, Receiver, Update

DISK = Weights(transport="disk", timeout_s=5)


class StandInEngine:
    """Takes every call; ``obeys`` says whether an update changes its weights."""

    def __init__(self, obeys: bool) -> None:
        self.obeys, self.version, self.calls = obeys, "1", []

    async def update_from_disk(self, path: str, *, version: str, **_: Any) -> None:
        self.calls.append("update")
        if self.obeys:
            self.version = version

    async def model_info(self, timeout: float = 1.0) -> dict[str, Any]:
        return {"weight_version": self.version}

    async def pause(self, mode: str, timeout: float = 1.0) -> None:
        self.calls.append("pause")

    async def resume(self, timeout: float = 1.0) -> None:
        self.calls.append("resume")

    async def abort(self, *_: Any, **__: Any) -> None:
        self.calls.append("abort")


async def test_an_engine_counts_as_updated_only_once_it_names_the_version() -> None:
    honest, liar = StandInEngine(obeys=True), StandInEngine(obeys=False)
    receivers: Any = [Receiver("honest", honest, 1), Receiver("liar", liar, 1)]  # type: ignore[arg-type]
    report = await push(receivers, Update(2, Path("nowhere"), ()), load_from_disk, DISK)
    assert report.served == ("honest",)
    assert "serves version '1' after an update to 2" in report.failed["liar"]
    # what the liar holds may be a mixture: nothing that it generates may be labelled with either version
    assert liar.calls == ["pause", "update", "abort", "resume"]
    assert honest.calls == ["pause", "update", "resume"]


def make_broadcaster(bus: Bus, tmp_path: Path) -> Broadcaster:
    config = RunConfig(
        model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"), weights=DISK, engine=Engine(num_engines=3)
    )
    spec = ActorSpec("broadcaster", "broadcaster", 0, "", config, tmp_path, "", "", bus.run_id, 1)
    broadcaster = Broadcaster(ActorContext(spec, bus))
    broadcaster.fleet.fold(Snapshot(version=2, incarnation=1, path="nowhere"))
    for index in range(2):
        up = EngineUp(engine=f"engine-{index}", url=f"http://127.0.0.1:{index + 1}", incarnation=1, version=-1)
        broadcaster.fleet.fold(up)
    return broadcaster


async def test_only_what_a_push_reports_as_served_is_announced_and_only_after_it(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcaster = make_broadcaster(bus, tmp_path)
    before: list[Any] = []

    async def fake_push(*_: Any, **__: Any) -> PushReport:
        before.extend((await bus.read("weights", EngineServes, "0"))[0])
        before.extend(line for line in (await bus.engines()).values() if line.state == "serving")
        return PushReport(2, 0, 0.1, {}, ("engine-0",), {"engine-1": "it died"})

    async def load(snapshot: Snapshot) -> Update:
        return Update(snapshot.version, Path(snapshot.path), ())

    async def receiver(member: Member) -> Receiver:
        return Receiver(member.name, EngineClient(member.url, None), 1)  # type: ignore[arg-type]

    monkeypatch.setattr(broadcaster.transport, "push", fake_push)
    monkeypatch.setattr(broadcaster, "_load", load)
    monkeypatch.setattr(broadcaster, "_receiver", receiver)
    await broadcaster._update_wave(list(broadcaster.fleet.members.values()))
    assert before == []
    served, _ = await bus.read("weights", EngineServes, "0")
    assert [(message.engine, message.version) for message in served] == [("engine-0", 2)]
    down, _ = await bus.read("weights", EngineDown, "0")
    assert [message.engine for message in down] == ["engine-1"]
    engines = await bus.engines()
    assert (engines["engine-0"].version, engines["engine-0"].state, engines["engine-1"].state) == (2, "serving", "down")


async def test_a_start_version_is_announced_without_a_transfer_only_if_the_engine_names_it(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcaster = make_broadcaster(bus, tmp_path)
    start = Snapshot(version=0, incarnation=1, path="nowhere")
    members = [Member(name, "http://127.0.0.1:1", 1, 0) for name in ("engine-0", "engine-1", "engine-2")]
    broadcaster.fleet.members = {member.name: member for member in members}
    says = {"engine-0": "0", "engine-1": "7"}

    class Asked:
        def __init__(self, name: str) -> None:
            self.name = name

        async def model_info(self, timeout: float) -> dict[str, Any]:
            if self.name not in says:
                raise EngineError(self.name, "/model_info", "gone")
            return {"weight_version": says[self.name]}

    monkeypatch.setattr(broadcaster, "_client", lambda member: Asked(member.name))
    left = await broadcaster._announce_current(members, start)
    assert [member.name for member in left] == ["engine-1"]  # it gets the weights
    served, _ = await bus.read("weights", EngineServes, "0")
    assert [message.engine for message in served] == ["engine-0"]


@pytest.mark.parametrize(("reported", "announced"), [("3", 3), ("default", -1), ("", -1)])
async def test_an_engine_is_announced_with_the_version_that_it_names_itself(
    reported: str, announced: int, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"))
    spec = ActorSpec("engine-0", "engine", 0, "", config, tmp_path, "", "", bus.run_id, 1)

    async def info(self: EngineClient) -> dict[str, Any]:
        return {"weight_version": reported}

    monkeypatch.setattr(EngineClient, "model_info", info)
    await EngineHost(ActorContext(spec, bus)).announce("http://127.0.0.1:1")
    ((up,), _) = await bus.read("weights", EngineUp, "0")
    assert up.version == announced
