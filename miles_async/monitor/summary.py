"""The summary of a run: one flat structure of figures, from its progress and its ledger.

Promises: rewards, lags and rates are over the whole run, also across resumes; what could not be measured is null, never
0; ``balanced`` says whether the ledger accounts for every group it dealt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.schema import ConfigError
from miles_async.monitor.length_bias import NAMES, PREFIX
from miles_async.monitor.progress import Progress, Step, rate, spans
from miles_async.monitor.record_lines import METRICS_FILE

SUMMARY_FILE = "summary.json"
SUMMARY_BYTES = 1 << 20  # no such file is longer
REWARD_WINDOW = 5  # steps
STATES = ("waiting", "in_flight", "ready", "batched", "trained")


def summarize(
    progress: Progress, status: str, ledger: Mapping[str, Any], now: float, reason: str = ""
) -> dict[str, Any]:
    """Figures of a run that has ended.

    ``status``: "finished", "stopped" or "failed". Rates are per second of the time between the first and the last step
    (of each start), shares are of that same time, ``wall_s`` is the time of all starts, ``startup_s`` is from the
    last start to the end of its first step.
    """
    steps = progress.steps
    overall = rate(steps)
    startup = progress.first_step_at[-1] if progress.first_step_at else None
    counts = ledger_counts(ledger)
    window = min(REWARD_WINDOW, max(1, len(steps) // 2))  # no step is both at the beginning and at the end
    first, last = (mean(step.reward for step in part) for part in (steps[:window], steps[-window:]))
    return {
        "status": status,
        "reason": reason,
        "steps": progress.step,
        "num_steps": progress.num_steps,
        "starts": len(progress.starts),
        "reward_first": first if progress.curve == "reward" else None,
        "reward_last": last if progress.curve == "reward" else None,
        "loss_first": mean(step.loss for step in steps[:window]),
        "loss_last": mean(step.loss for step in steps[-window:]),
        "max_token_lag": _finite(
            max((step.max_lag for step in steps if math.isfinite(step.max_lag)), default=math.nan)
        ),
        "mean_token_lag": _mean_lag(steps),
        "n_samples": sum(step.n_samples for step in steps),
        "n_tokens": sum(step.n_tokens for step in steps),
        "wall_s": _finite(progress.wall_s(now)),
        "startup_s": None if startup is None else _finite(startup - progress.starts[-1]),
        "samples_per_s": _finite(overall.samples_per_s),
        "tokens_per_s": _finite(overall.tokens_per_s),
        "learner_busy": _finite(overall.learner_busy),
        "engine_busy": _engine_busy(progress),
        "length_bias": {name: _finite(progress.latest.get(PREFIX + name, math.nan)) for name in NAMES},
        "weights_update_s": mean(update for update, _ in progress.updates),
        "weights_paused_s": mean(paused for _, paused in progress.updates),
        "eval": {
            name: {str(version): _finite(value) for version, value in sorted(points.items())}
            for name, points in progress.evals.items()
        },
        "events": dict(progress.events),
        "ledger": counts,
        "balanced": balanced(counts),
    }


def ledger_counts(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger's counts in a fixed order, 0 where it names none, with ``dropped`` by reason.

    Takes what ``Ledger.counts`` returns (``dropped`` a total, ``dropped:REASON`` its parts) and its own result.
    """
    dropped = ledger.get("dropped", 0)
    if isinstance(dropped, Mapping):
        reasons = {str(reason): int(count) for reason, count in dropped.items()}
    else:
        reasons = {key.partition(":")[2]: int(n) for key, n in ledger.items() if key.startswith("dropped:")}
        unnamed = int(dropped) - sum(reasons.values())
        if unnamed:
            reasons["unnamed"] = unnamed
    return {"dealt": int(ledger.get("dealt", 0)), **{s: int(ledger.get(s, 0)) for s in STATES}, "dropped": reasons}


def balanced(counts: Mapping[str, Any]) -> bool:
    """Whether dealt = waiting + in flight + ready + batched + trained + dropped."""
    return counts["dealt"] == sum(counts[state] for state in STATES) + sum(counts["dropped"].values())


def mean(values: Iterable[float]) -> float | None:
    """Mean of the finite ones; None if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return round(math.fsum(finite) / len(finite), 6) if finite else None


def last_summary(run_dir: Path) -> dict[str, Any] | None:
    """The summary of the last launch in ``run_dir``; None: it left none. Raises ConfigError: it is damaged."""
    path, record = run_dir / SUMMARY_FILE, run_dir / METRICS_FILE
    if not path.exists() or (record.exists() and path.stat().st_mtime_ns < record.stat().st_mtime_ns):
        return None
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(SUMMARY_BYTES), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def is_finished(run_dir: Path) -> bool:
    """Whether the last launch in ``run_dir`` finished its run, or a simulation was made there; a summary that cannot be read
    says that it did not."""
    try:
        return (last_summary(run_dir) or {}).get("status") in ("finished", "simulated")
    except (ConfigError, OSError):
        return False


def describe(summary: Mapping[str, Any]) -> str:
    """The summary for a reader, a few lines."""

    def show(key: str, form: str) -> str:
        value = summary.get(key)
        return "-" if value is None else format(value, form)

    name = "loss" if summary.get("reward_first") is None and summary.get("loss_first") is not None else "reward"
    beginning = "" if summary["steps"] == 1 else f"{show(f'{name}_first', '.3f')} -> "
    curve = f"{name:<8} {beginning}{show(f'{name}_last', '.3f')}"
    ledger = summary["ledger"]  # not known of a run that was killed
    reason = f": {summary['reason']}" if summary.get("reason") else ""
    lines = [
        f"{summary['status']}{reason}",
        f"steps    {summary['steps']} of {summary['num_steps']} in {show('wall_s', '.1f')} s "
        f"(first step after {show('startup_s', '.1f')} s)",
        curve,
        f"lag      max {show('max_token_lag', '.0f')}, mean {show('mean_token_lag', '.2f')} versions",
        f"rate     {show('samples_per_s', ',.0f')} samples/s, {show('tokens_per_s', ',.0f')} tokens/s",
        f"busy     learner {show('learner_busy', '.0%')}, engines {show('engine_busy', '.0%')}",
        *(f"eval     {name}: {_last_point(points)}" for name, points in (summary.get("eval") or {}).items()),
        f"lengths  {lengths_line(summary.get('length_bias') or {})}",
        f"ledger   {ledger_line(ledger) if ledger is not None else 'not known'}",
    ]
    return "\n".join(lines)


def ledger_line(ledger: Mapping[str, Any]) -> str:
    """``dealt 12 = waiting 1 + … + dropped 2 (too_old 2)``; the sign is ``!=`` where the groups do not add up."""
    counts = ledger_counts(ledger)
    dropped = counts["dropped"]
    why = f" ({', '.join(f'{reason} {count}' for reason, count in sorted(dropped.items()))})" if dropped else ""
    parts = [f"{state.replace('_', ' ')} {counts[state]}" for state in STATES]
    sign = "=" if balanced(counts) else "!="
    return f"dealt {counts['dealt']} {sign} {' + '.join(parts)} + dropped {sum(dropped.values())}{why}"


def lengths_line(bias: Mapping[str, float | None]) -> str:
    """``trained 6.1 of 7.0 dispatched (ratio 0.87, ks 0.12), unknown 3%``: whether drops make the answers shorter."""

    def show(name: str, form: str) -> str:
        value = bias.get(name)
        return "-" if value is None else format(value, form)

    return (
        f"trained {show('trained_mean', ',.1f')} of {show('dispatched_mean', ',.1f')} dispatched "
        f"(ratio {show('ratio', '.3f')}, ks {show('ks', '.3f')}), unknown {show('unknown_share', '.0%')}"
    )


def _last_point(points: Mapping[str, float | None]) -> str:
    """``0.412 at version 40 (5 points)``."""
    version = max(points, key=int, default=None)
    value = None if version is None else points[version]
    return "-" if value is None else f"{value:.3f} at version {version} ({len(points)} points)"


def _engine_busy(progress: Progress) -> float | None:
    """Mean over engines and over the router's reports between the first and the last step of each start.

    In a run too short for that: over the reports from its first step on, which are also of the time around it.
    """
    windows = [(first.time, last.time) for first, last in spans(progress.steps)]
    samples = progress.engine_samples
    inside = mean(busy for time, busy in samples if any(begin <= time <= end for begin, end in windows))
    return (
        inside
        if inside is not None
        else mean(busy for time, busy in samples if time >= windows[0][0])
        if windows
        else None
    )


def _mean_lag(steps: list[Step]) -> float | None:
    """Mean over all tokens trained on."""
    known = [step for step in steps if math.isfinite(step.mean_lag)]
    tokens = sum(step.n_tokens for step in known)
    return round(sum(step.mean_lag * step.n_tokens for step in known) / tokens, 6) if tokens else None


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
