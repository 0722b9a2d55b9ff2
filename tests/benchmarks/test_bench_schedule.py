"""`bench schedule`: the ideal keeps to closed forms where there are any, and a run on a trace is measured against it."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from benchmarks import bench_schedule
from benchmarks.lib.schedule import trace as traces
from benchmarks.lib.schedule.ideal import Outcome, StuckError, World, schedule
from benchmarks.lib.schedule.latencies import latencies
from benchmarks.lib.schedule.trace import Trace
from bus.messages import ReadyGroup
from miles_async.staleness.drop import Drop
from miles_async.staleness.elastic import Elastic
from miles_async.staleness.fifo import Fifo
from miles_async.staleness.token_mask import TokenMask

BATCH = 4
STEPS = 40


def world(seconds: float, *, slots: int = 1000, update_s: float = 0.0, train_s: float = 1.0) -> World:
    return World(lambda _: seconds, lambda _: train_s, BATCH, slots, STEPS, update_s)


def pace(outcome: Outcome) -> float:
    """Seconds a step, over whole periods behind the start."""
    return (outcome.step_ends[-1] - outcome.step_ends[-1 - 24]) / 24


@pytest.mark.parametrize("update_s", [0.0, 0.25])
def test_without_lag_generation_training_and_update_follow_each_other(update_s: float) -> None:
    assert pace(schedule(Fifo(0), world(3.0, update_s=update_s))) == pytest.approx(3.0 + 1.0 + update_s)


def test_fewer_slots_than_groups_are_so_many_rounds() -> None:
    assert pace(schedule(Fifo(0), world(3.0, slots=2))) == pytest.approx(2 * 3.0 + 1.0)


@pytest.mark.parametrize("lag", [1, 2, 3, 5])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 7.0])
def test_as_many_batches_as_the_bound_allows_are_on_their_way(lag: int, seconds: float) -> None:
    """Batch j begins with version j - L, so that L + 1 steps take one generation and one training, or the learner is busy."""
    expected = max(1.0, (seconds + 1.0) / (lag + 1))
    assert pace(schedule(Fifo(lag), world(seconds))) == pytest.approx(expected)


def test_with_lag_enough_the_slots_are_the_bound() -> None:
    assert pace(schedule(Fifo(8), world(3.0, slots=6))) == pytest.approx(BATCH * 3.0 / 6, rel=0.05)


def test_generation_stands_still_during_an_update() -> None:
    """The learner is never the bound, every step has one update: of its time as much as generation and pause say."""
    found = pace(schedule(Fifo(8), world(1.0, slots=4, update_s=0.5, train_s=0.1)))
    assert found == pytest.approx(1.0 + 0.5, rel=0.05)


def test_the_batches_are_the_dealt_order_and_within_the_bound() -> None:
    trace = Trace(1.2, 1.0, 1)
    outcome = schedule(Fifo(3), World(trace.seconds, trace.train_s, BATCH, 12, STEPS, trace.update_s))
    assert [position for batch in outcome.batches for position in batch] == list(range(STEPS * BATCH))
    assert max(outcome.lags) <= 3 and not outcome.dropped


def test_what_grows_too_old_is_dropped_and_trained_never() -> None:
    trace = Trace(1.2, 1.0, 1)
    outcome = schedule(Drop(1), World(trace.seconds, trace.train_s, BATCH, 12, STEPS, trace.update_s))
    trained = {position for batch in outcome.batches for position in batch}
    assert outcome.dropped and not trained & set(outcome.dropped)
    assert len(trained) == STEPS * BATCH and max(outcome.lags) <= 1


def test_what_grows_too_old_in_part_is_masked_in_that_part() -> None:
    trace = Trace(1.2, 1.0, 1)
    outcome = schedule(TokenMask(1), World(trace.seconds, trace.train_s, BATCH, 12, STEPS, trace.update_s))
    dropping = schedule(Drop(1), World(trace.seconds, trace.train_s, BATCH, 12, STEPS, trace.update_s))
    assert max(outcome.lags) <= 1 and 0 < max(outcome.masked) < 1
    assert len(outcome.dropped) < len(dropping.dropped)


def test_held_weights_train_what_would_have_grown_too_old() -> None:
    trace = Trace(1.2, 1.0, 1)
    world = World(trace.seconds, trace.train_s, BATCH, 12, STEPS, trace.update_s)
    holding, masking = schedule(Elastic(3, admit_lag=2, cap=99), world), schedule(TokenMask(3), world)
    assert max(holding.lags) <= 3 and not holding.dropped and sum(holding.masked) == 0 < sum(masking.masked)
    assert len(holding.sizes) == len(holding.step_ends) == STEPS and max(holding.sizes) > BATCH
    assert all(size % BATCH == 0 for size in holding.sizes)


class Miser(Fifo):
    def admit(self, state: object) -> int:
        return 0


def test_a_policy_that_waits_for_itself_is_named() -> None:
    with pytest.raises(StuckError, match="version 0"):
        schedule(Miser(1), world(1.0))


class Hasty(Fifo):
    """Ready groups in the order in which they are ready, whatever their age."""

    def evict(self, ready: object, version: int) -> list[tuple[str, str]]:
        return []

    def select(
        self, ready: list[ReadyGroup], open_order: object, version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        return tuple(group.group_id for group in ready[:batch_size]) if len(ready) >= batch_size else None


def test_the_ideal_says_what_lag_a_policy_without_a_bound_has() -> None:
    trace = Trace(1.2, 1.0, 1)
    outcome = schedule(Hasty(3), World(trace.seconds, trace.train_s, BATCH, 12, STEPS, trace.update_s))
    assert max(outcome.lags) > 3


@pytest.mark.parametrize("sigma", [0.6, 1.2])
def test_the_trace_has_the_stated_distribution_and_is_the_same_for_every_reader(sigma: float) -> None:
    trace = Trace(sigma, 0.5, 8)
    seconds = [trace.seconds(position) for position in range(20_000)]
    assert statistics.fmean(seconds) == pytest.approx(traces.MEAN_STEPS * 0.5, rel=0.05)
    assert statistics.stdev(map(math.log, seconds)) == pytest.approx(sigma, rel=0.05)
    assert [trace.draw(seed) for seed in range(16)] == [trace.tokens(0)] * 8 + [trace.tokens(1)] * 8
    assert max(trace.tokens(position) for position in range(20_000)) <= traces.LONGEST


def test_the_environment_hands_the_trace_on(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(0.6, 0.5, 8, 33, 5.0)
    for name, value in traces.to_environment(trace).items():
        monkeypatch.setenv(name, value)
    assert traces.from_environment() == trace
    assert (trace.train_s(32), trace.train_s(33)) == (0.5, 5.0)


def transition(ms: int, kind: str, *groups: str, step: int = 0, versions: int = 1) -> dict[str, Any]:
    return {
        "id": f"{ms}-0",
        "kind": kind,
        "groups": list(groups),
        "step": step,
        "versions": [[v, 1] for v in range(versions)],
    }


def test_what_each_link_of_the_chain_adds_is_read_from_the_record() -> None:
    trace = Trace(0.6, 1.0, 1)
    a, b = (round(trace.seconds(position) * 1e3) for position in (0, 1))
    record = [
        transition(1000, "admitted", "a"),
        transition(1003, "claimed", "a"),
        transition(1003 + a + 7, "published", "a"),
        transition(1003 + a + 12, "batched", "a", step=1),
        transition(20_040, "admitted", "b"),
        transition(20_042, "claimed", "b"),
        transition(20_042 + b + 50 + 8, "published", "b", versions=2),
        transition(20_042 + b + 50 + 8 + 5, "batched", "b", step=2),
    ]
    ends = {0: 0.9, 1: 20.0, 2: (20_042 + b + 63) / 1e3 + 1.009}
    assert latencies(record, ends, trace, 1, 2) == {"offer": 40, "claim": 2, "generate": 8, "batch": 5, "train": 9}


def test_a_run_on_the_trace_trains_what_the_ideal_trains_at_no_more_than_its_pace() -> None:
    found = bench_schedule.run(lags=[2], sigmas=[0.6], steps=3, step_s=0.5, samples=2)
    (figures,) = found["runs"].values()
    assert 0.0 < figures["share"] <= 1.02
    assert figures["max_token_lag"] <= 2 and figures["dropped"] == figures["ideal_dropped"] == 0
    assert {"dealer", "rollout", "learner", "redis", "router", "launch", "broadcaster"} <= figures["roles"].keys()
    assert figures["cpu_us_per_group"] > 0
    assert {"offer", "claim", "generate", "batch", "train", "pause"} == figures["added_ms"].keys()
