"""The list of runs: a row for each, with its state, reward, lag and throughput.

Promises: a run that has ended costs its summary, one that goes on what it wrote since the last look; a run that cannot be read
has a row that says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miles_async.config.schema import ConfigError
from miles_async.monitor.record_lines import METRICS_FILE
from miles_async.monitor.summary import SUMMARY_FILE, last_summary
from miles_async.runs.state import RunStateError, living
from miles_async.web.opened import OpenedRuns

FIGURES = ("reward", "mean_lag", "max_lag", "samples_per_s", "tokens_per_s")


def rows(opened: OpenedRuns) -> list[dict[str, Any]]:
    """Of all runs, the one that changed last first."""
    return [_row(opened, name) for name in opened.places.names()]


def _row(opened: OpenedRuns, name: str) -> dict[str, Any]:
    run_dir = opened.places.find(name)
    try:
        if living(run_dir) is None and (summary := last_summary(run_dir)) is not None:
            return {"name": name, "changed": _changed(run_dir), "trouble": "", **_of_summary(summary)}
        found = opened.run(name).state()
    except (ConfigError, RunStateError, OSError) as error:
        return {"name": name, "changed": _changed(run_dir), "state": "damaged", "trouble": str(error)}
    return {
        "name": name,
        "changed": _changed(run_dir),
        "trouble": (found["troubles"] or [""])[0],
        **{key: found[key] for key in ("state", "step", "num_steps", "curve")},
        **{key: found["figures"][key] for key in FIGURES},
    }


def _of_summary(summary: dict[str, Any]) -> dict[str, Any]:
    is_taught = summary.get("reward_last") is None and summary.get("loss_last") is not None
    return {
        "state": summary.get("status"),
        "step": summary.get("steps"),
        "num_steps": summary.get("num_steps"),
        "curve": "loss" if is_taught else "reward",
        "reward": summary.get("loss_last" if is_taught else "reward_last"),
        "mean_lag": summary.get("mean_token_lag"),
        "max_lag": summary.get("max_token_lag"),
        "samples_per_s": summary.get("samples_per_s"),
        "tokens_per_s": summary.get("tokens_per_s"),
    }


def _changed(run_dir: Path) -> float | None:
    """Seconds since the epoch, when the run last reported something."""
    for name in (METRICS_FILE, SUMMARY_FILE):
        try:
            return (run_dir / name).stat().st_mtime
        except OSError:
            continue
    return None
