"""Miles' four knobs: how many optimizer steps a batch is, and whose groups each of them trains on."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_support import make_config

from miles_async.config.optimizer_steps import balanced, check, share, steps_of_batch, steps_of_pass
from miles_async.config.schema import ConfigError


def config(**learner: Any) -> Any:
    return make_config("none", learner=learner, rollout={"rollout_batch_size": 8, "n_samples_per_prompt": 4})


@pytest.mark.parametrize(
    ("learner", "of_pass", "of_batch"),
    [
        ({}, 1, 1),
        ({"num_steps_per_rollout": 4}, 4, 4),
        ({"global_batch_size": 16}, 2, 2),
        ({"global_batch_size": 8, "num_steps_per_rollout": 4, "ppo_epochs": 3}, 4, 12),
        ({"ppo_epochs": 2, "num_ranks": 8}, 1, 2),
    ],
)
def test_the_optimizer_steps_of_a_batch_follow_from_either_key(learner: dict[str, Any], of_pass: int, of_batch: int):
    made = config(**learner)
    check(made)
    assert (steps_of_pass(made), steps_of_batch(made)) == (of_pass, of_batch)


@pytest.mark.parametrize(
    ("learner", "problem"),
    [
        (
            {"global_batch_size": 16, "num_steps_per_rollout": 4},
            r"learner\.global_batch_size \* learner\.num_steps_per_rollout = 16 \* 4 = 64, but .* = 8 \* 4 = 32",
        ),
        ({"global_batch_size": 12}, r"learner\.global_batch_size = 12 does not divide .* = 8 \* 4 = 32"),
        (
            {"num_steps_per_rollout": 3},
            r"learner\.num_steps_per_rollout = 3 optimizer steps .* 8 must be a multiple of 3",
        ),
        (
            {"num_steps_per_rollout": 4, "num_ranks": 4},
            r"each of learner\.num_ranks = 4, .* 8 must be a multiple of 16",
        ),
        # a part of a group is no mini-batch
        ({"global_batch_size": 2}, r"learner\.global_batch_size = 2 makes 16 optimizer steps .* whole groups"),
    ],
)
def test_numbers_that_contradict_one_another_are_refused_with_the_arithmetic(learner: dict[str, Any], problem: str):
    with pytest.raises(ConfigError, match=problem) as refused:
        check(config(**learner))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("world", [1, 2])
def test_the_groups_of_a_mini_batch_are_the_same_for_every_number_of_ranks(world: int, steps: int):
    groups, size = list(range(8)), 8 // steps
    shares = [share(groups, rank, world, steps) for rank in range(world)]
    for step in range(steps):
        part = size // world
        found = [group for mine in shares for group in mine[step * part : (step + 1) * part]]
        assert found == groups[step * size : (step + 1) * size]


def test_no_group_of_a_batch_of_another_size_is_left_out():
    shares = [share(range(7), rank, 2, 2) for rank in range(2)]
    assert sorted(group for mine in shares for group in mine) == list(range(7))


@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_balanced_shares_keep_the_groups_of_a_step_and_differ_by_less_than_its_dearest(
    data: st.DataObject, world: int, steps: int, each: int
):
    count = world * steps * each
    costs = data.draw(st.lists(st.integers(0, 1000), min_size=count, max_size=count))
    order = balanced(costs, world, steps)
    shares = [share(order, rank, world, steps) for rank in range(world)]
    of_step = world * each
    for step in range(steps):
        parts = [mine[step * each : (step + 1) * each] for mine in shares]
        assert sorted(chain.from_iterable(parts)) == list(range(step * of_step, (step + 1) * of_step))
        assert all(part == sorted(part) for part in parts)
        sums = [sum(costs[place] for place in part) for part in parts]
        assert max(sums) - min(sums) <= max(costs)


def test_one_long_group_is_with_the_short_ones():
    order = balanced([5, 100, 40, 45, 50, 40, 2, 1], 2, 1)
    assert [sum([5, 100, 40, 45, 50, 40, 2, 1][place] for place in share(order, rank, 2, 1)) for rank in (0, 1)] == [
        143,
        140,
    ]
