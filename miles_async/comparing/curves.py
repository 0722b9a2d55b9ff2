"""What a run made of its steps, by step, by tokens and by time, read from its directory; and its figures. Pure but for reading.

A simulation's directory is read in the same way: it has the same names, and no rewards. Promises: a step counts once, as it
was trained last; time is that of the learner's steps (training and waiting for groups), so that neither a start nor the pause
between two launches is in it; what was not reported is left out, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from miles_async.comparing.ledger_figures import ledger_figures
from miles_async.config.schema import ConfigError
from miles_async.monitor.record_lines import LEARNER, MetricsLine, RecordError, is_step, read_metrics, read_transitions
from miles_async.monitor.summary import REWARD_WINDOW, last_summary, mean
from miles_async.runs import launches

STEP_TIME, TRAIN_TIME = "perf/step_time", "perf/train_time"
MEANS = ("ppo_kl", "ess_ratio", "train_rollout_kl", "grad_norm")  # of a step; a run's is the mean over its steps


class Point(msgspec.Struct, frozen=True):
    """The run at the end of a step."""

    step: int
    tokens: float  # of responses that were trained on, up to here
    seconds: float  # of the learner's steps, up to here
    reward: float  # mean over the last REWARD_WINDOW steps
    mean_lag: float
    max_lag: float
    samples_per_s: float = math.nan  # of this step
    busy: float = math.nan  # share of it in which the learner trained


class Curve(msgspec.Struct, frozen=True):
    """A run, or a simulation. ``table``: the configuration of its newest launch, as TOML has it."""

    name: str
    table: dict[str, Any]
    points: tuple[Point, ...]
    figures: dict[str, Any]

    @property
    def is_simulation(self) -> bool:
        return "simulation" in self.table or self.figures.get("status") == "simulated"


def read_curve(run_dir: Path) -> Curve:
    """Raises RecordError: nothing was trained there, or a file is damaged."""
    steps = {line.step: line.values for line in read_metrics(run_dir) if is_step(line) or _is_simulated(line)}
    if not steps:
        raise RecordError(f"{run_dir}: no run here that has trained a step")
    try:
        summary = last_summary(run_dir) or {}
    except ConfigError:
        summary = {}
    rows = [(step, steps[step]) for step in sorted(steps)]
    points, table = _points(rows), launches.configured(run_dir) or {}
    figures = _figures(rows, points, summary) | _of_summary(summary)
    if not launches.is_simulation(run_dir):  # whose summary has said it
        masked = any(values.get("masked_tokens") for _, values in rows)
        bound = (table.get("staleness") or {}).get("max_lag") if masked else None
        figures |= ledger_figures(read_transitions(run_dir), bound)
    return Curve(run_dir.name, table, points, figures)


def _is_simulated(line: MetricsLine) -> bool:
    """A step of a simulation, which has no reward."""
    return line.actor == LEARNER and STEP_TIME in line.values and "n_tokens" in line.values


def _points(rows: Sequence[tuple[int, dict[str, float | None]]]) -> tuple[Point, ...]:
    found: list[Point] = []
    rewards: list[float] = []
    tokens = seconds = 0.0
    for step, values in rows:
        tokens += values.get("n_tokens") or 0.0
        seconds += values.get(STEP_TIME) or 0.0
        rewards.append(_value(values, "raw_reward"))
        recent = mean(rewards[-REWARD_WINDOW:])
        reward = math.nan if recent is None else recent
        took = values.get(STEP_TIME) or math.nan
        found.append(
            Point(
                step,
                tokens,
                seconds,
                reward,
                _value(values, "mean_token_lag"),
                _value(values, "max_token_lag"),
                _value(values, "n_samples") / took,
                _value(values, TRAIN_TIME) / took,
            )
        )
    return tuple(found)


def _figures(
    rows: Sequence[tuple[int, dict[str, float | None]]], points: Sequence[Point], summary: dict[str, Any]
) -> dict[str, Any]:
    def total(name: str) -> float:
        return math.fsum(values.get(name) or 0.0 for _, values in rows)

    last, seconds, tokens = points[-1], points[-1].seconds, points[-1].tokens
    lag = math.fsum((values.get("mean_token_lag") or 0.0) * (values.get("n_tokens") or 0.0) for _, values in rows)
    dropped = sum((summary.get("ledger") or {}).get("dropped", {}).values())
    dealt = (summary.get("ledger") or {}).get("dealt")
    return {
        "status": summary.get("status"),
        "steps": last.step,
        "reward_first": _finite(points[min(len(points), REWARD_WINDOW) - 1].reward),
        "reward_last": _finite(last.reward),
        "tokens": tokens,
        "seconds": seconds or None,
        "samples_per_step": total("n_samples") / len(rows),
        "samples_per_s": total("n_samples") / seconds if seconds else None,
        "tokens_per_s": tokens / seconds if seconds else None,
        "learner_busy": total(TRAIN_TIME) / seconds if seconds else None,
        "mean_token_lag": lag / tokens if tokens else None,
        "max_token_lag": _finite(
            max((point.max_lag for point in points if math.isfinite(point.max_lag)), default=math.nan)
        ),
        "masked": total("masked_tokens") / tokens
        if tokens and any("masked_tokens" in values for _, values in rows)
        else None,
        "dropped": dropped / dealt if dealt else None,
        **{name: mean(_value(values, name) for _, values in rows) for name in MEANS},
    }


def _of_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """What only the summary says; of a simulation also what a run's transitions say."""
    bias = summary.get("length_bias") or {}
    names = ("engine_busy", "ideal_groups_per_s", "share_of_ideal", "lag_tokens", "lag_groups", "wasted_share")
    return {name: summary.get(name) for name in names} | {"length_bias": bias.get("ratio")}


def at(points: Sequence[Point], amount: float, of: Callable[[Point], float]) -> float | None:
    """The reward when ``of`` had first reached ``amount``; None: it never did."""
    return next((_finite(point.reward) for point in points if of(point) >= amount), None)


def _value(values: dict[str, float | None], name: str) -> float:
    value = values.get(name)
    return math.nan if value is None else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
