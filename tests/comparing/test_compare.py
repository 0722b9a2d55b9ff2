"""Runs beside each other: what is configured otherwise, and rewards where the runs can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miles_async.comparing.compare import compare, read_all, show
from miles_async.comparing.picture import draw
from miles_async.config.schema import ConfigError
from miles_async.monitor.record_lines import RecordError


def a_run(directory: Path, rewards: list[float], step_s: float = 1.0, config: str = "", **values: float) -> Path:
    """A run that trained so: 100 tokens of 10 samples a step."""
    directory.mkdir(parents=True)
    known = {
        "n_tokens": 100.0,
        "n_samples": 10.0,
        "mean_token_lag": 1.0,
        "max_token_lag": 2.0,
        "perf/step_time": step_s,
    }
    lines = [
        {"actor": "learner-0", "step": step, "time": 0.0, "values": known | {"raw_reward": reward} | values}
        for step, reward in enumerate(rewards, 1)
    ]
    lines.insert(1, {"actor": "router", "step": 1, "time": 0.0, "values": {"requests": 1.0}})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "config.toml").write_text(f'[model]\nhf_checkpoint = "m"\n{config}')
    return directory


def compared(*runs: Path) -> dict[str, Any]:
    return compare(read_all(runs))


def test_rewards_are_compared_where_the_shortest_run_ended(tmp_path: Path) -> None:
    fast = a_run(tmp_path / "fast", [0.1 * n for n in range(1, 11)], step_s=1.0)
    slow = a_run(tmp_path / "slow", [0.2] * 4, step_s=2.0)
    found = compared(fast, slow)
    assert found["common"] == {"steps": 4, "tokens": 400.0, "seconds": 8.0}
    rows = found["figures"]["fast"]
    assert rows["reward_at_steps"] == rows["reward_at_tokens"] == pytest.approx(0.25)  # mean of steps 1 to 4
    assert rows["reward_at_seconds"] == pytest.approx(0.6)  # of steps 4 to 8
    assert rows["reward_last"] == pytest.approx(0.8) and rows["samples_per_s"] == 10.0
    assert found["figures"]["slow"]["samples_per_s"] == 5.0


def test_only_what_is_configured_otherwise_is_listed_and_a_key_that_one_run_lacks_is_none(tmp_path: Path) -> None:
    one = a_run(tmp_path / "one", [0.1], config="[staleness]\nmax_lag = 2\n[learner]\nlr = 0.1\n")
    other = a_run(tmp_path / "other", [0.1], config="[staleness]\nmax_lag = 4\n[learner]\nlr = 0.1\nmin_lr = 0.0\n")
    found = compared(one, other)
    assert found["differences"] == {
        "staleness.max_lag": {"one": 2, "other": 4},
        "learner.min_lr": {"one": "none", "other": 0.0},
    }
    text = show(found)
    assert "staleness.max_lag" in text and "learner.lr" not in text


def test_runs_of_one_name_are_told_apart_by_their_path_and_a_replay_is_named(tmp_path: Path) -> None:
    one = a_run(tmp_path / "a" / "run", [0.1])
    other = a_run(tmp_path / "b" / "run", [0.1], config='[replay]\nrun = "somewhere"\n')
    found = compared(one, other)
    assert list(found["figures"]) == [str(one), str(other)] and found["replays"] == [str(other)]
    assert "is a replay: its rewards are those of the recorded data" in show(found)


def test_what_was_not_reported_is_left_out(tmp_path: Path) -> None:
    found = compared(a_run(tmp_path / "a", [0.1]), a_run(tmp_path / "b", [0.1], masked_tokens=25.0))
    assert found["figures"]["a"]["masked"] is None and found["figures"]["b"]["masked"] == 0.25
    assert "tokens masked" in show(found) and "ppo_kl" not in show(found)


def test_a_picture_is_drawn_and_a_directory_without_steps_is_one_line(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, [0.1, 0.2]) for name in "ab"]
    draw(read_all(runs), tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"--picture .*both.gif: a picture is one of \*\.png, \*\.svg, \*\.pdf"):
        draw(read_all(runs), tmp_path / "both.gif")
    with pytest.raises(RecordError, match="no run here that has trained a step"):
        read_all([runs[0], tmp_path])
    with pytest.raises(RecordError, match="at least two runs"):
        read_all(runs[:1])
