"""A learner whose ledger comes back without its end: while it waits for groups, and at its start.

Redis is a real one, which goes back to what it held before.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from stand_in_learner import FilingTrainer, StandInTrainer, make_learner, publish, run
from stand_in_learner import no_weights as no_weights

from actors.learner import RECONCILABLE_S
from bus import Bus, Ledger, LedgerError, balanced
from bus.waits import WaitKind
from miles_async.config.schema import Checkpoint, Run, Staleness

EVERY_STEP = Checkpoint(save_interval=1, save_hf=False)


class Past:
    """What Redis held of a run when this was made."""

    def __init__(self, url: str, bus: Bus) -> None:
        self._redis: Any = redis.Redis.from_url(url, protocol=2)
        self._pattern = bus.key("*")
        self._held = [(key, self._redis.dump(key)) for key in self._redis.keys(self._pattern)]

    def come_back(self) -> None:
        """At once: clients see a Redis that was away for a moment."""
        with self._redis.pipeline(transaction=True) as pipeline:
            for key in self._redis.keys(self._pattern):
                pipeline.delete(key)
            for key, value in self._held:
                pipeline.restore(key, 0, value)
            pipeline.execute()


async def test_what_was_evicted_and_is_ready_once_more_is_evicted_once_more(
    bus: Bus, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, cursors = Ledger(bus), dict[Any, str](events="0")
    await publish(ledger, 1, version=-1)
    await publish(ledger, 1)
    past, trainer = Past(redis_url, bus), StandInTrainer()
    fifo = Staleness(policy="fifo", max_lag=0, too_old="requeue")  # waits for whoever was dealt first
    learner = make_learner(bus, tmp_path, trainer, monkeypatch, run=Run(num_steps=1), staleness=fifo)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(learner.run())
        for lost in (True, False):
            while await ledger.waiting_again(9) != ["0-0-1"]:
                await bus.wait_for_news(cursors, block_ms=10)
            if lost:
                past.come_back()
        await publish(ledger, 1)
    assert trainer.trained == [("0-1-0", "0-2-0")]
    counts = await ledger.counts()
    assert (counts["dropped:stale"], counts["dropped"]) == (1, 1) and balanced(counts)


async def test_a_learner_whose_ledger_lost_a_step_that_it_has_trained_ends_and_trains_it_again(
    bus: Bus, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, cursors = Ledger(bus), dict[Any, str](events="0")
    await publish(ledger, 2)
    past, first, second = Past(redis_url, bus), StandInTrainer(), StandInTrainer()
    learner = make_learner(bus, tmp_path, first, monkeypatch, run=Run(num_steps=2))
    async with asyncio.timeout(60):
        running = asyncio.create_task(learner.run())
        while not (first.version == 1 and WaitKind.GROUPS in [wait.kind for wait in learner.ctx.heartbeat().waits]):
            await bus.wait_for_news(cursors, block_ms=10)
        past.come_back()
        with pytest.raises(LedgerError, match="the ledger ends at step 0: it lost step 1, which is trained"):
            await running
    await publish(ledger, 2)
    await run(make_learner(bus, tmp_path, second, monkeypatch, run=Run(num_steps=2)))
    assert second.trained == [*first.trained, ("0-2-0", "0-3-0")]
    assert balanced(await ledger.counts())


async def test_what_the_ledger_was_told_of_its_lost_end_it_is_told_once_more_when_it_loses_that_too(
    bus: Bus, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, nothing, now = Ledger(bus), Past(redis_url, bus), time.time()
    trained: list[tuple[str, ...]] = []
    for step in (1, 2, 3):
        nothing.come_back()
        clock = SimpleNamespace(time=lambda s=step: now + 2 * s * RECONCILABLE_S, monotonic=time.monotonic)
        monkeypatch.setattr("actors.learner.time", clock)
        await publish(ledger, 2 * step, version=step - 1)  # from the first prompt on: the ledger knows of no step
        life = FilingTrainer()
        await run(make_learner(bus, tmp_path, life, monkeypatch, checkpoint=EVERY_STEP, run=Run(num_steps=step)))
        trained += life.trained
    assert trained == [("0-0-0", "0-1-0"), ("0-2-0", "0-3-0"), ("0-4-0", "0-5-0")]
    assert balanced(await ledger.counts())
