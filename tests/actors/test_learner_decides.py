"""When the learner looks at all that is open: once for a step, and again when something was dropped or is new to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ledger_steps import deal
from stand_in_learner import StandInTrainer, made, make_learner, run
from stand_in_learner import no_weights as no_weights

from bus import Bus, Ledger
from bus.ledger import OpenGroups
from miles_async.config.schema import Rollout, Run

Act = Callable[[Ledger], Awaitable[Any]]


class ScriptedLedger(Ledger):
    """Lets the others do one more thing of ``acts`` each time that the learner asks what is ready."""

    def __init__(self, bus: Bus, acts: list[Act]) -> None:
        super().__init__(bus)
        self.looks, self._acts, self._others = 0, acts, Ledger(bus)

    async def ready_groups(self, last_id: str, **options: Any) -> Any:
        if self._acts:
            await self._acts.pop(0)(self._others)
        return await super().ready_groups(last_id, **options)

    async def open_groups(self) -> OpenGroups:
        self.looks += 1
        return await super().open_groups()


async def trained(
    bus: Bus, run_dir: Path, monkeypatch: pytest.MonkeyPatch, size: int, acts: list[Act]
) -> tuple[list[tuple[str, ...]], ScriptedLedger]:
    """What the steps trained on, and the ledger that the learner asked."""
    trainer, ledger = StandInTrainer(), ScriptedLedger(bus, acts)
    sections = {"run": Run(num_steps=1), "rollout": Rollout(rollout_batch_size=size)}
    learner = make_learner(bus, run_dir, trainer, monkeypatch, **sections)
    learner.ledger = ledger
    await run(learner)
    return trainer.trained, ledger


def admitted(start: int, count: int) -> Act:
    """So many groups more are dealt, and begun."""

    async def act(ledger: Ledger) -> None:
        await deal(ledger, count, start)
        await ledger.next_tickets("w", "w/1", count, 60_000)

    return act


def published(*places: int) -> Act:
    async def act(ledger: Ledger) -> None:
        for place in places:
            assert await ledger.publish(made(f"0-{place}-0"), "w/1", 0.0)

    return act


def dropped(place: int) -> Act:
    async def act(ledger: Ledger) -> None:
        assert await ledger.discard(f"0-{place}-0", "w/1", "filtered")

    return act


def both(*acts: Act) -> Act:
    async def act(ledger: Ledger) -> None:
        for one in acts:
            await one(ledger)

    return act


async def test_the_open_groups_are_looked_at_once_for_a_step_not_for_each_group_that_is_ready(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = [both(admitted(0, 9), published(8)), *(published(place) for place in range(4))]
    steps, ledger = await trained(bus, tmp_path, monkeypatch, 4, acts)
    assert steps == [("0-0-0", "0-1-0", "0-2-0", "0-3-0")]
    assert ledger.looks == 2  # for the step, and at its checkpoint


async def test_a_group_that_was_dealt_since_is_found(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts = [both(admitted(0, 1), published(0)), both(admitted(1, 1), published(1))]
    steps, _ = await trained(bus, tmp_path, monkeypatch, 2, acts)
    assert steps == [("0-0-0", "0-1-0")]


async def test_a_group_that_was_dropped_since_is_waited_for_no_longer(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = [both(admitted(0, 4), published(2)), both(dropped(0), published(1))]
    steps, _ = await trained(bus, tmp_path, monkeypatch, 2, acts)
    assert steps == [("0-1-0", "0-2-0")]
