"""A monitor on a bus of the test's, and what a learner tells it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec

from bus.messages import Metrics
from miles_async.cli.load import parse
from miles_async.config.schema import RunConfig
from miles_async.monitor import Monitor
from miles_async.monitor.record_lines import read_metrics


def config(**monitor: Any) -> RunConfig:
    base = parse('[model]\nhf_checkpoint = "here"\n[data]\nprompt_data = "here"\n[run]\nnum_steps = 40', check=False)
    return msgspec.structs.replace(base, monitor=msgspec.structs.replace(base.monitor, **monitor))


def started(run_dir: Path, *, resumed: bool = False, **monitor: Any) -> Monitor:
    made = Monitor(stream=io.StringIO())
    made.start(config(**{"tensorboard": False, "live": "off"} | monitor), run_dir, resumed)
    return made


def step_metrics(step: int, when: float, reward: float = 0.5, **values: float) -> Metrics:
    known = {"raw_reward": reward, "n_samples": 10.0, "n_tokens": 100.0, "max_token_lag": 1.0, "mean_token_lag": 0.5}
    return Metrics(actor="learner-0", step=step, time=when, values=known | values)


def train(monitor: Monitor, first: int, last: int, begin: float, seconds: float = 1.0, **values: float) -> None:
    """Steps ``first`` to ``last``, one every ``seconds``, the first of them at ``begin``; reward = step / 100."""
    for step in range(first, last + 1):
        monitor.on_metrics(step_metrics(step, begin + (step - first) * seconds, step / 100, **values))


def close(monitor: Monitor) -> None:
    """End the record as a kill would leave it: flushed, and without a summary."""
    assert monitor._record is not None
    monitor._record.close()


def learner_steps(run_dir: Path) -> list[int]:
    return [line.step for line in read_metrics(run_dir) if line.actor == "learner-0"]
