"""What the learner does before what: record, then train; checkpoint, then commit; no snapshot of a replayed step.

The actor is the real one on a real bus; only its model is a stand-in, so that it can fail at the moments that matter.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from stand_in_learner import BATCH, FilingTrainer, PowerCut, StandInTrainer, make_learner, publish, run
from stand_in_learner import no_weights as no_weights

from actors.learner import ResumeError
from actors.runtime.context import FATAL
from bus import Bus, Ledger, balanced
from bus.messages import Event, Group, Metrics, Snapshot, Ticket
from miles_async.config.schema import Checkpoint, Rollout, Run, Staleness
from miles_async.hooks.calls import HookFailed
from miles_async.staleness.policies import NO_BOUND
from miles_async.train.checkpoint import CheckpointError


async def snapshots(bus: Bus) -> list[int]:
    return [snapshot.version for snapshot in (await bus.read("weights", Snapshot, "0"))[0]]


async def test_a_batch_is_recorded_before_it_is_trained_on_and_trained_again_after_a_death(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 6)
    first = StandInTrainer(fails_at_step=2)
    with pytest.raises(PowerCut):
        await run(make_learner(bus, tmp_path, first, monkeypatch))
    assert await ledger.steps() == (2, 0)  # step 2 was never trained, and is on record
    record = await ledger.recorded_batch(2)
    second = StandInTrainer()
    await run(make_learner(bus, tmp_path, second, monkeypatch))
    assert record is not None and second.trained[:2] == [*first.trained, record.group_ids]
    assert len({gid for step in second.trained for gid in step}) == 3 * BATCH


async def test_what_is_on_record_is_trained_again_also_where_nothing_else_is_ready(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 4)
    with pytest.raises(PowerCut):
        await run(make_learner(bus, tmp_path, StandInTrainer(fails_at_step=2), monkeypatch))
    again = StandInTrainer()
    await run(make_learner(bus, tmp_path, again, monkeypatch, run=Run(num_steps=2)))
    assert again.trained == [("0-0-0", "0-1-0"), ("0-2-0", "0-3-0")]


async def test_the_ledger_forgets_nothing_before_the_checkpoint_is_durable(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 6)
    trainer = StandInTrainer(fails_to_save=True)
    with pytest.raises(PowerCut):
        await run(make_learner(bus, tmp_path, trainer, monkeypatch, checkpoint=Checkpoint(save_interval=2)))
    assert await ledger.steps() == (2, 0)
    for step in (1, 2):
        record = await ledger.recorded_batch(step)
        assert record is not None and len(await ledger.payloads(record.payload_keys)) == BATCH


async def test_a_finished_run_has_committed_all_of_its_steps(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 6)
    await run(make_learner(bus, tmp_path, StandInTrainer(), monkeypatch))
    assert await ledger.steps() == (3, 3)
    assert (await ledger.counts())["trained"] == 6


async def test_no_snapshot_is_offered_of_a_step_that_is_only_replayed(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 6)
    with pytest.raises(PowerCut):
        await run(make_learner(bus, tmp_path, StandInTrainer(fails_at_step=3), monkeypatch))
    assert await snapshots(bus) == [0, 1, 2]
    await bus.redis.delete(bus.key("weights"))
    await publish(ledger, 2, version=3)
    await run(make_learner(bus, tmp_path, StandInTrainer(), monkeypatch, run=Run(num_steps=4)))
    assert await snapshots(bus) == [3, 4]  # engines that serve 2 are not put back to 0, 1


@pytest.mark.parametrize("policy", ["fifo", "drop"])
async def test_what_grew_too_old_is_dropped_on_record_and_not_trained(
    policy: Any, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 1, version=-1)
    await publish(ledger, 2)
    trainer = StandInTrainer()
    await run(
        make_learner(
            bus, tmp_path, trainer, monkeypatch, run=Run(num_steps=1), staleness=Staleness(policy=policy, max_lag=0)
        )
    )
    assert trainer.trained == [("0-1-0", "0-2-0")]
    assert (await ledger.counts())["dropped:stale"] == 1


async def test_token_mask_masks_on_record_and_again_when_the_step_is_replayed_under_another_policy(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, masking = Ledger(bus), Staleness(policy="token_mask", max_lag=0)
    await publish(ledger, 2)
    await run(make_learner(bus, tmp_path, StandInTrainer(), monkeypatch, run=Run(num_steps=1), staleness=masking))
    await publish(ledger, 1, 0, 0, 1)  # two tokens of version 0 and one of version 1
    await publish(ledger, 1, version=1)
    first = StandInTrainer()
    await run(make_learner(bus, tmp_path, first, monkeypatch, run=Run(num_steps=2), staleness=masking))
    assert first.masks == [[[1], [1]], [[0, 0, 1], [1]]]
    record = await ledger.recorded_batch(2)
    assert record is not None and (record.max_lag, record.masked_tokens) == (0, 2)
    reported = {m.step: m.values for m in (await bus.read("metrics", Metrics, "0"))[0]}
    assert reported[2]["masked_tokens"] == 2.0

    again = StandInTrainer()  # its checkpoint is lost
    await run(make_learner(bus, tmp_path, again, monkeypatch, run=Run(num_steps=2), staleness=Staleness(max_lag=0)))
    assert again.masks == first.masks


@pytest.mark.parametrize("policy", ["fifo", "drop", "windowed", "recycle"])
async def test_the_prompt_of_what_grew_too_old_is_dealt_again_and_that_of_what_a_filter_refuses_is_not(
    policy: str, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "filters.py").write_text("def third(ready, version):\n    return ['0-3-0'] if len(ready) > 2 else []\n")
    ledger, again = Ledger(bus), Staleness(policy=policy, max_lag=0, too_old="requeue")
    await publish(ledger, 1, version=-1)
    await publish(ledger, 3)
    trainer, filtered = (
        StandInTrainer(),
        Rollout(rollout_batch_size=BATCH, buffer_filter=f"{tmp_path}/filters.py:third"),
    )
    await run(
        make_learner(bus, tmp_path, trainer, monkeypatch, run=Run(num_steps=1), staleness=again, rollout=filtered)
    )
    assert trainer.trained == [("0-1-0", "0-2-0")]
    counts = await ledger.counts()
    assert (counts["dropped:stale"], counts["dropped"]) == (1, 2)
    assert await ledger.waiting_again(9) == ["0-0-1"]


@pytest.mark.parametrize("policy", ["count", "ready_first", "pace"])
async def test_a_policy_without_a_hard_bound_trains_what_is_late_and_the_record_says_so(
    policy: str, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, late = Ledger(bus), Staleness(policy=policy, max_lag=0, hard_bound=False)
    await publish(ledger, 4)  # all of version 0
    trainer = StandInTrainer()
    await run(make_learner(bus, tmp_path, trainer, monkeypatch, run=Run(num_steps=2), staleness=late))
    assert trainer.trained == [("0-0-0", "0-1-0"), ("0-2-0", "0-3-0")]
    record = await ledger.recorded_batch(2)
    assert record is not None and record.max_lag == NO_BOUND and record.masked_tokens == -1
    strict = StandInTrainer()  # its checkpoint is lost; what is on record was chosen without a bound
    await run(make_learner(bus, tmp_path, strict, monkeypatch, run=Run(num_steps=2), staleness=Staleness(max_lag=0)))
    assert strict.trained == trainer.trained


HOLDING = """
from miles_async.staleness.elastic import Elastic


class Threes(Elastic):
    def ticks(self, open_versions, version, batches):
        return batches == 3


def threes(staleness, rollout):
    return Threes(staleness.max_lag)
"""


async def test_a_step_whose_weights_are_held_is_recorded_batch_by_batch_and_trained_again_as_it_was(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holding.py").write_text(HOLDING)
    ledger, holding = Ledger(bus), Staleness(policy=f"{tmp_path}/holding.py:threes", max_lag=1)
    await publish(ledger, 8)
    first = StandInTrainer(fails_at_step=1)
    with pytest.raises(PowerCut):  # in the third batch
        await run(make_learner(bus, tmp_path, first, monkeypatch, run=Run(num_steps=2), staleness=holding))
    record = await ledger.recorded_batch(1)
    assert record is not None and (record.parts, record.ticks) == ((2, 2, 2), True)
    assert await ledger.steps() == (1, 0) and first.trained == [("0-0-0", "0-1-0"), ("0-2-0", "0-3-0")]

    second = StandInTrainer()
    await run(make_learner(bus, tmp_path, second, monkeypatch, run=Run(num_steps=2), staleness=holding))
    # the last step of a run is not held: nothing more is admitted for it
    assert second.ticked == [False, False, True, True]
    assert second.trained == [*first.trained, ("0-4-0", "0-5-0"), ("0-6-0", "0-7-0")]
    assert (await ledger.counts())["trained"] == 8 and await ledger.steps() == (2, 2)
    reported = {m.step: m.values for m in (await bus.read("metrics", Metrics, "0"))[0]}
    assert (reported[1]["batches"], reported[1]["n_samples"]) == (3.0, 6.0) and "batches" not in reported[2]


async def test_a_learner_that_is_stopped_while_it_holds_its_weights_goes_on_with_the_same_step(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holding.py").write_text(HOLDING)
    ledger, holding = Ledger(bus), Staleness(policy=f"{tmp_path}/holding.py:threes", max_lag=1)
    await publish(ledger, 4)  # no third batch
    first = StandInTrainer()
    learner = make_learner(bus, tmp_path, first, monkeypatch, run=Run(num_steps=2), staleness=holding)
    async with asyncio.timeout(60):
        running = asyncio.create_task(learner.run())
        cursors: Any = {"batches": "0"}
        while len(first.trained) < 2:
            await bus.wait_for_news(cursors, block_ms=10)
        learner.ctx.stop.set()
        await running
    record = await ledger.recorded_batch(1)
    assert record is not None and (record.parts, record.ticks) == ((2, 2), False) and first.version == 0
    assert await ledger.steps() == (1, 0)

    await publish(ledger, 4)
    second = StandInTrainer()
    await run(make_learner(bus, tmp_path, second, monkeypatch, run=Run(num_steps=2), staleness=holding))
    assert second.trained[:2] == first.trained and second.ticked == [False, False, True, True]


async def test_a_learner_without_the_checkpoint_of_what_is_committed_refuses_to_start(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 8)
    one = Checkpoint(save_interval=100, keep=1, save_hf=False)
    await run(make_learner(bus, tmp_path, StandInTrainer(), monkeypatch, checkpoint=one))
    again = StandInTrainer()
    with pytest.raises(ResumeError, match="the ledger has forgotten the groups of step 3"):
        await run(make_learner(bus, tmp_path, again, monkeypatch, run=Run(num_steps=4)))
    assert again.trained == []


async def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it_and_the_same_groups_are_trained_again(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, first = Ledger(bus), FilingTrainer()
    await publish(ledger, 6)
    every = Checkpoint(save_interval=1, save_hf=False)
    await run(make_learner(bus, tmp_path, first, monkeypatch, checkpoint=every))
    assert (await ledger.steps(), await ledger.forgotten()) == ((3, 3), 2)
    (tmp_path / "checkpoints" / "iter_0000003" / "shard").write_bytes(b"\1" * 100)
    await publish(ledger, 2, version=3)
    second = FilingTrainer()
    await run(make_learner(bus, tmp_path, second, monkeypatch, checkpoint=every, run=Run(num_steps=4)))
    assert second.trained == [first.trained[2], ("0-6-0", "0-7-0")]
    (damaged,) = [e for e in (await bus.read("events", Event, "0"))[0] if e.kind == "checkpoint_damaged"]
    assert damaged.data["goes_on_from"] == "iter_0000002" and "iter_0000003 is damaged: shard" in damaged.data["cause"]
    counts = await ledger.counts()
    assert (counts["trained"], counts["batched"], await ledger.forgotten()) == (8, 0, 3) and balanced(counts)


async def test_where_no_checkpoint_is_sound_the_learner_ends_with_a_cause_that_no_restart_would_change(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 6)
    every = Checkpoint(save_interval=1, save_hf=False)
    await run(make_learner(bus, tmp_path, FilingTrainer(), monkeypatch, checkpoint=every))
    for version in (2, 3):
        (tmp_path / "checkpoints" / f"iter_000000{version}" / "shard").unlink()
    again = FilingTrainer()
    with pytest.raises(CheckpointError, match=r"iter_0000003 is damaged: shard is missing; .*iter_0000002 is damaged"):
        await run(make_learner(bus, tmp_path, again, monkeypatch, checkpoint=every, run=Run(num_steps=4)))
    assert again.trained == [] and issubclass(CheckpointError, FATAL)


async def test_without_room_for_an_older_checkpoints_groups_the_record_says_that_none_is_usable(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def memory() -> tuple[int, int]:
        return 50 << 20, 100 << 20

    ledger = Ledger(bus)
    await publish(ledger, 6)
    learner = make_learner(bus, tmp_path, StandInTrainer(), monkeypatch, checkpoint=Checkpoint(save_hf=False))
    monkeypatch.setattr(bus, "memory", memory)
    await run(learner)
    (saved,) = [e for e in (await bus.read("events", Event, "0"))[0] if e.kind == "checkpoint"]
    assert saved.data["usable_from"] == await ledger.forgotten() == 3
    assert (
        "Redis has no room for the groups of two intervals (50 of 100 MB used)" in saved.data["no_older_one_is_usable"]
    )


async def test_each_step_and_its_weights_are_on_record(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 6)
    await run(make_learner(bus, tmp_path, StandInTrainer(), monkeypatch))
    assert await snapshots(bus) == [0, 1, 2, 3]
    kinds = [event.kind for event in (await bus.read("events", Event, "0"))[0]]
    assert kinds == ["learner_ready", "checkpoint", "learner_done"]


async def test_what_is_left_of_a_full_batchs_window_is_dropped_on_record(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 4)
    await ledger.admit([Ticket(group_id="0-4-0", prompt_tokens=b"", sampling_seed=4)], limit=99, position=4)
    trainer = StandInTrainer()
    rollout = Rollout(rollout_batch_size=BATCH, over_sampling_batch_size=BATCH + 1)
    await run(make_learner(bus, tmp_path, trainer, monkeypatch, run=Run(num_steps=1), rollout=rollout))
    assert trainer.trained == [("0-0-0", "0-1-0")]
    counts = await ledger.counts()
    assert (counts["dropped:surplus"], counts["ready"], counts["waiting"]) == (1, 1, 1) and balanced(counts)
    assert (await ledger.open_groups()).order == ("0-3-0", "0-4-0")  # the next window is not touched


async def test_what_the_buffer_filter_names_is_dropped_before_a_batch_is_chosen(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_filters.py").write_text(
        "def every_second(ready, version):\n    return [g.group_id for g in ready if g.group_id in ('0-0-0', '0-2-0')]\n"
    )
    ledger = Ledger(bus)
    await publish(ledger, 4)
    trainer = StandInTrainer()
    rollout = Rollout(rollout_batch_size=BATCH, buffer_filter=f"{tmp_path}/my_filters.py:every_second")
    await run(make_learner(bus, tmp_path, trainer, monkeypatch, run=Run(num_steps=1), rollout=rollout))
    assert trainer.trained == [("0-1-0", "0-3-0")]
    assert (await ledger.counts())["dropped:buffer_filter"] == 2 and balanced(await ledger.counts())


async def test_steps_that_are_skipped_or_had_nothing_to_learn_are_on_record_and_the_run_goes_on(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Troubled(StandInTrainer):
        def step(self, groups: list[Group], **kwargs: Any) -> dict[str, float]:
            counts = {2: {"skipped_steps": 1.0}, 3: {"empty_steps": 1.0}}.get(
                self.version + 1, {"optimizer_steps": 1.0}
            )
            return super().step(groups, **kwargs) | counts

    await publish(Ledger(bus), 6)
    await run(make_learner(bus, tmp_path, Troubled(), monkeypatch))
    found, _ = await bus.read("events", Event, "0")
    said = [(event.kind, event.data["step"]) for event in found if event.kind in ("steps_skipped", "nothing_to_learn")]
    assert said == [("steps_skipped", 2), ("nothing_to_learn", 3)]
    metrics, _ = await bus.read("metrics", Metrics, "0")
    assert [line.values.get("skipped_steps", 0) for line in metrics if "raw_reward" in line.values] == [0, 1, 0]
    assert balanced(await Ledger(bus).counts())


@pytest.mark.parametrize("behind", [-1, 1])
async def test_a_backend_that_is_not_of_the_next_version_after_a_step_ends_the_learner_in_one_line(
    behind: int, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Miscounting(StandInTrainer):
        def step(self, groups: list[Group], *, max_lag: int, sizes: list[int]) -> dict[str, float]:
            metrics = super().step(groups, max_lag=max_lag, sizes=sizes)
            self.version += behind
            return metrics

    await publish(Ledger(bus), 6)
    with pytest.raises(HookFailed, match=r"learner.train_backend, .*step: it gave \d, not 1 as the backend's version"):
        await run(make_learner(bus, tmp_path, Miscounting(), monkeypatch))


@pytest.mark.parametrize("given", [None, {}, {"raw_reward": "high"}])
async def test_a_backend_whose_step_gives_no_metrics_ends_the_learner_in_one_line(
    given: Any, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(StandInTrainer):
        def step(self, groups: list[Group], *, max_lag: int, sizes: list[int]) -> Any:
            super().step(groups, max_lag=max_lag, sizes=sizes)
            return given

    await publish(Ledger(bus), 6)
    with pytest.raises(HookFailed, match="not metrics"):
        await run(make_learner(bus, tmp_path, Silent(), monkeypatch))
