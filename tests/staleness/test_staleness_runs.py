"""The staleness policies keep their bound, drop nothing that they need not, and never deadlock: simulated asynchronous runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from staleness_runs import WIDE, runs, simulate

from miles_async.staleness.count import Count
from miles_async.staleness.drop import Drop
from miles_async.staleness.elastic import Elastic
from miles_async.staleness.fifo import Fifo
from miles_async.staleness.pace import Pace
from miles_async.staleness.policies import StalenessPolicy
from miles_async.staleness.ready_first import ReadyFirst
from miles_async.staleness.recycle import Recycle
from miles_async.staleness.token_mask import TokenMask
from miles_async.staleness.weight_fifo import WeightFifo
from miles_async.staleness.windowed import Windowed

OPEN_ENDED = (Count, ReadyFirst, Pace)


@settings(max_examples=150, deadline=None)
@given(run=runs, max_lag=st.integers(0, 4), data=st.data())
def test_fifo_keeps_the_bound_drops_nothing_and_trains_in_dealt_order(
    run: dict, max_lag: int, data: st.DataObject
) -> None:
    interval = data.draw(st.integers(1, max_lag + 1))
    result = simulate(Fifo(max_lag), update_interval=interval, **run)
    assert max(result.lags) <= max_lag
    assert result.dropped == result.outdated == 0
    assert list(chain.from_iterable(result.batches)) == list(range(run["steps"] * run["batch_size"]))
    assert len(result.started_at) == run["steps"] * run["batch_size"]  # nothing generated for no step


@settings(max_examples=150, deadline=None)
@given(run=runs, max_lag=st.integers(0, 4), data=st.data())
def test_drop_trains_nothing_beyond_the_bound_and_finishes(run: dict, max_lag: int, data: st.DataObject) -> None:
    interval = data.draw(st.integers(1, max_lag + 1))
    result = simulate(Drop(max_lag), update_interval=interval, **run)
    assert max(result.lags) <= max_lag
    assert [len(batch) for batch in result.batches] == [run["batch_size"]] * run["steps"]
    assert len(set(list(chain.from_iterable(result.batches)))) == run["steps"] * run["batch_size"]  # none twice


@settings(max_examples=150, deadline=None)
@given(run=runs, max_lag=st.integers(0, 4), data=st.data())
def test_token_mask_trains_nothing_beyond_the_bound_and_finishes(run: dict, max_lag: int, data: st.DataObject) -> None:
    interval = data.draw(st.integers(1, max_lag + 1))
    result = simulate(TokenMask(max_lag), update_interval=interval, **run)
    assert max(result.lags) <= max_lag
    assert [len(batch) for batch in result.batches] == [run["batch_size"]] * run["steps"]
    assert len(set(chain.from_iterable(result.batches))) == run["steps"] * run["batch_size"]  # none twice


@settings(max_examples=150, deadline=None)
@given(run=runs, max_lag=st.integers(0, 6), cap=st.integers(1, 5), data=st.data())
def test_elastic_trains_nothing_beyond_the_bound_drops_only_what_its_cap_gives_up_and_finishes(
    run: dict, max_lag: int, cap: int, data: st.DataObject
) -> None:
    admit = data.draw(st.integers(1, max_lag)) if max_lag else 0
    interval = data.draw(st.integers(1, max(admit, 1)))
    result = simulate(Elastic(max_lag, admit_lag=admit, cap=cap), update_interval=interval, **run)
    assert max(result.lags) <= max_lag
    size, sizes = run["batch_size"], [len(batch) for batch in result.batches]
    assert len(sizes) == run["steps"] and all(n % size == 0 and size <= n <= size * cap for n in sizes)
    assert len(set(chain.from_iterable(result.batches))) == sum(sizes)  # none twice
    assert max(sizes) == size or max_lag > 0


def test_elastic_trains_what_token_mask_masks() -> None:
    holding, masking = (
        simulate(policy, update_interval=1, **WIDE) for policy in (Elastic(2, admit_lag=2, cap=9), TokenMask(2))
    )
    assert masking.masked > 0 and holding.masked == holding.dropped == 0
    assert max(map(len, holding.batches)) > WIDE["batch_size"]


def test_token_mask_masks_where_drop_drops() -> None:
    masking, dropping = (simulate(policy(1), update_interval=1, **WIDE) for policy in (TokenMask, Drop))
    assert masking.masked > 0 and masking.dropped < dropping.dropped


@settings(max_examples=50, deadline=None)
@given(run=runs, policy=st.sampled_from([Fifo(0), Drop(0), TokenMask(0), WeightFifo(0), *(p(0) for p in OPEN_ENDED)]))
@example(run=WIDE, policy=Fifo(0))
@example(run=WIDE, policy=Drop(0))
@example(run=WIDE, policy=TokenMask(0))
@example(run=WIDE, policy=Pace(0))
def test_a_bound_of_zero_is_the_synchronous_loop(run: dict, policy: StalenessPolicy) -> None:
    result = simulate(policy, update_interval=1, **run)
    assert set(result.lags) == {0}
    assert result.dropped == 0
    size = run["batch_size"]
    assert [set(batch) for batch in result.batches] == [
        set(range(step * size, (step + 1) * size)) for step in range(run["steps"])
    ]
    assert result.started_at == [position // size for position in range(size * run["steps"])]


@settings(max_examples=150, deadline=None)
@given(
    run=runs,
    max_lag=st.integers(0, 3),
    extra=st.integers(1, 5),
    refuse=st.sampled_from([0.0, 0.3, 0.8]),
    data=st.data(),
)
def test_over_sampling_keeps_the_bound_and_every_batch_is_whole_and_every_group_has_its_place(
    run: dict, max_lag: int, extra: int, refuse: float, data: st.DataObject
) -> None:
    interval = data.draw(st.integers(1, max_lag + 1))
    result = simulate(Fifo(max_lag, extra), update_interval=interval, refuse=refuse, **run)
    assert max(result.lags) <= max_lag
    assert result.dropped == 0  # nothing grows too old: the surplus is dropped before it could
    assert [len(batch) for batch in result.batches] == [run["batch_size"]] * run["steps"]
    trained = list(chain.from_iterable(result.batches))
    assert len(set(trained)) == len(trained) and trained == sorted(trained)
    assert len(result.started_at) == len(trained) + result.surplus + result.refused
    assert result.max_open <= (max_lag + 1) * (run["batch_size"] + extra)


@settings(max_examples=100, deadline=None)
@given(run=runs, max_lag=st.integers(0, 3), policy=st.sampled_from([Fifo, Drop]), data=st.data())
def test_a_filter_that_refuses_groups_changes_neither_the_bound_nor_the_batches(
    run: dict, max_lag: int, policy: type, data: st.DataObject
) -> None:
    interval = data.draw(st.integers(1, max_lag + 1))
    result = simulate(policy(max_lag), update_interval=interval, refuse=0.5, **run)
    assert max(result.lags) <= max_lag
    assert [len(batch) for batch in result.batches] == [run["batch_size"]] * run["steps"]
    if policy is Fifo:  # each refused group is replaced, and by one
        assert len(result.started_at) == run["batch_size"] * run["steps"] + result.refused
        assert result.dropped == 0


def test_over_sampling_does_not_wait_for_what_a_filter_refuses() -> None:
    """At bound 0 the next group of a step that lacks one starts only then: to spare ones have begun already."""
    run = {**WIDE, "steps": 40, "update_interval": 1, "refuse": 0.4}
    plain, spare = simulate(Fifo(0), **run), simulate(Fifo(0, 8), **run)
    assert plain.surplus == 0 < spare.surplus
    assert set(plain.lags) == set(spare.lags) == {0}
    assert spare.duration < 0.8 * plain.duration


def test_the_bound_is_used_and_not_only_kept() -> None:
    for max_lag in (1, 2, 4):
        result = simulate(Fifo(max_lag), update_interval=1, **WIDE)
        assert max(result.lags) == max_lag
        assert result.max_open == (max_lag + 1) * WIDE["batch_size"]


def test_drop_loses_a_straggler_that_fifo_waits_for() -> None:
    run = {**WIDE, "steps": 30, "batch_size": 2}
    assert simulate(Drop(1), update_interval=1, **run).dropped > 0


@settings(max_examples=150, deadline=None)
@given(run=runs, max_lag=st.integers(0, 4), policy=st.sampled_from(OPEN_ENDED), data=st.data())
def test_a_policy_without_a_hard_bound_drops_nothing_and_keeps_no_more_open_than_it_says(
    run: dict, max_lag: int, policy: type, data: st.DataObject
) -> None:
    interval = data.draw(st.integers(1, max_lag + 1))
    result = simulate(policy(max_lag), update_interval=interval, **run)
    assert result.dropped == 0 and not policy(max_lag).hard_bound
    assert len(result.started_at) == run["steps"] * run["batch_size"]  # nothing generated for no step
    assert sorted(chain.from_iterable(result.batches)) == list(range(run["steps"] * run["batch_size"]))
    assert result.max_open <= (max_lag + 1) * run["batch_size"]


@pytest.mark.parametrize("policy", OPEN_ENDED)
def test_a_policy_without_a_hard_bound_trains_what_is_late_however_old_it_is(policy: type) -> None:
    """An engine that takes thirty times as long as the others holds up nobody, and what it makes is trained."""
    run = {**WIDE, "steps": 60, "update_interval": 1, "slow": 30.0}
    late, waited = simulate(policy(2), **run), simulate(Fifo(2), **run)
    assert max(late.lags) > 2 + 5 and max(waited.lags) <= 2
    assert late.duration < 0.5 * waited.duration


def test_what_is_late_is_trained_first_by_the_age_of_its_weights() -> None:
    """count goes by when a group was dealt, pace by what it was sampled with."""
    run = {**WIDE, "steps": 60, "update_interval": 1, "slow": 30.0, "deaths": 0.2}
    assert simulate(Pace(2), **run).batches != simulate(ReadyFirst(2), **run).batches


@settings(max_examples=150, deadline=None)
@given(run=runs, max_lag=st.integers(0, 4), data=st.data())
def test_weight_fifo_keeps_the_bound_and_finishes_and_drops_nothing(
    run: dict, max_lag: int, data: st.DataObject
) -> None:
    interval = data.draw(st.integers(1, max_lag + 1))
    result = simulate(WeightFifo(max_lag), update_interval=interval, **run)
    assert max(result.lags) <= max_lag
    assert [len(batch) for batch in result.batches] == [run["batch_size"]] * run["steps"]
    assert result.dropped == 0


def test_weight_fifo_lets_whoever_is_ready_go_first_among_groups_of_one_version_alone() -> None:
    run = {**WIDE, "steps": 40, "update_interval": 1, "slow": 10.0}
    by_weights, counted = simulate(WeightFifo(4), **run), simulate(Count(4), **run)
    trained, at_once = (list(chain.from_iterable(result.batches)) for result in (by_weights, counted))
    assert max(by_weights.lags) == 4 < max(counted.lags)
    # the first batches are all of version 0; nobody is further from his place than those that were dealt with him
    moved, far = (max(abs(place - number) for place, number in enumerate(found)) for found in (trained, at_once))
    assert 0 < moved < 5 * run["batch_size"] < far


EVERY: tuple[Callable[[int], StalenessPolicy], ...] = (
    Fifo,
    Drop,
    TokenMask,
    WeightFifo,
    *OPEN_ENDED,
    lambda lag: Fifo(lag, surplus=2),
    lambda lag: Drop(lag, requeues=True),
    lambda lag: Elastic(lag, admit_lag=-(-lag // 2)),
    lambda lag: Windowed(lag, capacity=5),  # of a batch
    lambda lag: Windowed(lag, capacity=12),
    lambda lag: Windowed(lag, capacity=12, masking=True),
    lambda lag: Recycle(lag, requeues=True, capacity=5),
    lambda lag: Recycle(lag, requeues=True, capacity=12),
)


@settings(max_examples=300, deadline=None)
@given(
    run=runs,
    max_lag=st.integers(0, 4),
    policy=st.sampled_from(EVERY),
    trouble=st.fixed_dictionaries(
        {
            "deaths": st.sampled_from([0.0, 0.3, 0.9]),
            "refuse": st.sampled_from([0.0, 0.5]),
            "slow": st.sampled_from([1.0, 20.0]),
        }
    ),
)
def test_whatever_dies_every_policy_ends_its_run_within_its_bound_and_each_group_and_token_is_in_one_place(
    run: dict, max_lag: int, policy: Callable[[int], StalenessPolicy], trouble: dict
) -> None:
    made = policy(max_lag)
    result = simulate(made, update_interval=1, **run, **trouble)
    trained = list(chain.from_iterable(result.batches))
    assert len(result.batches) == run["steps"] and len(set(trained)) == len(trained)
    assert not made.hard_bound or max(result.lags) <= max_lag
    result.check_closed()
    if made.requeues and not trouble["refuse"]:  # no prompt is left out, and none is twice in the run
        theirs = [*(result.prompts[number] for number in [*trained, *result.open]), *result.again]
        assert sorted(theirs) == list(range(len(theirs)))


@settings(max_examples=100, deadline=None)
@given(run=runs, max_lag=st.integers(0, 4), more=st.integers(0, 9), masking=st.booleans(), data=st.data())
def test_what_no_version_gates_keeps_its_bound_and_its_capacity_and_every_batch_is_whole(
    run: dict, max_lag: int, more: int, masking: bool, data: st.DataObject
) -> None:
    interval, capacity = data.draw(st.integers(1, max_lag + 1)), run["batch_size"] + more
    for policy in (
        Windowed(max_lag, capacity=capacity, masking=masking),
        Recycle(max_lag, requeues=True, capacity=capacity),
    ):
        result = simulate(policy, update_interval=interval, **run)
        assert max(result.lags) <= max_lag and result.max_open <= capacity
        assert [len(batch) for batch in result.batches] == [run["batch_size"]] * run["steps"]


def test_recycle_begins_a_late_prompt_again_before_new_ones() -> None:
    result = simulate(Recycle(1, requeues=True, capacity=12), update_interval=1, **{**WIDE, "steps": 30, "slow": 9.0})
    assert result.dropped > 0
    trained = [result.prompts[number] for number in chain.from_iterable(result.batches)]
    assert len(set(trained)) == len(trained)
    assert max(trained) < len(trained) + 12  # no more prompts were begun than there were places for
