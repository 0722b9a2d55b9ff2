"""The staleness policies keep their bound, drop nothing that they need not, and never deadlock: simulated asynchronous runs."""

from __future__ import annotations

from itertools import chain

from hypothesis import example, given, settings
from hypothesis import strategies as st
from staleness_runs import WIDE, runs, simulate

from miles_async.staleness.drop import Drop
from miles_async.staleness.elastic import Elastic
from miles_async.staleness.fifo import Fifo
from miles_async.staleness.policies import StalenessPolicy
from miles_async.staleness.token_mask import TokenMask


@settings(max_examples=150, deadline=None)
@given(run=runs, max_lag=st.integers(0, 4), data=st.data())
def test_fifo_keeps_the_bound_drops_nothing_and_trains_in_dealt_order(
    run: dict, max_lag: int, data: st.DataObject
) -> None:
    interval = data.draw(st.integers(1, max_lag + 1))
    result = simulate(Fifo(max_lag), update_interval=interval, **run)
    assert max(result.lags) <= max_lag
    assert result.dropped == 0
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
@given(run=runs, policy=st.sampled_from([Fifo(0), Drop(0), TokenMask(0)]))
@example(run=WIDE, policy=Fifo(0))
@example(run=WIDE, policy=Drop(0))
@example(run=WIDE, policy=TokenMask(0))
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
