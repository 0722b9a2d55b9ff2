"""The metrics of a run as a run of MLflow, by its own package, at ``MLFLOW_TRACKING_URI`` or in files of the run directory.

Promises: a launch that goes on with a run goes on with its run there, too; values that are not finite are left out. Names are
those of TensorBoard (``board.py``), but for what MLflow takes in none, by the learner's step; what is secret in the
configuration is masked.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.schema import RunConfig
from miles_async.config.secrets import masked
from miles_async.hooks.environment import environment
from miles_async.monitor.board import tag
from miles_async.monitor.package_tracker import PackageTracker
from miles_async.monitor.record_lines import MetricsLine
from miles_async.runs import state

URI, FILES_ALLOWED = "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"
DIRECTORY = "mlruns"  # of the run directory
TAG = "miles_async.run"  # has the run's id
VALUE_CHARS = 500  # of a parameter: what every kind of store takes
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000  # MLflow takes no more


class MlflowTracker(PackageTracker):
    """See Tracker (trackers.py)."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self._config, self._run_dir = config, run_dir
        how = {"experiment": config.track.mlflow_experiment, "at": "its server" if os.environ.get(URI) else DIRECTORY}
        super().__init__("mlflow", how, left="what is left is in metrics.jsonl alone")

    def begin(self) -> None:
        uri = os.environ.get(URI)
        # newer ones refuse to write files unless told so
        told = {} if uri or FILES_ALLOWED in os.environ else {FILES_ALLOWED: "true"}
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._metric: Any = Metric
        with environment(told):
            files = (self._run_dir.absolute() / DIRECTORY).as_uri()
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri or files)
        name, there = self._config.track.mlflow_experiment, state.read(self._run_dir)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(name)
        run_id = (there.run_id if there else self._run_dir.name).replace("'", "")
        found = self._client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{run_id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            return self._client.update_run(self._id, status="RUNNING")
        run = self._client.create_run(experiment, run_name=self._run_dir.name, tags={TAG: run_id})
        self._id = run.info.run_id
        params = iter([Param(key, value) for key, value in parameters(self._config)])
        while some := list(islice(params, PARAMS_AT_ONCE)):
            self._client.log_batch(self._id, params=some)

    def log(self, lines: Sequence[MetricsLine]) -> None:
        metrics = [
            self._metric(named(line.actor, name), value, round(line.time * 1000), line.step)
            for line in lines
            for name, value in line.values.items()
            if value is not None and math.isfinite(value)
        ]
        for first in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[first : first + METRICS_AT_ONCE])

    def finish(self) -> None:
        self._client.set_terminated(self._id)


def named(actor: str, name: str) -> str:
    """The metric's name there. In files one that goes on behind another one with a slash would be a directory in its place."""
    group, _, rest = tag(actor, name).partition("/")
    return re.sub(r"[^\w\-. :/]", "_", f"{group}/{rest.replace('/', '.')}", flags=re.ASCII)


def parameters(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Each key with its value in words, cut to what MLflow takes."""
    for section, values in msgspec.to_builtins(masked(config)).items():
        for key, value in values.items():
            yield f"{section}.{key}", str(value)[:VALUE_CHARS]
