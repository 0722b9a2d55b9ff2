"""The staleness policies keep their bound, drop nothing that they need not, and never deadlock: simulated asynchronous runs."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import chain

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bus.messages import UNSAMPLED, ReadyGroup
from miles_async.config.schema import ConfigError, Data, Model, Rollout, RunConfig, Staleness
from miles_async.staleness.choice import make_policy
from miles_async.staleness.policies import Drop, Fifo, StalenessPolicy, StalenessState


@dataclass
class Result:
    """What a simulated run did. ``batches``: for each step the positions at which its groups were dealt."""

    batches: list[list[int]] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)
    dropped: int = 0
    refused: int = 0  # by a filter, as soon as they were generated
    surplus: int = 0
    max_open: int = 0
    duration: float = 0.0
    started_at: list[int] = field(default_factory=list)  # the learner's version when a group was dealt


def simulate(
    policy: StalenessPolicy,
    *,
    seed: int,
    batch_size: int,
    steps: int,
    engines: int,
    slots: int,
    update_interval: int,
    refuse: float = 0.0,
) -> Result:
    """A run by events: engines of their own pace with in-flight updates, delayed and skipped pushes, a slow learner, and a
    filter that refuses a share ``refuse`` of the groups.

    A group's tokens belong to whatever its engine serves while it runs, so its oldest version is that at its start.
    """
    rng = random.Random(seed)
    result = Result()
    events: list[tuple[float, int, str, tuple]] = []
    clock = count = version = newest_push = 0
    serving = [0] * engines
    free = [(engine, slot) for engine in range(engines) for slot in range(slots)]
    order: list[str] = []  # open groups in dealt order
    waiting: list[str] = []
    ready: list[ReadyGroup] = []
    dealt = 0
    training = False

    def at(delay: float, kind: str, *data: object) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (clock + delay, count, kind, data))

    while len(result.batches) < steps or training:
        state = StalenessState(
            batched_steps=len(result.batches),
            open_groups=len(order),
            batch_size=batch_size,
            serving_version=min(serving),
            total_steps=steps,
        )
        for _ in range(policy.admit(state)):
            order.append(str(dealt))
            waiting.append(str(dealt))
            result.started_at.append(version)
            dealt += 1
        result.max_open = max(result.max_open, len(order))
        rng.shuffle(free)
        while free and waiting:
            engine, slot = free.pop()
            at(rng.lognormvariate(0, 1.2), "finished", waiting.pop(0), serving[engine], engine, slot)
        if not training:
            stale = dict(policy.evict(ready, version))
            if stale:
                assert set(stale.values()) == {"stale"}
                result.dropped += len(stale)
                order = [group_id for group_id in order if group_id not in stale]
                ready = [group for group in ready if group.group_id not in stale]
                continue  # a drop makes room, which the dealer has to see
            chosen = policy.select(ready, order, version, batch_size) if len(result.batches) < steps else None
            if chosen is not None:
                by_id = {group.group_id: group for group in ready}
                result.batches.append([int(group_id) for group_id in chosen])
                result.lags += [version - by_id[group_id].oldest_version for group_id in chosen]
                surplus = [group_id for group_id in order if group_id not in chosen][
                    : policy.surplus
                ]  # as the ledger drops them
                result.surplus += len(surplus)
                gone = {*chosen, *surplus}
                order = [group_id for group_id in order if group_id not in gone]
                waiting = [group_id for group_id in waiting if group_id not in gone]
                ready = [group for group in ready if group.group_id not in gone]
                training = True
                at(rng.uniform(0.1, 2), "trained")
                continue  # so does a batch
        assert events, f"deadlock at version {version}: {state}, {len(ready)} ready, serving {serving}"
        clock, _, kind, data = heapq.heappop(events)
        result.duration = clock
        if kind == "trained":
            training = False
            version += 1
            if version % update_interval == 0:
                newest_push = version
                for engine in range(engines):
                    at(rng.uniform(0, 1.5), "pushed", engine)
        elif kind == "pushed":
            serving[data[0]] = newest_push  # a push that was overtaken brings the newest
        else:
            group_id, oldest, engine, slot = data
            free.append((engine, slot))
            if group_id not in order:
                continue  # dropped while it was generated
            if refuse and rng.random() < refuse:
                order.remove(group_id)
                result.refused += 1
                continue
            ready.append(
                ReadyGroup(
                    group_id=group_id,
                    payload_key="",
                    oldest_version=oldest,
                    newest_version=0,
                    n_tokens=1,
                    published=clock,
                )
            )
    return result


runs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "batch_size": st.integers(1, 5),
        "steps": st.integers(1, 12),
        "engines": st.integers(1, 4),
        "slots": st.integers(1, 4),
    }
)
WIDE = {"seed": 1, "batch_size": 4, "steps": 12, "engines": 4, "slots": 4}


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


@settings(max_examples=50, deadline=None)
@given(run=runs, policy=st.sampled_from([Fifo(0), Drop(0)]))
@example(run=WIDE, policy=Fifo(0))
@example(run=WIDE, policy=Drop(0))
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


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ((0, 0, 8, 0, 100), 24),  # positions 0..23 are trained at versions 0..2
        ((0, 24, 8, 0, 100), 0),
        ((1, 16, 8, 0, 100), 0),  # a batch was taken, but the engines still serve 0
        ((1, 16, 8, 1, 100), 8),
        ((5, 3, 8, 0, 100), 0),  # engines came back far behind: wait for a push, never negative
        ((98, 8, 8, 98, 100), 8),  # the run ends at step 100
    ],
)
def test_admission_counts_positions(state: tuple[int, int, int, int, int], expected: int) -> None:
    assert make_policy(config(Staleness(max_lag=2))).admit(StalenessState(*state)) == expected


def ready(group_id: str, oldest_version: int) -> ReadyGroup:
    return ReadyGroup(
        group_id=group_id, payload_key="", oldest_version=oldest_version, newest_version=9, n_tokens=1, published=0.0
    )


def test_fifo_waits_for_the_group_dealt_first() -> None:
    groups = [ready("c", 5), ready("b", 5)]
    assert Fifo(1).select(groups, ["a", "b", "c"], version=5, batch_size=2) is None
    assert Fifo(1).select([*groups, ready("a", 5)], ["a", "b", "c"], version=5, batch_size=2) == ("a", "b")
    assert Fifo(1).select([], [], version=5, batch_size=2) is None


def test_over_sampling_takes_the_first_that_are_ready_of_its_window() -> None:
    policy, order = Fifo(1, surplus=2), ["a", "b", "c", "d", "e"]
    assert policy.select([ready("d", 5)], order, version=5, batch_size=2) is None
    assert (
        policy.select([ready("d", 5), ready("e", 5)], order, version=5, batch_size=2) is None
    )  # e: of the next window
    three = [ready("d", 5), ready("b", 5), ready("a", 5)]
    chosen = policy.select(three, order, version=5, batch_size=2)
    assert chosen == ("b", "d")  # in the order they were dealt
    assert policy.select([ready("d", 3), ready("b", 5)], order, version=5, batch_size=2) is None


def test_drop_takes_groups_as_they_were_published() -> None:
    groups = [ready("c", 5), ready("b", 5)]
    assert Drop(1).select(groups, ["a", "b", "c"], version=5, batch_size=2) == ("c", "b")
    assert Drop(1).select(groups, ["a", "b", "c"], version=5, batch_size=3) is None


@pytest.mark.parametrize("policy", [Fifo(2), Drop(2)])
def test_a_group_beyond_the_bound_is_evicted_and_never_selected(policy: StalenessPolicy) -> None:
    groups = [ready("a", 2), ready("b", 3)]
    assert policy.evict(groups, version=5) == [("a", "stale")]
    assert policy.select(groups, ["a", "b"], version=5, batch_size=2) is None
    assert policy.select(groups[1:], ["b"], version=5, batch_size=1) == ("b",)


@pytest.mark.parametrize("policy", [Fifo(2), Drop(2), Fifo(2, surplus=1)])
def test_a_group_that_is_newer_than_the_learner_is_evicted_and_never_selected(policy: StalenessPolicy) -> None:
    """Of weights that a recovery undid, or that never were."""
    future = msgspec.structs.replace(ready("a", 4), versions=((4, 3), (6, 1)))
    nobodys = msgspec.structs.replace(ready("b", UNSAMPLED), versions=((UNSAMPLED, 3),))
    assert policy.evict([future, nobodys], version=5) == [("a", "unpublished_version")]
    assert policy.select([future, nobodys], ["a", "b"], version=5, batch_size=2) is None
    assert policy.evict([future], version=6) == []


def config(staleness: Staleness, **rollout: int) -> RunConfig:
    return RunConfig(
        model=Model(hf_checkpoint="m"), data=Data(prompt_data="p"), staleness=staleness, rollout=Rollout(**rollout)
    )


def test_the_configuration_names_the_policy() -> None:
    assert make_policy(config(Staleness(policy="fifo", max_lag=3))) == Fifo(3)
    assert make_policy(config(Staleness(policy="drop", max_lag=0))) == Drop(0)
    spare = {"rollout_batch_size": 8, "over_sampling_batch_size": 12}
    assert make_policy(config(Staleness(max_lag=2), **spare)) == Fifo(2, surplus=4)
    with pytest.raises(
        ConfigError, match=r'over_sampling_batch_size = 12 needs staleness\.policy = "fifo": "drop" takes'
    ):
        make_policy(config(Staleness(policy="drop"), **spare))
