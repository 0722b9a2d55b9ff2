"""The metrics of a run as a run of Weights & Biases, by its own package.

Promises: a launch that goes on with a run goes on with its run there, too. Names are those of TensorBoard (``board.py``), by
the learner's step; what is secret in the configuration is masked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.schema import RunConfig
from miles_async.config.secrets import masked
from miles_async.monitor.board import tag
from miles_async.monitor.package_tracker import PackageTracker
from miles_async.monitor.record_lines import MetricsLine
from miles_async.runs import state

_STEP = "step"


class WandbTracker(PackageTracker):
    """See Tracker (trackers.py)."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self._config, self._run_dir = config, run_dir
        how = {"mode": config.track.wandb_mode, "project": config.track.wandb_project}
        super().__init__("wandb", how, left="`wandb sync` sends what is left")

    def begin(self) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        track, there = self._config.track, state.read(self._run_dir)
        self._track: Any = wandb.init(
            project=track.wandb_project,
            mode=track.wandb_mode,
            dir=str(self._run_dir),
            name=self._run_dir.name,
            id=re.sub(r"[^\w-]", "-", there.run_id if there else self._run_dir.name)[-64:],
            resume="allow",
            config=msgspec.to_builtins(masked(self._config)),
            settings=wandb.Settings(console="off", silent=True),
        )
        # several actors report of one step, and a step may be trained again
        self._track.define_metric("*", step_metric=_STEP)

    def log(self, lines: Sequence[MetricsLine]) -> None:
        for line in lines:
            values = {tag(line.actor, name): math.nan if v is None else v for name, v in line.values.items()}
            self._track.log({**values, _STEP: line.step})

    def finish(self) -> None:
        self._track.finish()
