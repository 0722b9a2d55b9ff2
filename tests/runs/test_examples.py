"""Every example of examples/ that a minute can run, runs: reasoning-gym's own scorers, math-verify's own judgement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from launching import environment, launch, metrics, summary

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    "run.num_steps=2",
    "rollout.rollout_batch_size=4",
    "rollout.n_samples_per_prompt=4",
    "rollout.rollout_max_response_len=16",
    "checkpoint.save_hf=false",
    "monitor.live=off",
)


def flags(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def test_the_reasoning_gym_example_trains_on_rewards_of_its_scorers(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    prompts = tmp_path / "prompts.jsonl"
    script = [sys.executable, str(EXAMPLES / "reasoning_gym_prompts.py"), "--size", "5", "--out", str(prompts)]
    subprocess.run(script, check=True, capture_output=True, timeout=120)
    config = EXAMPLES / "reasoning_gym.toml"
    done = launch(
        config,
        tmp_path / "run",
        *flags(*SMALL, f"data.prompt_data={prompts}", "reward.timeout_s=20"),
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "run")
    assert found["steps"] == 2 and found["balanced"]
    assert all(0 <= line["values"].get("raw_reward", 0) <= 1 for line in metrics(tmp_path / "run"))


def test_the_arithmetic_example_trains_on_rewards_of_math_verify(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    script = [sys.executable, str(EXAMPLES / "arithmetic.py"), "--out", str(prompts)]
    subprocess.run(script, check=True, capture_output=True, timeout=60)
    config = EXAMPLES / "arithmetic.toml"
    data = ("reward.timeout_s=20", f"data.prompt_data={prompts}")
    done = launch(config, tmp_path / "run", *flags(*SMALL, *data), env=environment())
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "run")
    assert found["steps"] == 2 and found["balanced"]
