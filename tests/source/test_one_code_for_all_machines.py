"""Invariant 9: device, collective backend, engine program and actor classes are what the configuration says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from actors.engine import EngineHost
from actors.runtime.context import ActorContext
from actors.runtime.plan import specs
from actors.runtime.spec import ActorSpec
from bus import Bus
from miles_async.config.schema import Data, Engine, Model, RunConfig, Topology, Weights
from miles_async.engines.kinds.base import EngineKind
from miles_async.engines.kinds.table import KINDS
from miles_async.train import distributed
from miles_async.train.distributed import LearnerGroups
from miles_async.train.ranks import alone
from miles_async.weights.group import choose_backend

BASE = RunConfig(model=Model(hf_checkpoint="none"), data=Data(prompt_data="none"))


def config(**sections: Any) -> RunConfig:
    return msgspec.structs.replace(BASE, **sections)


@pytest.mark.parametrize(
    ("backend", "device", "gpus", "chosen"),
    [
        ("gloo", "cuda", 8, "gloo"),
        ("nccl", "cpu", 0, "nccl"),
        ("auto", "cpu", 8, "gloo"),
        ("auto", "auto", 8, "nccl"),
        ("auto", "cuda", 1, "gloo"),  # NCCL refuses two ranks on one GPU
        ("auto", "auto", 0, "gloo"),
    ],
)
def test_the_backend_of_weight_transfers_is_the_configured_one_or_fits_the_machine(
    backend: Any, device: Any, gpus: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    model = Model(hf_checkpoint="none", device=device)
    assert choose_backend(config(model=model, weights=Weights(backend=backend))) == chosen


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:0", "nccl")])
def test_the_learner_ranks_meet_over_the_backend_of_their_device_and_wait_no_longer_than_they_are_told(
    device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        """Ends the start where the backend is known."""

    def init(name: str, **options: Any) -> None:
        raise Asked(f"{name} for {options['timeout'].total_seconds()} s")

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed.dist, "init_process_group", init)
    with pytest.raises(Asked, match=rf"{backend} for 7\.0 s"):
        LearnerGroups(torch.device(device), alone("file:///nowhere"), timeout_s=7.0)


@pytest.mark.parametrize("kind", ["embedded", "sglang", "external"])
async def test_the_engine_program_is_the_configured_one(
    kind: Any, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    for name, kind_class in KINDS.all_ours().items():

        async def host(self: EngineKind, host: EngineHost, name: str = name) -> None:
            started.append(name)

        monkeypatch.setattr(kind_class, "host", host)
    spec = ActorSpec("engine-0", "engine", 0, "", config(), tmp_path, "", "", bus.run_id, 1)
    spec = replace(spec, config=config(engine=Engine(kind=kind)))
    await EngineHost(ActorContext(spec, bus)).run()
    assert started == [kind]


def test_a_role_can_be_replaced_by_its_dotted_path(tmp_path: Path) -> None:
    topology = Topology(learner="somebody.elses.Learner")
    planned = specs(config(topology=topology), tmp_path, "", "", "run", 1)
    paths = {spec.role: spec.path for spec in planned}
    assert paths["learner"] == "somebody.elses.Learner"
    assert paths["dealer"] == "actors.dealer.Dealer"
