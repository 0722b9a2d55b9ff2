"""A checkpoint that is written beside the steps: the ledger hears of it when it is durable, one is on its way at a time, the
end of the run waits for it, and a write that fails ends the learner.

The actor is the real one on a real bus; its model is a stand-in, whose writes end when the test lets them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stand_in_learner import BATCH, PowerCut, StandInTrainer, make_learner, publish, run
from stand_in_learner import no_weights as no_weights

from actors.learner import Learner
from bus import Bus, Ledger
from bus.messages import Event, Metrics
from miles_async.config.schema import Checkpoint, ConfigError, Data, Model, Record, Run, RunConfig, Staleness
from miles_async.config.schema import Learner as LearnerConfig
from miles_async.train.backend import check

BESIDE = Checkpoint(save_interval=2, async_save=True, save_hf=False)
ANY_LAG = Staleness(max_lag=100)


class SlowDisk(StandInTrainer):
    """Its checkpoints are durable when :attr:`room` is set; ``notes`` says what happened in which order."""

    def __init__(self, **fails: Any) -> None:
        super().__init__(**fails)
        self.room = threading.Event()
        self.notes: list[str] = []

    def step(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().step(*args, **kwargs)
        self.notes.append(f"step {self.version}")
        return metrics

    def begin_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Callable[[], Path]:
        version = self.version
        self.notes.append(f"begin {version}")

        def write() -> Path:
            assert self.room.wait(10)
            if self.fails_to_save:
                raise OSError(28, "No space left on device")
            self.notes.append(f"durable {version}")
            return directory / str(version)

        return write


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.005)


def beside(bus: Bus, run_dir: Path, trainer: StandInTrainer, monkeypatch: Any, **sections: Any) -> Learner:
    return make_learner(bus, run_dir, trainer, monkeypatch, **{"checkpoint": BESIDE, **sections})


async def test_the_learner_trains_on_and_the_ledger_hears_of_a_version_when_it_is_durable(
    bus: Bus, disk: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 3 * BATCH)
    task = asyncio.create_task(run(beside(bus, tmp_path, disk, monkeypatch)))
    await until(lambda: "step 3" in disk.notes)
    assert await ledger.steps() == (3, 0) and "durable 2" not in disk.notes
    for step in (1, 2, 3):
        record = await ledger.recorded_batch(step)
        assert record is not None and len(await ledger.payloads(record.payload_keys)) == BATCH
    disk.room.set()
    await task
    assert disk.notes == ["step 1", "step 2", "begin 2", "step 3", "durable 2", "begin 3", "durable 3"]
    assert (await ledger.steps(), await ledger.forgotten()) == ((3, 3), 2)
    saved = [event.data["version"] for event in (await bus.read("events", Event, "0"))[0] if event.kind == "checkpoint"]
    assert saved == [2, 3]


async def test_the_next_save_waits_for_the_one_before_it_and_says_so(
    bus: Bus, disk: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 5 * BATCH)
    learner = beside(bus, tmp_path, disk, monkeypatch, run=Run(num_steps=5), staleness=ANY_LAG)
    task = asyncio.create_task(run(learner))
    await until(lambda: "step 4" in disk.notes)
    await until(lambda: any("checkpoint 2 to be written" in w.sentence for w in learner.ctx.heartbeat().waits))
    assert disk.notes[-1] == "step 4"
    disk.room.set()
    await task
    assert disk.notes.index("durable 2") < disk.notes.index("begin 4") < disk.notes.index("step 5")


async def test_the_end_of_a_run_waits_for_its_last_checkpoint(
    bus: Bus, disk: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 3 * BATCH)
    at_the_end = Checkpoint(save_interval=100, async_save=True, save_hf=False)
    learner = beside(bus, tmp_path, disk, monkeypatch, checkpoint=at_the_end)
    task = asyncio.create_task(run(learner))
    await until(lambda: any("checkpoint 3 to be written" in wait.sentence for wait in learner.ctx.heartbeat().waits))
    await until(lambda: learner.saves.on_its_way is not None or task.done())
    assert not task.done() and await ledger.steps() == (3, 0)
    disk.room.set()
    await task
    assert disk.notes[-1] == "durable 3" and await ledger.steps() == (3, 3)


async def test_a_learner_that_is_told_to_stop_waits_for_what_is_on_its_way(
    bus: Bus, disk: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 2 * BATCH)
    learner = beside(bus, tmp_path, disk, monkeypatch)
    task = asyncio.create_task(run(learner))
    await until(lambda: "begin 2" in disk.notes)
    learner.ctx.stop.set()
    await until(lambda: any("checkpoint 2" in wait.sentence for wait in learner.ctx.heartbeat().waits))
    assert not task.done() and await ledger.steps() == (2, 0)
    disk.room.set()
    await task
    assert disk.notes[-1] == "durable 2" and await ledger.steps() == (2, 2)


async def test_a_write_that_fails_ends_a_learner_that_waits_for_groups_and_the_ledger_forgets_nothing(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, disk = Ledger(bus), SlowDisk(fails_to_save=True)
    await publish(ledger, 2 * BATCH)
    task = asyncio.create_task(run(beside(bus, tmp_path, disk, monkeypatch)))
    await until(lambda: "begin 2" in disk.notes)
    disk.room.set()
    with pytest.raises(OSError, match="No space left on device"):
        await task
    assert await ledger.steps() == (2, 0)


async def test_a_step_that_fails_while_a_checkpoint_is_written_is_what_the_learner_ends_with(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, disk = Ledger(bus), SlowDisk(fails_at_step=3)
    await publish(ledger, 3 * BATCH)
    with pytest.raises(PowerCut):
        await run(beside(bus, tmp_path, disk, monkeypatch))
    assert await ledger.steps() == (3, 0)
    disk.room.set()


async def test_what_saving_cost_is_among_the_metrics_of_the_steps_after_it(
    bus: Bus, disk: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.room.set()
    await publish(Ledger(bus), 4 * BATCH)
    every = Checkpoint(save_interval=1, async_save=True, save_hf=False)
    await run(beside(bus, tmp_path, disk, monkeypatch, checkpoint=every, run=Run(num_steps=4), staleness=ANY_LAG))
    lines = [line.values for line in (await bus.read("metrics", Metrics, "0"))[0] if "raw_reward" in line.values]
    assert ["perf/save_model_time" in line for line in lines] == [False, True, True, True]
    assert any("perf/save_write_time" in line for line in lines[1:])


def test_a_backend_of_the_users_that_cannot_is_refused_before_the_start() -> None:
    learner = LearnerConfig(train_backend="frozen_backend.FrozenBackend")
    config = RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="x"), learner=learner, checkpoint=BESIDE)
    with pytest.raises(ConfigError, match=r"checkpoint.async_save = true needs a method begin_checkpoint of frozen_"):
        check(config)
    config = msgspec.structs.replace(config, checkpoint=Checkpoint(), record=Record(learner_log_probs=True))
    with pytest.raises(ConfigError, match=r"learner_log_probs = true needs a method token_log_probs of frozen_"):
        check(config)
