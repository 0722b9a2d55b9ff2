"""Which function a name or a path means; what is no reward function is refused in one line, at the latest at the start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from grading import grader_of, grading_processes
from reward_modules import misbehaving

from miles_async.rewards import (
    RewardConfigError,
    check_reward,
    resolve_reward_path,
)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return misbehaving(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise RuntimeError('not today')", "failed: RuntimeError: not today"),
        ("import time; time.sleep(3600)", "its process was not ready after 2 s"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_at_start(module: Path, text: str, expected: str) -> None:
    module.write_text(text)
    with pytest.raises(RewardConfigError, match=expected):
        asyncio.run(grader_of(f"{module}:good", start_timeout_s=2).start())
    assert grading_processes() == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "graded_mach",
            'there is no such built-in; did you mean "graded_match"?; one of graded_match, exact_match',
        ),
        ("absent.score", 'there is no module "absent"'),
        ("bus.absent.score", 'there is no module "bus.absent"'),
        ("bus.codec.encod", 'has no function "encod"; did you mean "encode"?'),
        ("{module}:goood", 'has no function "goood"; did you mean "good"?'),
        ("{module}:NUMBER", 'has no function "NUMBER"'),
        ("{module}:two", "it must take (sample), but is (sample, other)"),
        ("absent.py:good", "there is no file absent.py"),
    ],
)
def test_a_wrong_path_or_signature_is_refused_in_one_line(module: Path, name: str, expected: str) -> None:
    with pytest.raises(RewardConfigError) as caught:
        check_reward(name.format(module=module))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    check_reward(f"{module}:optional")


def test_a_dotted_path_may_lie_beside_the_toml_file(module: Path) -> None:
    base = module.parent
    assert resolve_reward_path("user_rewards.good", base) == f"{module}:good"
    assert resolve_reward_path("user_rewards.py:good", base) == f"{module}:good"
    assert resolve_reward_path("bus.codec.encode", base) == "bus.codec.encode"
    assert resolve_reward_path("graded_match", base) == "graded_match"


def test_a_file_without_a_function_is_asked_for_one(tmp_path: Path) -> None:
    with pytest.raises(RewardConfigError, match=r'which function of the file\? "nested/mine\.py:FUNCTION"'):
        check_reward("nested/mine.py")
