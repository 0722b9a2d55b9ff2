"""The runs of a directory, a line for each: ``miles-async runs``, and the list of ``miles-async web``.

Promises: no bus is asked and nothing is changed; of a run, whatever its length, the end of its record is read; one whose files
are damaged is a line that says so, and takes no other one with it, nor does a directory that cannot be looked into; a
simulation is a line, too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from miles_async.config import toml
from miles_async.config.schema import ConfigError
from miles_async.monitor.panel import duration
from miles_async.monitor.progress import Progress, progress_of
from miles_async.monitor.record_lines import RecordError, latest_metrics
from miles_async.monitor.status import MARKS, is_run
from miles_async.monitor.summary import REWARD_WINDOW, last_summary, mean
from miles_async.runs.launches import CONFIG_FILE, DIRECTORY
from miles_async.runs.state import RunStateError, living

_RATES = ("samples_per_s", "tokens_per_s")
_IN_SUMMARY = {
    "reward": "reward_last",
    "loss": "loss_last",
    "lag": "mean_token_lag",
    "max_lag": "max_token_lag",
    "samples_per_s": "samples_per_s",
    "tokens_per_s": "tokens_per_s",
}


def runs(root: Path, now: float) -> list[dict[str, Any]]:
    """The runs in ``root``, or the one that it is, the newest first. Raises ConfigError: it is no directory.

    ``state``: "starting", "running", what its summary says ("finished", "stopped", "failed"), "dead" of one that was killed, or
    "damaged" with ``trouble``. ``reward`` (or ``loss``) is of the last steps; so are ``lag`` and ``max_lag`` (versions, of
    tokens), ``samples_per_s`` and ``tokens_per_s`` of a run that lives, and of the whole of one that has ended. ``age_s``:
    since its first launch; ``changed``: when it was written last, in seconds since the epoch.
    """
    rows = [row(path, now) for path in found_in(root)]
    return sorted(rows, key=lambda one: (one["age_s"], one["run"]))


def found_in(root: Path) -> list[Path]:
    """The directories of the runs in ``root``, or ``root`` where it is one, in no order.

    Raises ConfigError: it is no directory; OSError: it cannot be read.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such directory")
    return [root] if is_run(root) else [path for path in root.iterdir() if _is_run(path)]


def _is_run(path: Path) -> bool:
    """Also of a directory that cannot be looked into, as another user's."""
    try:
        return path.is_dir() and is_run(path)
    except OSError:
        return False


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


def row(run_dir: Path, now: float, of_record: Callable[[Path], dict[str, Any]] | None = None) -> dict[str, Any]:
    """The line of one run. ``of_record``: :func:`figures_of_record`, of whoever remembers what it said."""
    found = {
        "run": run_dir.name or str(run_dir),
        "run_dir": str(run_dir),
        "state": "damaged",
        **dict.fromkeys(("step", "num_steps"), 0),
        **dict.fromkeys(("reward", "loss", "lag", "max_lag", "samples_per_s", "tokens_per_s")),
        "age_s": max(0.0, now - _began(run_dir)),
        "changed": _changed(run_dir),
        "trouble": "",
    }
    try:
        supervisor = living(run_dir)
        if supervisor is None and (summary := last_summary(run_dir)) is not None:
            return found | _of_summary(summary)
        state = "dead" if supervisor is None else "running" if supervisor.bus_url else "starting"
        return found | {"state": state, **(of_record or figures_of_record)(run_dir)}
    except (ConfigError, RecordError, RunStateError, OSError, KeyError) as error:
        return found | {"trouble": str(error)}


def _of_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "state": summary["status"],
        "step": summary["steps"],
        "num_steps": summary["num_steps"],
        **{name: summary.get(key) for name, key in _IN_SUMMARY.items()},  # a simulation has no reward
    }


def figures_of_record(run_dir: Path) -> dict[str, Any]:
    """Of a run that has no summary yet: how far it is, by the end of its record. Raises ConfigError, RecordError, OSError."""
    path = run_dir / CONFIG_FILE
    progress = progress_of(toml.read(path)) if path.exists() else Progress(0)
    progress.replay(latest_metrics(run_dir), ())
    last = progress.steps[-REWARD_WINDOW:]
    rate = progress.recent()
    return {
        "step": progress.step,
        "num_steps": progress.num_steps,
        "reward": mean(step.reward for step in last) if progress.curve == "reward" else None,
        "loss": mean(step.loss for step in last),
        "lag": mean(step.mean_lag for step in last),
        "max_lag": max((step.max_lag for step in last if math.isfinite(step.max_lag)), default=None),
        **{name: value if math.isfinite(value := getattr(rate, name)) else None for name in _RATES},
    }


def _began(run_dir: Path) -> float:
    """Seconds since the epoch: of the first launch, whose configuration is never written again; inf: it has gone meanwhile."""
    first = run_dir / DIRECTORY / "1.toml"
    try:
        return (first if first.exists() else run_dir).stat().st_mtime
    except OSError:
        return math.inf


def _changed(run_dir: Path) -> float:
    """Seconds since the epoch, when something of the run was written last; 0: its files have gone meanwhile."""
    times = [0.0]
    for name in MARKS:
        try:
            times.append((run_dir / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
