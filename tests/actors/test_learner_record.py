"""What a learner adds to the record is there when it has ended, and a disk that takes nothing is nothing to the run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from stand_in_learner import BATCH, StandInTrainer, make_learner, publish, run
from stand_in_learner import no_weights as no_weights

from bus import Bus, Ledger
from bus.messages import Event, Group
from miles_async.config.schema import Record, Run
from miles_async.recording.learner_log_probs import OUTCOME, OfGroup
from miles_async.recording.segments import Payloads, scan

STEPS = 3


class OwnLogProbs(StandInTrainer):
    """Has minus the version for each token."""

    def step(self, groups: list[Group], *, max_lag: int, sizes: list[int], ticks: bool = True) -> dict[str, float]:
        metrics = super().step(groups, max_lag=max_lag, sizes=sizes, ticks=ticks)
        count = sum(len(sample.loss_mask) for group in groups for sample in group.samples)
        self.own = np.full(count, -float(self.version), dtype=np.float32)
        return metrics

    def token_log_probs(self) -> np.ndarray:
        return self.own


async def learnt(bus: Bus, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> OwnLogProbs:
    trainer = OwnLogProbs()
    await publish(Ledger(bus), STEPS * BATCH)
    sections = {"run": Run(num_steps=STEPS), "record": Record(learner_log_probs=True)}
    await run(make_learner(bus, run_dir, trainer, monkeypatch, **sections))
    return trainer


async def test_each_group_that_was_trained_has_the_learners_log_probs_beside_it(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = await learnt(bus, tmp_path, monkeypatch)
    (file,) = (tmp_path / "record").glob("learner-0-1-*.seg")
    found: dict[str, OfGroup] = {}
    for entry, place in scan(file):
        assert (entry.outcome, entry.lease) == (OUTCOME, "learner-0/1")
        found[entry.group_id] = msgspec.msgpack.decode(Payloads().read(place), type=OfGroup)
    for step, groups in enumerate(trainer.trained, 1):
        for group_id in groups:
            assert found.pop(group_id) == OfGroup(step, ((0, np.float32(-step).tobytes()),))
    assert found == {}


async def test_a_disk_that_takes_none_is_told_of_once_and_every_step_is_trained(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "record").write_text("in the way")
    trainer = await learnt(bus, tmp_path, monkeypatch)
    assert len(trainer.trained) == STEPS
    told = [e.data for e in (await bus.read("events", Event, "0"))[0] if e.kind == "log_probs_not_recorded"]
    assert len(told) == 1 and "record" in told[0]["cause"]
