"""``miles-async runs``: the runs of a directory, a line for each.

Promises: no bus is asked and nothing is changed; of a run, whatever its length, the end of its record is read; one whose files
are damaged is a line that says so, and takes no other one with it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miles_async.config import toml
from miles_async.config.schema import ConfigError
from miles_async.monitor.panel import duration
from miles_async.monitor.progress import Progress, progress_of
from miles_async.monitor.record_lines import RecordError, latest_metrics
from miles_async.monitor.status import is_run
from miles_async.monitor.summary import REWARD_WINDOW, last_summary, mean
from miles_async.runs.launches import CONFIG_FILE, DIRECTORY
from miles_async.runs.state import RunStateError, living


def runs(root: Path, now: float) -> list[dict[str, Any]]:
    """The runs in ``root``, or the one that it is, the newest first. Raises ConfigError: it is no directory.

    ``state``: "starting", "running", what its summary says ("finished", "stopped", "failed"), "dead" of one that was killed, or
    "damaged" with ``trouble``. ``reward`` (or ``loss``) is of the last steps; so are ``lag`` (mean, versions) and
    ``samples_per_s`` of a run that lives, and of the whole of one that has ended. ``age_s``: since its first launch.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such directory")
    found = [root] if is_run(root) else [path for path in root.iterdir() if path.is_dir() and is_run(path)]
    return sorted((_row(path, now) for path in found), key=lambda row: (row["age_s"], row["run"]))


def show(rows: Sequence[Mapping[str, Any]], root: Path) -> str:
    """``rows``, as :func:`runs` returned them, as a table."""
    if not rows:
        return f"no runs in {root}"
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "state", box=None, pad_edge=False)
    for name in ("step", "reward", "lag", "samples/s", "age"):
        table.add_column(name, justify="right")
    for row in rows:
        curve = "loss" if row["reward"] is None and row["loss"] is not None else "reward"
        value = _number(row[curve], ".3f") + (" (loss)" if curve == "loss" else "")
        table.add_row(
            row["run"],
            row["state"],
            f"{row['step']}/{row['num_steps']}",
            value,
            _number(row["lag"], ".2f"),
            _number(row["samples_per_s"], ",.0f"),
            duration(row["age_s"]),
        )
    out = io.StringIO()
    Console(file=out, width=400).print(table)
    lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
    return "\n".join([*lines, *(f"{row['run']}: {row['trouble']}" for row in rows if row["trouble"])])


def _row(run_dir: Path, now: float) -> dict[str, Any]:
    row = {
        "run": run_dir.name or str(run_dir),
        "run_dir": str(run_dir),
        "state": "damaged",
        **dict.fromkeys(("step", "num_steps"), 0),
        **dict.fromkeys(("reward", "loss", "lag", "samples_per_s")),
        "age_s": max(0.0, now - _began(run_dir)),
        "trouble": "",
    }
    try:
        supervisor = living(run_dir)
        if supervisor is None and (summary := last_summary(run_dir)) is not None:
            return row | _of_summary(summary)
        state = "dead" if supervisor is None else "running" if supervisor.bus_url else "starting"
        return row | {"state": state, **_of_record(run_dir)}
    except (ConfigError, RecordError, RunStateError, OSError, KeyError) as error:
        return row | {"trouble": str(error)}


def _of_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "state": summary["status"],
        "step": summary["steps"],
        "num_steps": summary["num_steps"],
        "reward": summary["reward_last"],
        "loss": summary["loss_last"],
        "lag": summary["mean_token_lag"],
        "samples_per_s": summary["samples_per_s"],
    }


def _of_record(run_dir: Path) -> dict[str, Any]:
    path = run_dir / CONFIG_FILE
    progress = progress_of(toml.read(path)) if path.exists() else Progress(0)
    progress.replay(latest_metrics(run_dir), ())
    last = progress.steps[-REWARD_WINDOW:]
    rate = progress.recent().samples_per_s
    return {
        "step": progress.step,
        "num_steps": progress.num_steps,
        "reward": mean(step.reward for step in last) if progress.curve == "reward" else None,
        "loss": mean(step.loss for step in last),
        "lag": mean(step.mean_lag for step in last),
        "samples_per_s": rate if math.isfinite(rate) else None,
    }


def _began(run_dir: Path) -> float:
    """Seconds since the epoch: of the first launch, whose configuration is never written again."""
    first = run_dir / DIRECTORY / "1.toml"
    return (first if first.exists() else run_dir).stat().st_mtime


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
