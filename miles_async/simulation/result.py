"""The figures of a simulation, as one flat structure: under the names of a run's summary where there is one.

Promises: pure; rates, shares and lags are of the steps behind the warm-up, the ledger is of all; what could not be measured is
null, never 0; ``balanced`` says whether the ledger accounts for every group it dealt.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from miles_async.monitor.length_bias import ks
from miles_async.monitor.summary import balanced
from miles_async.simulation.ideal import unbounded
from miles_async.simulation.loop import Simulated, simulate
from miles_async.simulation.reading import unused
from miles_async.simulation.record import Record
from miles_async.simulation.settings import SimulationConfig
from miles_async.staleness.choice import policy_of


def result(config: SimulationConfig) -> dict[str, Any]:
    """Simulate, and say what came of it. Raises StuckError, ConfigError, HookFailed."""
    return simulated(config)[0]


def simulated(config: SimulationConfig) -> tuple[dict[str, Any], Simulated]:
    """As :func:`result`, and the simulation itself."""
    loop = simulate(config, policy_of(config.staleness, config.rollout))
    found = figures(config, loop)
    if config.simulation.ideal:
        best = simulate(config, unbounded(config))
        ideal = _rate(best.record.groups, best)
        found["ideal_groups_per_s"] = ideal
        found["share_of_ideal"] = _rounded(found["groups_per_s"] / ideal) if ideal and found["groups_per_s"] else None
    return found, loop


def figures(config: SimulationConfig, loop: Simulated) -> dict[str, Any]:
    record, fleet = loop.record, loop.fleet
    seconds = record.ended - record.began
    ledger = loop.ledger.counts()
    steps = sum(engine.steps for engine in fleet.engines)
    wasted = record.dropped_tokens + record.masked + fleet.lost_tokens
    made = record.tokens + wasted
    tokens = record.lag_tokens.total()
    found: dict[str, Any] = {
        "status": "simulated",
        "steps": loop.version,
        "num_steps": config.simulation.num_steps,
        "wall_s": _rounded(record.ended),
        "groups_per_step": _rounded(record.groups / record.steps),
        "groups_per_s": _rate(record.groups, loop),
        "samples_per_s": _rate(record.samples, loop),
        "tokens_per_s": _rate(record.tokens, loop),
        "step_s": _rounded(seconds / record.steps),
        "ideal_groups_per_s": None,
        "share_of_ideal": None,
        "learner_busy": _rounded(record.train_s / seconds) if seconds else None,
        "engine_busy": _rounded(loop.busy_s / seconds / len(fleet.engines)) if seconds else None,
        "engine_running": _rounded(sum(engine.tokens for engine in fleet.engines) / steps) if steps else None,
        "max_token_lag": max(record.lag_tokens, default=None),
        "mean_token_lag": _mean(record.lag_tokens),
        "mean_group_lag": _mean(record.lag_groups),
        "lag_tokens": {str(lag): _rounded(n / tokens) for lag, n in sorted(record.lag_tokens.items())},
        "lag_groups": {str(lag): _rounded(n / record.groups) for lag, n in sorted(record.lag_groups.items())},
        **_overrun(record, config.staleness.max_lag),
        "publish_lag": _rounded(record.publish_lag / record.batches),
        "mixed_version_ratio": _rounded(record.mixed / record.samples),
        "n_samples": record.samples,
        "n_tokens": record.tokens,
        "masked_tokens": record.masked,
        "masked_share": _rounded(record.masked / (record.tokens + record.masked)),
        "dropped_share": _rounded(record.dropped.total() / (record.groups + record.dropped.total())),
        "wasted_share": _rounded(wasted / made),
        "drops": dict(sorted(record.dropped.items())),
        "length_bias": _length_bias(record.trained_lengths, record.dispatched_lengths),
        "weights_paused_s": _rounded(fleet.paused_s / fleet.updated) if fleet.updated else None,
        "retractions": sum(engine.retractions for engine in fleet.engines),
        "failovers": fleet.failovers,
        "ledger": ledger,
        "balanced": balanced(ledger),
        "not_simulated": unused(config),
    }
    if config.simulation.timeline:
        found["timeline"] = record.lines
    return found


def _overrun(record: Record, aim: int) -> dict[str, float]:
    """How often and how far what was trained is beyond ``staleness.max_lag``: never, where the policy has a hard bound."""
    beyond = {lag: count for lag, count in record.lag_tokens.items() if lag > aim}
    groups = sum(count for lag, count in record.lag_groups.items() if lag > aim)
    return {
        "overrun_tokens": sum(beyond.values()),
        "overrun_token_share": _rounded(sum(beyond.values()) / max(1, record.lag_tokens.total())),
        "overrun_group_share": _rounded(groups / record.groups),
        "max_overrun": max(beyond, default=aim) - aim,
    }


def _length_bias(trained: Counter[int], dropped: Counter[int]) -> dict[str, float | None]:
    """Of the responses that were trained on, and of those that were made. dropped: those of whole groups."""
    dispatched = trained + dropped
    longest = max(dispatched, default=0)
    a, b = (_histogram(counts, longest) for counts in (trained, dispatched))
    means = _mean(trained), _mean(dispatched)
    return {
        "trained_mean": means[0],
        "dispatched_mean": means[1],
        "ratio": _rounded(means[0] / means[1]) if means[0] is not None and means[1] else None,
        "ks": _rounded(ks(a, b)) if trained else None,
    }


def _histogram(counts: Counter[int], longest: int) -> np.ndarray:
    found = np.zeros(longest + 1, np.int64)
    for value, count in counts.items():
        found[value] = count
    return found


def _rate(count: int, loop: Simulated) -> float | None:
    seconds = loop.record.ended - loop.record.began
    return _rounded(count / seconds) if seconds > 0 else None


def _mean(counts: Counter[int]) -> float | None:
    total = counts.total()
    return _rounded(sum(value * count for value, count in counts.items()) / total) if total else None


def _rounded(value: float) -> float:
    return round(value, 6)
