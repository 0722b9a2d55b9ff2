"""Actors on a bus of the test's, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.rollout import RolloutWorker
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus
from miles_async.config.schema import Data, Model, Record, Rollout, RunConfig


def context(bus: Bus, role: str, **rollout: Any) -> ActorContext:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        rollout=Rollout(**rollout),
        record=Record(level="off"),
    )
    return ActorContext(ActorSpec(f"{role}-0", role, 0, "", config, Path(), "", "", bus.run_id, 1), bus)


def worker(bus: Bus, monkeypatch: pytest.MonkeyPatch, **rollout: Any) -> RolloutWorker:
    monkeypatch.setattr("actors.rollout.Tokenizer", lambda path: None)
    return RolloutWorker(context(bus, "rollout", **rollout))
