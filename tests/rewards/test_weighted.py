"""A weighted sum of rewards keeps its addends, and is an error that names the addend without which it is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from grading import row_sample, score
from hypothesis import given
from hypothesis import strategies as st
from reward_modules import scoring

from miles_async.config.schema import Reward
from miles_async.rewards import Graded, RewardError
from miles_async.rewards.weighted import weighted_sum


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return scoring(tmp_path)


async def test_a_weighted_sum_adds_its_rewards_and_keeps_the_addends(module: Path) -> None:
    weights = {"dapo": 1.0, "exact_match": 0.5, f"{module}:length": -0.25}
    config = Reward(rm_type="weighted_sum", rm_weights=weights)
    grades = await score(config, row_sample("Answer: 7", "7"), row_sample("", "7"))
    assert grades == [
        Graded(1.0 - 9 / 4, {"dapo": 1.0, "exact_match": 0.0, "length": -9 / 4}),
        Graded(-1.0, {"dapo": -1.0, "exact_match": 0.0, "length": 0.0}),
    ]


async def test_a_sum_without_one_of_its_addends_is_an_error_that_names_it(module: Path) -> None:
    weights = {"exact_match": 1.0, f"{module}:by_command": 1.0}
    config = Reward(rm_type="weighted_sum", rm_weights=weights)
    grades = await score(config, row_sample("fine", "fine"), row_sample("raise", "x"), row_sample("fine"))
    assert grades == [
        Graded(2.0, {"exact_match": 1.0, "by_command": 1.0}),
        "reward_error: by_command: ValueError: no",
        "reward_error: exact_match: ValueError: the prompt has no label",
    ]


finite = st.floats(-1e6, 1e6)


@given(st.dictionaries(st.text(min_size=1), st.tuples(finite, finite), min_size=1))
def test_the_addends_of_a_sum_are_weight_times_reward_and_sum_to_it(given: dict[str, tuple[float, float]]) -> None:
    grades = {name: Graded(reward) for name, (reward, _) in given.items()}
    total = weighted_sum(grades, {name: weight for name, (_, weight) in given.items()})
    assert isinstance(total, Graded)
    assert total.parts == {name: reward * weight for name, (reward, weight) in given.items()}
    assert total.reward == pytest.approx(sum(total.parts.values()), abs=1e-3)


def test_a_sum_that_overflows_is_an_error() -> None:
    error = weighted_sum({"a": Graded(1e308), "b": Graded(1e308)}, {"a": 1.0, "b": 1.0})
    assert isinstance(error, RewardError)
