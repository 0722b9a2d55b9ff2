"""Scoring a group: one grade or one error for each sample, rewards in parts, and functions of the whole group."""

from __future__ import annotations

from pathlib import Path

import pytest
from grading import grading_processes, row_sample, score
from reward_modules import scoring

from miles_async.config.schema import Reward
from miles_async.rewards import Graded, Grader


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return scoring(tmp_path)


@pytest.mark.parametrize("num_processes", [1, 3])
async def test_a_hanging_raising_or_dying_grader_costs_one_sample(module: Path, num_processes: int) -> None:
    config = Reward(rm_type=f"{module}:by_command", timeout_s=2.0, num_processes=num_processes)
    commands = ["fine", "hang", "fine", "die", "raise", "fine"]
    grades = await score(config, *map(row_sample, commands))
    assert grades == [
        Graded(1.0),
        f"reward_timeout: {module}:by_command gave no reward within 2 s",
        Graded(1.0),
        "reward_error: the grading process ended with exit status 3",
        "reward_error: ValueError: no",
        Graded(1.0),
    ]
    assert grading_processes() == []


async def test_a_cheap_built_in_that_raises_costs_one_sample_too() -> None:
    grades = await score(Reward(), row_sample("7", "7"), row_sample("7"), row_sample("8", "7"))
    assert grades == [Graded(1.0), "reward_error: ValueError: the prompt has no label", Graded(0.5)]
    assert await score(Reward()) == []


async def test_a_dict_of_numbers_is_a_reward_and_its_parts(module: Path) -> None:
    config = Reward(rm_type=f"{module}:by_command", reward_key="total", timeout_s=60)
    expected = {
        "dict": Graded(2.0, {"total": 2.0, "style": 0.5}),
        "numpy": Graded(2.0, {"total": 2.0, "style": 0.5}),
        "plain": Graded(1.0),
        "no total": 'reward_error: no part "total" (reward.reward_key); there is style',
        "empty": 'reward_error: no part "total" (reward.reward_key); there is nothing',
        "text in it": 'reward_error: mine.py:by_command: the part "pred" of a reward must be a number, not str',
        "nan in it": 'reward_error: mine.py:by_command: the part "style" of a reward must be finite, not nan',
        "a number for a name": "reward_error: mine.py:by_command: the name of a part must be a string, not 1",
        "many": "reward_error: mine.py:by_command: a reward may have 64 parts, not 65",
    }
    grades = await score(config, *map(row_sample, expected))
    assert dict(zip(expected, grades, strict=True)) == expected


async def test_a_dict_is_refused_unless_reward_key_says_which_entry_it_is(module: Path) -> None:
    (grade,) = await score(Reward(rm_type=f"{module}:by_command"), row_sample("dict"))
    assert grade == "reward_error: which part is the reward? reward.reward_key is not set; there is total, style"


async def test_dapo_is_its_score_unless_reward_key_says_otherwise() -> None:
    right = row_sample("Answer: 7", "7")
    assert await score(Reward(rm_type="dapo"), right) == [Graded(1.0, {"score": 1.0, "acc": 1.0})]
    wrong = row_sample("Answer: 8", "7")
    assert await score(Reward(rm_type="dapo", reward_key="acc"), wrong) == [Graded(0.0, {"score": -1.0, "acc": 0.0})]


async def test_group_rm_calls_a_function_once_with_the_whole_group(module: Path) -> None:
    config = Reward(rm_type=f"{module}:rank", group_rm=True, reward_key="total")
    assert await score(config, *map(row_sample, ["ccc", "a", "bb"])) == [Graded(2.0), Graded(0.0), Graded(1.0)]
    assert await score(config, row_sample("numpy"), row_sample("")) == [Graded(0.0), Graded(1.0)]
    assert await score(config, row_sample("dicts"), row_sample("")) == [
        Graded(0.0, {"total": 0.0, "n": 2.0}),
        Graded(1.0, {"total": 1.0, "n": 2.0}),
    ]


async def test_a_failing_group_function_costs_its_group_and_not_the_next_one(module: Path) -> None:
    async with Grader(Reward(rm_type=f"{module}:rank", group_rm=True, timeout_s=2.0)) as grader:
        for command, expected in [
            ("hang", f"reward_timeout: {module}:rank gave no reward within 2 s"),
            ("die", "reward_error: the grading process ended with exit status 3"),
            ("short", "reward_error: mine.py:rank: a group of 2 samples needs as many rewards, not 1"),
            ("none", "reward_error: mine.py:rank: a reward must be a number, not NoneType"),
            ("one number", "reward_error: mine.py:rank: a group's rewards must be a list, not float"),
            ("dicts", "reward_error: which part is the reward? reward.reward_key is not set; there is total, n"),
        ]:
            assert [str(grade) for grade in await grader.score([row_sample(command), row_sample("x")])] == [
                expected
            ] * 2
        assert await grader.score([row_sample("a"), row_sample("bb")]) == [Graded(0.0), Graded(1.0)]


async def test_built_ins_look_at_one_sample_also_with_group_rm(module: Path) -> None:
    weights = {"exact_match": 1.0, f"{module}:rank": 10.0}
    config = Reward(rm_type="weighted_sum", rm_weights=weights, group_rm=True)
    assert await score(config, row_sample("aa", "aa"), row_sample("a", "b")) == [
        Graded(11.0, {"exact_match": 1.0, "rank": 10.0}),
        Graded(0.0, {"exact_match": 0.0, "rank": 0.0}),
    ]
