"""The metadata of a row choose a built-in reward or one that the configuration names, and reach nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grading import row_sample, score
from hypothesis import given
from hypothesis import strategies as st
from reward_modules import scoring

from miles_async.config.schema import Reward
from miles_async.rewards import Graded, RewardError
from miles_async.rewards.registry import chosen


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return scoring(tmp_path)


async def test_metadata_choose_a_built_in_or_a_function_that_the_configuration_names(module: Path) -> None:
    config = Reward(rm_types=[f"{module}:length"], timeout_s=60)
    grades = await score(
        config,
        row_sample("abc", "xyz"),
        row_sample("abc", "xyz", rm_type=""),
        row_sample("Answer: 7", "7", rm_type="dapo"),
        row_sample(r"\boxed{7}", "7", rm_type=" boxed_exact_match "),
        row_sample(r"\boxed{2/4}", "1/2", rm_type="boxed_math"),  # in a process that only this sample asks for
        *(row_sample("abc", rm_type=name) for name in ("length", "mine.length", "mine.py:length", f"{module}:length")),
    )
    assert [grade.reward if isinstance(grade, Graded) else grade for grade in grades] == [
        0.25,  # the stop is right
        0.25,
        1.0,
        1.0,
        1.0,
        *[3.0] * 4,
    ]


@pytest.mark.parametrize(
    ("rm_type", "expected"),
    [
        ("os.system", "rm_type = 'os.system'; one of length, graded_match,"),
        ("mine.by_command", "rm_type = 'mine.by_command'; one of"),  # in a file of ours, but not named
        ("/tmp/evil.py:length", "rm_type = '/tmp/evil.py:length'"),
        ("e.length", "rm_type = 'e.length'"),
        ("lenght", """rm_type = 'lenght'; did you mean "length"?"""),
        ("boxed_length", "rm_type = 'boxed_length'"),
        (["math"], "rm_type = ['math']"),
        (7, "rm_type = 7"),
        ("weighted_sum", "weighted_sum: reward.rm_weights is empty"),
        ("remote_rm", "remote_rm needs reward.rm_url"),
    ],
)
async def test_what_metadata_may_not_choose_costs_that_sample_and_runs_nothing(
    module: Path, rm_type: Any, expected: str
) -> None:
    config = Reward(rm_types=[f"{module}:length"])
    good, bad = await score(config, row_sample("7", "7"), row_sample("7", "7", rm_type=rm_type))
    assert good == Graded(1.0)
    assert isinstance(bad, str)
    assert expected in bad
    assert "\n" not in bad


@given(st.text() | st.integers() | st.lists(st.text()))
def test_metadata_reach_nothing_but_built_ins_and_named_functions(rm_type: Any) -> None:
    config = Reward(rm_types=["/a/b.py:f"])
    try:
        name = chosen(row_sample("", rm_type=rm_type), config)
    except RewardError:
        return
    assert name in ("/a/b.py:f", "graded_match") or name == rm_type.strip()
