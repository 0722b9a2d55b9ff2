"""What each staleness policy admits, selects and evicts in a given state; and which one a configuration names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bus.messages import UNSAMPLED, ReadyGroup
from miles_async.config.schema import ConfigError, Data, Model, Rollout, RunConfig, Staleness
from miles_async.config.schema.rollout import POLICIES
from miles_async.staleness.choice import check, make_policy, outdated
from miles_async.staleness.count import Count
from miles_async.staleness.drop import Drop
from miles_async.staleness.elastic import Elastic
from miles_async.staleness.fifo import Fifo
from miles_async.staleness.pace import Pace
from miles_async.staleness.policies import NO_BOUND, StalenessPolicy, StalenessState, bound_of, is_outdated, too_old
from miles_async.staleness.ready_first import ReadyFirst
from miles_async.staleness.recycle import Recycle
from miles_async.staleness.token_mask import TokenMask
from miles_async.staleness.weight_fifo import WeightFifo
from miles_async.staleness.windowed import Windowed


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


@pytest.mark.parametrize("policy", [Fifo(2), Drop(2), WeightFifo(2)])
def test_a_group_beyond_the_bound_is_evicted_and_never_selected(policy: StalenessPolicy) -> None:
    groups = [ready("a", 2), ready("b", 3)]
    assert policy.evict(groups, version=5) == [("a", "stale")]
    assert policy.select(groups, ["a", "b"], version=5, batch_size=2) is None
    assert policy.select(groups[1:], ["b"], version=5, batch_size=1) == ("b",)


@pytest.mark.parametrize(
    ("policy", "first"), [(Count(1), ("a", "b")), (ReadyFirst(1), ("a", "b")), (Pace(1), ("c", "d"))]
)
def test_a_policy_without_a_hard_bound_takes_the_oldest_by_its_own_measure(
    policy: StalenessPolicy, first: tuple[str, ...]
) -> None:
    groups = [ready("d", 1), ready("b", 4), ready("c", 0), ready("a", 4)]
    assert not policy.hard_bound and bound_of(policy) == NO_BOUND and bound_of(Fifo(1)) == 1
    assert policy.evict(groups, version=9) == []
    assert policy.select(groups, ["a", "x", "b", "c", "d"], version=9, batch_size=2) == first
    assert policy.select(groups[:1], ["d"], version=9, batch_size=2) is None


def test_ready_first_and_pace_go_by_the_learners_version_and_count_by_the_engines() -> None:
    late = StalenessState(batched_steps=5, open_groups=4, batch_size=8, serving_version=1, total_steps=100)
    assert [policy(2).admit(late) for policy in (Count, ReadyFirst, Pace)] == [
        0,
        12,
        12,
    ]  # (4 + 2 + 1) * 8 - (5 * 8 + 4)
    first = StalenessState(batched_steps=0, open_groups=0, batch_size=8, serving_version=0, total_steps=100)
    assert [policy(0).admit(first) for policy in (Count, ReadyFirst, Pace)] == [8, 8, 8]


def test_weight_fifo_waits_for_what_may_be_of_an_older_version_and_for_nothing_else() -> None:
    order, policy = (
        ["a", "b", "c", "d"],
        WeightFifo(1),
    )  # in batches of 2, a and b were begun at version 4 at the earliest
    assert policy.select([ready("b", 4), ready("c", 4)], order, version=5, batch_size=2) == (
        "b",
        "c",
    )  # a may be as old
    assert (
        policy.select([ready("b", 4), ready("c", 5)], order, version=5, batch_size=2) is None
    )  # a may be older than c
    assert policy.select([ready("a", 5), ready("b", 4)], order, version=5, batch_size=2) == ("b", "a")
    assert policy.select([ready("d", 5), ready("a", 5), ready("b", 5)], order, version=5, batch_size=2) == ("a", "b")


def sampled(group_id: str, *versions: tuple[int, int]) -> ReadyGroup:
    return msgspec.structs.replace(ready(group_id, versions[0][0]), versions=versions)


def test_token_mask_takes_groups_as_they_were_published_and_evicts_what_is_too_old_to_its_last_token() -> None:
    old, mixed, young = sampled("a", (1, 5), (2, 3)), sampled("b", (1, 4), (3, 2)), sampled("c", (5, 1))
    policy = TokenMask(2)
    assert policy.masks
    assert policy.evict([old, mixed, young], version=5) == [("a", "stale")]
    assert policy.select([old, mixed, young], ["a", "b", "c"], version=5, batch_size=2) == ("b", "c")
    assert policy.select([old, mixed], ["a", "b"], version=5, batch_size=2) is None
    assert [too_old(group, 5, 2) for group in (old, mixed, young)] == [8, 4, 0]


def test_elastic_holds_the_weights_for_a_group_that_their_change_would_make_too_old_and_for_no_other() -> None:
    policy = Elastic(2, admit_lag=1, cap=3)
    assert policy.holds and policy.masks
    assert not policy.ticks([5, 3], version=5, batches=1)  # version 6 is 3 ahead of it
    assert policy.ticks([5, 4], version=5, batches=1)
    assert policy.ticks([5, 2], version=5, batches=1)  # too old already: waiting helps nobody
    assert policy.ticks([], version=5, batches=1)
    assert policy.ticks([3], version=5, batches=3)  # the cap
    assert policy.admit(StalenessState(5, 4, 8, 5, 100)) == 12  # one version ahead: positions up to 16


def test_what_elastic_cannot_make_progress_with_is_refused() -> None:
    assert make_policy(config(Staleness(policy="elastic", max_lag=5))) == Elastic(5, admit_lag=3, cap=4)
    assert make_policy(config(Staleness(policy="elastic", max_lag=0))) == Elastic(0, admit_lag=0, cap=4)
    for given in (0, 3):
        with pytest.raises(ConfigError, match=rf"elastic_admit_lag = {given}: .* 1 to staleness.max_lag = 2"):
            make_policy(config(Staleness(policy="elastic", max_lag=2, elastic_admit_lag=given)))


def test_what_nobody_sampled_never_grows_too_old() -> None:
    written = sampled("a", (UNSAMPLED, 7))
    answered = sampled("b", (1, 4), (UNSAMPLED, 7))  # a policy's call, and what its tool said
    assert TokenMask(2).evict([written, answered], version=9) == [("b", "stale")]
    assert too_old(written, 9, 2) == 0


@pytest.mark.parametrize(
    "policy", [Fifo(2), Drop(2), Fifo(2, surplus=1), TokenMask(2), WeightFifo(2), Count(2), Pace(2)]
)
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
    assert make_policy(config(Staleness(policy="token_mask", max_lag=1))) == TokenMask(1)
    spare = {"rollout_batch_size": 8, "over_sampling_batch_size": 12}
    assert make_policy(config(Staleness(max_lag=2), **spare)) == Fifo(2, surplus=4)
    for name in ("drop", "token_mask", "elastic"):
        wanted = rf'over_sampling_batch_size = 12 needs staleness\.policy = "fifo": "{name}" takes'
        with pytest.raises(ConfigError, match=wanted):
            make_policy(config(Staleness(policy=name), **spare))


@pytest.mark.parametrize(("name", "made"), [("count", Count(3)), ("ready_first", ReadyFirst(3)), ("pace", Pace(3))])
def test_a_policy_without_a_hard_bound_is_refused_unless_the_configuration_allows_it(
    name: str, made: StalenessPolicy
) -> None:
    with pytest.raises(
        ConfigError, match=rf'policy = "{name}" has no hard bound: .* staleness.hard_bound = false allows'
    ):
        make_policy(config(Staleness(policy=name, max_lag=3)))
    assert make_policy(config(Staleness(policy=name, max_lag=3, hard_bound=False))) == made
    assert make_policy(config(Staleness(max_lag=3, hard_bound=False))) == Fifo(3)  # it is allowed, not asked for


def test_in_order_is_fifo_and_weight_fifo_has_a_bound() -> None:
    assert make_policy(config(Staleness(policy="in_order", max_lag=3))) == Fifo(3)
    assert make_policy(config(Staleness(policy="weight_fifo", max_lag=3))) == WeightFifo(3)


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        ("fifo", ("drop", "requeue")),
        ("drop", ("drop", "requeue")),
        ("weight_fifo", ("drop", "requeue")),
        ("in_order", ("drop", "requeue")),
        ("windowed", ("drop", "requeue", "mask")),
        ("recycle", ("requeue",)),
        ("token_mask", ("mask",)),
        ("elastic", ("mask",)),
        ("count", ()),
        ("ready_first", ()),
        ("pace", ()),
    ],
)
def test_what_becomes_of_a_group_that_is_too_old_is_refused_where_the_policy_does_not_do_it(
    policy: str, allowed: tuple[str, ...]
) -> None:
    for becomes in ("drop", "requeue", "mask"):
        asked = config(Staleness(policy=policy, max_lag=2, hard_bound=False, too_old=becomes))
        if becomes in allowed:
            made = make_policy(asked)
            assert (made.requeues, made.masks) == (becomes == "requeue", becomes == "mask")
            continue
        can = " or ".join(f'"{name}"' for name in allowed)
        why = f"a group that is too old it can {can}" if allowed else "it trains a group however old it is"
        with pytest.raises(ConfigError) as error:
            make_policy(asked)
        assert (
            str(error.value) == f'staleness.too_old = "{becomes}" cannot be with staleness.policy = "{policy}": {why}'
        )


@pytest.mark.parametrize("policy", ["windowed", "recycle"])
def test_a_capacity_below_a_batch_is_refused_with_the_inequality_that_fails(policy: str) -> None:
    def asked(capacity: int | None) -> RunConfig:
        return config(Staleness(policy=policy, max_lag=2, capacity=capacity), rollout_batch_size=8)

    with pytest.raises(ConfigError, match=r"capacity = 7: staleness.capacity >= rollout.rollout_batch_size = 8 fails"):
        make_policy(asked(7))
    for capacity, room in ((8, 3), (None, 19), (30, 25)):
        made = make_policy(asked(capacity))
        assert made.admit(StalenessState(4, 5, 8, 0, 100)) == room  # whatever version engines serve
        assert made.admit(StalenessState(99, 5, 8, 99, 100)) == 3  # the run ends at step 100


def test_windowed_takes_what_was_dealt_first_and_recycle_what_was_ready_first() -> None:
    groups, order = [ready("c", 5), ready("old", 2), ready("b", 4), ready("a", 5)], ["old", "a", "b", "x", "c"]
    for policy, first in ((Windowed(1, capacity=9), ("a", "b")), (Recycle(1, requeues=True, capacity=9), ("c", "b"))):
        assert policy.evict(groups, version=5) == [("old", "stale")]
        assert policy.select(groups, order, version=5, batch_size=2) == first
        assert policy.select(groups, order, version=5, batch_size=4) is None
    masking = Windowed(1, capacity=9, masking=True)
    assert masking.select([sampled("a", (1, 4), (4, 2))], order, version=5, batch_size=1) == ("a",)
    assert masking.evict([sampled("a", (1, 4), (3, 2))], version=5) == [("a", "stale")]


MISER = """
from miles_async.staleness.fifo import Fifo


class Miser(Fifo):
    def admit(self, state):
        return super().admit(state) - 1


def miser(staleness, rollout):
    return Miser(staleness.max_lag)
"""


def test_a_policy_that_cannot_fill_a_batch_is_refused_with_the_inequality_that_fails(tmp_path: Path) -> None:
    (tmp_path / "miser.py").write_text(MISER)
    stingy = config(Staleness(policy=f"{tmp_path}/miser.py:miser", max_lag=0), rollout_batch_size=4)
    with pytest.raises(ConfigError, match=r"cannot progress: 1 <= admitted fails, it admits 0 .* and 3 are open"):
        check(stingy)
    for name in POLICIES:
        check(config(Staleness(policy=name, max_lag=0, hard_bound=False), rollout_batch_size=4))


def test_what_is_generated_is_outdated_once_no_step_to_come_can_train_its_oldest_token() -> None:
    for policy in (Fifo(2), Drop(2), Drop(2, requeues=True), Recycle(2, requeues=True, capacity=9)):
        found = [is_outdated(policy, oldest, version=5) for oldest in (6, 5, 3, 2, UNSAMPLED)]
        assert found == [False, False, False, True, False]
    for policy in (TokenMask(2), Elastic(2)):  # of which newer tokens are trained
        assert not is_outdated(policy, 0, version=5)
    assert outdated(config(Staleness(policy="drop", max_lag=1)))(3, 5)


def test_of_a_policy_of_the_users_nothing_that_is_generated_is_outdated(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from miles_async.staleness.drop import drop as mine\n")
    mine = config(Staleness(policy=f"{tmp_path / 'mine.py'}:mine", max_lag=1))
    assert make_policy(mine).evict([ready("a", 3)], version=5) == [("a", "stale")]
    assert not outdated(mine)(3, 5)
