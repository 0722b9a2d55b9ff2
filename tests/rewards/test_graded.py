"""The rewards that need no process, and mathematics, which has one: what they are worth."""

from __future__ import annotations

import pytest
from grading import grader_of, grading_processes, sample

from miles_async.rewards import (
    RewardError,
    resolve_reward,
)


@pytest.mark.parametrize(
    ("response", "finish_reason", "expected"),
    [
        ("777", "stop", 1.0),
        ("777", "length", 3 / 4),  # right so far, but it did not stop
        ("77", "stop", 2 / 4),  # the end of sequence stands where a 7 belongs
        ("7777", "stop", 3 / 5),
        ("7777777777", "length", 3 / 10),
        ("7_7", "stop", 3 / 4),
        ("", "stop", 0.0),
        ("", "length", 0.0),
    ],
)
def test_graded_match_counts_positions_and_the_stop(response: str, finish_reason: str, expected: float) -> None:
    assert resolve_reward("graded_match")(sample(response, "777", finish_reason)) == pytest.approx(expected)


async def test_graded_match_is_full_only_for_the_label_and_a_stop() -> None:
    async with grader_of("graded_match") as grader:
        assert await grader.grade(sample("", "")) == 1.0
        assert await grader.grade(sample("7", "7")) == 1.0
        assert grading_processes() == []  # cheap: no process
        with pytest.raises(RewardError, match="the prompt has no label") as caught:
            await grader.grade(sample("7", None))
        assert caught.value.reason == "reward_error"


def test_exact_match_ignores_white_space_around() -> None:
    exact = resolve_reward("exact_match")
    assert exact(sample(" 4\n", "4")) == 1.0
    assert exact(sample("4.", "4")) == 0.0


async def test_math_compares_mathematics() -> None:
    async with grader_of("math", timeout_s=60) as grader:
        cases = [
            (r"so the answer is \boxed{\frac{1}{2}}.", "0.5", 1.0),
            (r"so $x = \frac{2}{4}$", r"\frac{1}{2}", 1.0),
            ("The answer is 1,234", "1234", 1.0),
            (r"\boxed{7}", r"\boxed{8}", 0.0),
            ("no idea", "8", 0.0),
            ("", "8", 0.0),
        ]
        assert [await grader.grade(sample(response, label)) for response, label, _ in cases] == [c[2] for c in cases]
        with pytest.raises(
            RewardError, match=r"reward_error: ValueError: the label .* is not a mathematical expression"
        ):
            await grader.grade(sample("8", ""))
