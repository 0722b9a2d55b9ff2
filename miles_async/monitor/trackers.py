"""Where a run's metrics go besides its own directory: Weights & Biases and MLflow (``[track]``), Prometheus
(``monitor.metrics_port``).

Promises: handing a line over costs the caller no network and no disk; whatever goes wrong with a tracker is said, and is
nothing to the run or to its record; a package that is not there is one line before anything starts.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.monitor.progress import Progress
from miles_async.monitor.record_lines import MetricsLine


class Tracker(Protocol):
    """``began``: the event that says how it began. ``error``: what went wrong, empty: nothing; final after :meth:`close`."""

    began: tuple[str, dict[str, Any]]
    error: str

    def add(self, line: MetricsLine) -> None:
        """Take in what an actor has reported. Never blocks."""
        ...

    def close(self) -> None:
        """The run's launch ends; within seconds."""
        ...


def trackers_of(config: RunConfig, run_dir: Path, progress: Progress) -> list[Tracker]:
    """Those that the configuration asks for, begun. ``progress``: of the run, which whoever reads may look at."""
    found: list[Tracker] = []
    if config.track.wandb:
        from miles_async.monitor.wandb_tracker import WandbTracker

        found.append(WandbTracker(config, run_dir))
    if config.track.mlflow:
        from miles_async.monitor.mlflow_tracker import MlflowTracker

        found.append(MlflowTracker(config, run_dir))
    if config.monitor.metrics_port is not None:
        from miles_async.monitor.exporter import Exporter

        found.append(Exporter(config.monitor.metrics_port, progress))
    return found


def check(config: RunConfig) -> None:
    """Raises ConfigError: a tracker's package is not installed."""
    for name in ("wandb", "mlflow"):
        if getattr(config.track, name) and not _is_installed(name):
            raise ConfigError(
                f'track.{name} = true: the package {name} is not installed (pip install "miles-async[{name}]")'
            )


def _is_installed(package: str) -> bool:
    """A directory of that name is no package: runs of Weights & Biases leave one where they were started."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
