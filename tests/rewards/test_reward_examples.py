"""The rewards of the examples grade as their files say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from grading import grader_of

from miles_async.cli.load import load
from miles_async.rewards import Graded, Grader, RewardSample

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_the_arithmetic_example_grades_by_mathematics_brevity_and_the_row_itself(tmp_path: Path) -> None:
    script, prompts = EXAMPLES / "arithmetic.py", tmp_path / "prompts.jsonl"
    command = [sys.executable, script, "--size", "8", "--out", prompts]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: ASYNC221  nothing else runs here
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    config = load(EXAMPLES / "arithmetic.toml", [f"data.prompt_data={prompts}", "reward.timeout_s=60"])
    async with Grader(config.reward) as grader:
        samples = [
            RewardSample(prompt=row["input"], response=text, label=row["label"], metadata=row["metadata"])
            for row in rows
            for text in (row["label"], "it is " + row["label"])
        ]
        grades = await grader.score(samples)
    for row, short, long in zip(rows, grades[::2], grades[1::2], strict=True):
        by_sum = not row["metadata"]
        assert short == (Graded(1.1, {"math": 1.0, "brief": 0.1}) if by_sum else Graded(1.0))
        assert isinstance(long, Graded)
        assert long.parts.get("math") == (1.0 if by_sum else None)
        assert long.reward == pytest.approx(1.1, abs=0.05) if by_sum else long.reward == 0.0
    assert sum(not row["metadata"] for row in rows) == 6


async def test_reasoning_gym_rewards_come_from_its_own_scorers(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    script = Path(__file__).parents[2] / "examples" / "reasoning_gym_prompts.py"
    command = [sys.executable, script, "--size", "2", "--out", tmp_path / "prompts.jsonl"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: ASYNC221  nothing else runs here
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    async with grader_of(f"{script}:score") as grader:
        for row in rows:
            fields = {"prompt": row["input"], "label": row["label"], "metadata": row["metadata"]}
            assert await grader.grade(RewardSample(response=row["label"], **fields)) == 1.0
            assert await grader.grade(RewardSample(response=f"so <answer>{row['label']}</answer>", **fields)) == 1.0
            assert await grader.grade(RewardSample(response="@", **fields)) < 0.5
