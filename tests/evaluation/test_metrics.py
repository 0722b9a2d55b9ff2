"""The metrics of a dataset: pass@k is unbiased, branches count once, and what could not be graded counts 0."""

from __future__ import annotations

import itertools

import pytest
from evaluations import graded
from hypothesis import given
from hypothesis import strategies as st

from miles_async.evaluation.metrics import dataset_metrics, pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),
        (4, 2, 2, 5 / 6),  # one of six pairs holds no right one
        (10, 3, 5, 1 - 21 / 252),
        (5, 0, 4, 0.0),
        (5, 5, 1, 1.0),
        (5, 3, 3, 1.0 - 0.0),  # only two wrong ones: any three hold a right one
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_mean_over_all_choices_of_k(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    choices = [any(chosen) for chosen in itertools.combinations(right, k)]
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_of_samples_that_there_are_not_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="there are no such samples"):
        pass_at_k(n, c, k)


def test_the_metrics_of_a_dataset_by_hand() -> None:
    one = [graded(1.0, rollout=0), graded(0.5, rollout=1), graded(0.0, rollout=2), graded(1.0, rollout=3)]
    other = [
        graded(None, rollout=0),
        graded(1.0, rollout=1, length=8, finish="length"),
        *(graded(0.0, rollout=i) for i in (2, 3)),
    ]
    found = dataset_metrics("d", [one, other])
    assert found.pop("d") == pytest.approx((2.5 + 1.0) / 8)  # what could not be graded counts 0
    assert found.pop("d-none_reward_ratio") == found.pop("d-truncated_ratio") == 1 / 8
    assert found.pop("d/response_len/mean") == pytest.approx((7 * 3 + 8) / 8)
    assert found == pytest.approx({"d-pass@1": 3 / 8, "d-pass@2": (5 / 6 + 1 / 2) / 2, "d-pass@4": 1.0})


def test_the_branches_of_a_rollout_count_once_and_a_prompt_with_too_few_says_nothing_of_pass_at_k() -> None:
    branches = [graded(1.0, rollout=0), graded(1.0, rollout=0), graded(0.0, rollout=1)]
    found = dataset_metrics("d", [branches, [graded(0.0)]])
    assert found["d"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["d-pass@1"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["d-pass@2"] == 1.0  # of the first prompt alone
    assert "d-pass@4" not in found
    with pytest.raises(ValueError, match="no sample"):
        dataset_metrics("d", [])
