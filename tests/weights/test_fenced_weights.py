"""A broadcaster, or an engine, that has been replaced: no engine and no mirror takes it for its successor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fenced import Replaced, life

from miles_async.config.schema import Weights
from miles_async.weights.delta_mirror import Mirror, State, state_file
from miles_async.weights.delta_sender import DeltaSender
from miles_async.weights.push import Wave
from miles_async.weights.snapshot import write_snapshot
from miles_async.weights.update import Receiver


class Client:
    """An engine that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def pause(self, mode: str, timeout: float) -> None:
        self.told.append("pause")

    async def begin_update(self, timeout: float) -> bool:
        self.told.append("begin")
        return True


async def test_a_broadcaster_that_has_been_replaced_pauses_no_engine() -> None:
    client: Any = Client()
    with life(1, 0), pytest.raises(Replaced):
        await Wave([Receiver("engine-0", client, 1)], Weights()).pause(session=True)
    assert client.told == []
    with life(2):
        await Wave([Receiver("engine-0", client, 1)], Weights()).pause(session=True)
    assert client.told == ["pause", "begin"]


def _snapshot(home: Path, version: int) -> Path:
    (home / "hf").mkdir(exist_ok=True)
    (home / "hf" / "config.json").write_text("{}")
    return write_snapshot(home / "snapshots", version, 1, {"a": torch.full((64,), float(version))}, str(home / "hf"))


@pytest.mark.parametrize(("has_sent", "questions"), [(True, 0), (True, 1), (False, 0)])
async def test_a_broadcaster_that_has_been_replaced_changes_nothing_in_the_shared_directory(
    tmp_path: Path, has_sent: bool, questions: int
) -> None:
    shared = tmp_path / "shared"
    old, new = (DeltaSender(shared, timeout_s=10) for _ in range(2))
    with life(1):
        if has_sent:
            await old.offer(_snapshot(tmp_path, 1), (1, 1))
    with life(2):
        await new.offer(_snapshot(tmp_path, 2), (1, 2))
        (shared / ".i0001-v00000003.delta.i0002-draft").write_bytes(b"what the successor is writing")
    before = {path.name: path.read_bytes() for path in shared.glob("*i0*")}
    with life(1, questions), pytest.raises(Replaced):
        await old.offer(_snapshot(tmp_path, 3), (1, 3))
    assert {path.name: path.read_bytes() for path in shared.glob("*i0*")} == before


def test_the_mirror_of_an_earlier_life_of_an_engine_is_silent(tmp_path: Path) -> None:
    def say(incarnation: int, path: str) -> str:
        mirror = Mirror("engine-0", tmp_path, lambda _: tmp_path)
        mirror.state = State((1, 1), path)
        with life(incarnation):
            mirror._say()
        return state_file(tmp_path, "engine-0").read_text()

    assert "/first" in say(1, "/first")
    assert "/second" in say(2, "/second")
    assert "/second" in say(1, "/first")
    assert "/third" in say(2, "/third")
    state_file(tmp_path, "engine-0").write_bytes(b"{")
    assert "/first" in say(1, "/first")
