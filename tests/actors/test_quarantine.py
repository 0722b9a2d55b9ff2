"""A recorded group that cannot be trained costs itself, not the run: it is taken out of its step, on record, and for ever.

The learner is the real one on a real bus; only its model is a stand-in (``test_learner_order``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stand_in_learner import PowerCut, StandInTrainer, make_learner, no_weights, publish, run

from actors.learner_share import QuarantineError
from bus import Bus, Ledger, LedgerError, balanced
from bus.codec import VERSIONS, decode, encode, pack
from bus.messages import Batch, DeadLetter, Event, Group, Transition
from bus.quarantine import Quarantine
from miles_async.config.schema import Learner as LearnerSection
from miles_async.config.schema import Run, Staleness
from miles_async.monitor.announce import Announcer
from miles_async.text.tokenizer import Tokenizer
from miles_async.train.batch import BatchError, BatchRefused, TrainBatch, flatten
from miles_async.train.checked_batch import checked

__all__ = ["no_weights"]  # a fixture


def poison(group: Group, **fields: Any) -> Group:
    """``group`` with other fields in its sample."""
    (sample,) = group.samples
    return msgspec.structs.replace(group, samples=(msgspec.structs.replace(sample, **fields),))


async def payload_key(bus: Bus, group_id: str) -> str:
    return (await bus.redis.hget(bus.key("l:payload"), group_id)).decode()


async def spoil(bus: Bus, group_id: str, **fields: Any) -> None:
    """The published payload is another one than its worker wrote."""
    key = await payload_key(bus, group_id)
    await bus.redis.set(key, encode(poison(decode(await bus.redis.get(key), Group), **fields)))


async def quarantined(bus: Bus) -> list[Transition]:
    found, _ = await bus.read("events", Transition, "0")
    return [transition for transition in found if transition.kind == "quarantined"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reward": 1e308}, "invalid_reward"),
        ({"reward": float("nan")}, "invalid_reward"),
        ({"logprobs": b"\0\0\xc0\x7f"}, "invalid_logprobs"),
        ({"prompt_tokens": b"abc"}, "invalid_prompt"),
        ({"versions": pack([10**6], VERSIONS)}, "invalid_versions"),  # tokens from the future
        ({"versions": pack([-7], VERSIONS)}, "invalid_versions"),
    ],
)
async def test_a_recorded_group_that_cannot_be_trained_is_quarantined_and_its_step_is_trained(
    fields: Any, reason: str, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 6)
    await spoil(bus, "0-1-0", **fields)
    trainer = StandInTrainer()
    await run(make_learner(bus, tmp_path, trainer, monkeypatch))
    assert trainer.trained == [("0-0-0",), ("0-2-0", "0-3-0"), ("0-4-0", "0-5-0")]
    counts = await ledger.counts()
    assert balanced(counts)
    assert (counts["trained"], counts["dropped"], counts["dropped:quarantined"]) == (5, 1, 1)
    (transition,) = await quarantined(bus)
    assert (transition.group_ids, transition.step, transition.reason) == (("0-1-0",), 1, reason)
    ((letter, ticket),) = (await ledger.dead_letters("0"))[0]
    assert (letter.group_id, letter.reason) == ("0-1-0", "quarantined")
    assert letter.causes == (f"step 1: {reason}: {transition.detail}",) and ticket is not None


async def test_the_dead_letter_of_a_quarantined_group_has_its_prompt(
    bus: Bus, tmp_path: Path, digits_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 6)
    await spoil(bus, "0-1-0", reward=1e308)
    await bus.redis.delete(await payload_key(bus, "0-2-0"))  # of which nobody knows the prompt
    await run(make_learner(bus, tmp_path, StandInTrainer(), monkeypatch, str(digits_model)))
    letters, _ = await ledger.dead_letters("0")
    texts = {letter.group_id: ticket.prompt for letter, ticket in letters if ticket is not None}
    assert texts == {"0-1-0": Tokenizer(digits_model).decode([1], skip_special_tokens=False), "0-2-0": ""}
    assert texts["0-1-0"]
    said = [Announcer().text(event(letter, texts[letter.group_id])) for letter, _ in letters]
    assert [line.rpartition("; prompt ")[2] for line in said] == [repr(texts["0-1-0"]), said[1]]
    assert said[1].startswith("group 0-2-0 is taken out of its step: invalid_payload: ")


def event(letter: DeadLetter, prompt: str) -> Event:
    """As the supervisor tells it."""
    data = {"group": letter.group_id, "reason": letter.reason, "causes": letter.causes, "prompt": prompt}
    return Event(actor="supervisor", kind="dead_letter", time=0.0, data=data)


async def test_a_group_that_is_taken_out_moves_no_other_into_another_mini_batch(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 6)
    await spoil(bus, "0-1-0", reward=1e308)
    trainer = StandInTrainer()
    await run(make_learner(bus, tmp_path, trainer, monkeypatch, learner=LearnerSection(num_steps_per_rollout=2)))
    assert trainer.trained[0] == ("0-0-0",)
    assert trainer.sizes == [[1, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize("how", ["missing", "damaged", "of another group"])
async def test_a_recorded_group_whose_payload_cannot_be_read_is_quarantined(
    how: str, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 6)
    key = await payload_key(bus, "0-0-0")
    other = await bus.redis.get(await payload_key(bus, "0-1-0"))
    await (bus.redis.delete(key) if how == "missing" else bus.redis.set(key, b"junk" if how == "damaged" else other))
    trainer = StandInTrainer()
    await run(make_learner(bus, tmp_path, trainer, monkeypatch))
    assert trainer.trained[0] == ("0-1-0",) and trainer.version == 3
    (transition,) = await quarantined(bus)
    assert transition.reason == "invalid_payload" and how.split()[0] in transition.detail + " of"
    assert balanced(await ledger.counts())


async def test_a_run_that_a_poison_group_had_bricked_resumes_and_goes_on(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch is of a time before quarantine: recorded, without a bound, and refused by every learner since."""
    ledger = Ledger(bus)
    await publish(ledger, 6)
    await spoil(bus, "0-0-0", tokens=b"abc")
    keys = tuple([await payload_key(bus, f"0-{i}-0") for i in range(2)])
    old = msgspec.msgpack.encode(["batch", 1, ["0-0-0", "0-1-0"], keys])
    record = b"\1" + old
    assert decode(record, Batch).max_lag == -1
    await ledger._run("batch", 1, record, 0, "0-0-0", "0-1-0")
    trainer = StandInTrainer()
    await run(make_learner(bus, tmp_path, trainer, monkeypatch))
    assert trainer.trained[0] == ("0-1-0",) and trainer.version == 3


async def test_a_replay_leaves_out_the_same_groups_also_when_the_payload_is_whole_again(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 6)
    key = await payload_key(bus, "0-1-0")
    whole = await bus.redis.get(key)
    await spoil(bus, "0-1-0", reward=1e308)
    first = StandInTrainer(fails_at_step=2)
    with pytest.raises(PowerCut):
        await run(make_learner(bus, tmp_path, first, monkeypatch))
    await bus.redis.set(key, whole)
    second = StandInTrainer()
    await run(make_learner(bus, tmp_path, second, monkeypatch))
    assert first.trained == second.trained[:1] == [("0-0-0",)]
    assert len(await quarantined(bus)) == 1


async def test_a_group_is_quarantined_on_record_before_its_step_trains(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 2)
    await spoil(bus, "0-1-0", reward=1e308)
    with pytest.raises(PowerCut):
        await run(make_learner(bus, tmp_path, StandInTrainer(fails_at_step=1), monkeypatch))
    assert [transition.group_ids for transition in await quarantined(bus)] == [("0-1-0",)]


async def test_a_run_with_many_quarantined_groups_ends_with_the_cause_of_the_last_one(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 6)
    for number in (0, 1, 2):
        await spoil(bus, f"0-{number}-0", reward=1e308)
    trainer = StandInTrainer()
    section = LearnerSection(max_quarantined_groups=2)
    with pytest.raises(
        QuarantineError, match=r"3 .* than learner.max_quarantined_groups = 2; .* step 2: invalid_reward: group 0-2-0"
    ):
        await run(make_learner(bus, tmp_path, trainer, monkeypatch, learner=section))
    assert trainer.trained == [()]  # a step of which nothing is left is a step all the same
    again = StandInTrainer()
    await run(make_learner(bus, tmp_path, again, monkeypatch, learner=section))  # what is on record is no news
    assert again.trained == [(), ("0-3-0",), ("0-4-0", "0-5-0")]


async def test_a_batch_is_trained_again_under_the_bound_that_it_was_chosen_under(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 6)
    with pytest.raises(PowerCut):
        lax = Staleness(max_lag=2)
        await run(make_learner(bus, tmp_path, StandInTrainer(fails_at_step=3), monkeypatch, staleness=lax))
    trainer, strict = StandInTrainer(), Staleness(max_lag=1)
    await run(make_learner(bus, tmp_path, trainer, monkeypatch, staleness=strict))
    assert trainer.bounds == [2, 2, 2] and await quarantined(bus) == []  # step 3's tokens have lag 2


async def test_a_checkpoint_does_not_name_the_quarantined_groups_of_its_steps_as_trained(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(Ledger(bus), 2)
    await spoil(bus, "0-1-0", reward=1e308)
    learner = make_learner(bus, tmp_path, StandInTrainer(), monkeypatch, run=Run(num_steps=1))
    await run(learner)
    assert [ids for _, _, ids in learner.recent] == [("0-0-0",)]


async def test_a_lost_end_of_the_ledger_that_held_only_quarantined_groups_is_reconciled(bus: Bus) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 2)
    assert await ledger.reconcile(1, {1: []}) == 0
    assert await ledger.steps() == (1, 1)


async def test_only_a_group_of_the_record_is_quarantined_and_once(bus: Bus) -> None:
    ledger = Ledger(bus)
    await publish(ledger, 3)
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    await ledger.batch(1, ready[:2])
    quarantine = Quarantine(ledger)
    with pytest.raises(LedgerError, match="step 1 does not have it"):
        await quarantine.put(1, "0-2-0", "invalid_reward", "")
    totals = await asyncio.gather(*(quarantine.put(1, "0-0-0", "invalid_reward", "\ud800") for _ in range(3)))
    assert totals == [1, 1, 1] and len(await quarantined(bus)) == 1
    assert await ledger.commit(1) == 1 and await quarantine.of(["0-0-0", "0-1-0"]) == {}
    counts = await ledger.counts()
    assert balanced(counts) and (counts["trained"], counts["batched"]) == (1, 0)


async def test_a_committed_group_that_is_trained_again_and_cannot_be_is_no_more_counted_as_trained(bus: Bus) -> None:
    """A learner goes back to an older checkpoint, and finds a payload gone."""
    ledger = Ledger(bus)
    await publish(ledger, 2)
    ready, _ = await ledger.ready_groups("0", block_ms=0)
    await ledger.batch(1, ready)
    await ledger.commit(1, forget=0)
    assert await Quarantine(ledger).put(1, "0-0-0", "invalid_payload", "") == 1
    counts = await ledger.counts()
    assert balanced(counts) and (counts["trained"], counts["dropped:quarantined"]) == (1, 1)


@pytest.mark.parametrize("whose", ["this rank's", "another rank's"])
async def test_a_group_that_the_batch_function_fails_for_is_quarantined_and_its_step_is_trained(
    whose: str, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(groups: Sequence[Group], vocab_size: int) -> TrainBatch:
        if any(group.group_id == "0-1-0" for group in groups):
            raise LookupError("no such prompt")
        return flatten(groups, vocab_size)

    class Trainer(StandInTrainer):
        def step(self, groups: list[Group], **more: Any) -> dict[str, float]:
            if whose == "this rank's":
                checked(mine)(groups, 8)
            elif not self.asked:
                self.asked = True
                raise BatchRefused("of rank 1")
            return super().step(groups, **more)

        asked = False

    trainer = Trainer()
    await publish(Ledger(bus), 6)
    section = LearnerSection(batch_function="mine.py:batch")
    await run(make_learner(bus, tmp_path, trainer, monkeypatch, learner=section))
    found = await quarantined(bus)
    if whose == "another rank's":
        assert trainer.trained[0] == ("0-0-0", "0-1-0") and trainer.version == 3 and not found
        return
    assert trainer.trained == [("0-0-0",), ("0-2-0", "0-3-0"), ("0-4-0", "0-5-0")]
    (transition,) = found
    assert (transition.group_ids, transition.reason) == (("0-1-0",), "batch_function")
    assert "learner.batch_function, " in transition.detail and "LookupError: no such prompt" in transition.detail
    assert balanced(await Ledger(bus).counts())


async def test_a_batch_function_that_fails_for_every_group_ends_the_run_and_quarantines_none(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trainer(StandInTrainer):
        def step(self, groups: list[Group], **more: Any) -> dict[str, float]:
            checked(lambda groups, vocab_size: None)(groups, 8)  # type: ignore[arg-type, return-value]
            raise AssertionError

    await publish(Ledger(bus), 6)
    section = LearnerSection(batch_function="mine.py:batch")
    with pytest.raises(BatchError, match=r"learner\.batch_function, .* it gave None, not a train\.batch\.TrainBatch"):
        await run(make_learner(bus, tmp_path, Trainer(), monkeypatch, learner=section))
    assert not await quarantined(bus)
