"""The metrics of a run as a run of Weights & Biases, by its own package.

Promises: all that is asked of the package is asked by one thread, which nobody waits for but :meth:`WandbTracker.close`,
and that for ``CLOSE_S`` at most; a launch that goes on with a run goes on with its run there, too. Names are those of
TensorBoard (``board.py``), by the learner's step; what is secret in the configuration is masked.
"""

from __future__ import annotations

import math
import queue
import re
import threading
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.schema import RunConfig
from miles_async.config.secrets import masked
from miles_async.monitor.board import tag
from miles_async.monitor.record_lines import MetricsLine
from miles_async.runs import state

CLOSE_S = 30.0  # an upload that takes longer goes on with `wandb sync`
_STEP = "step"


class WandbTracker:
    """See Tracker (trackers.py)."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.error = ""
        how = {"by": "wandb", "mode": config.track.wandb_mode, "project": config.track.wandb_project}
        self.began: tuple[str, dict[str, Any]] = ("tracked", how)
        self._config, self._run_dir = config, run_dir
        self._queue: queue.SimpleQueue[MetricsLine | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def add(self, line: MetricsLine) -> None:
        self._queue.put(line)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self.error = self.error or f"wandb did not end within {CLOSE_S:g} s: `wandb sync` sends what is left"

    def _run(self) -> None:
        ended = False  # nothing more comes
        try:
            run = self._begin()
            while (line := self._queue.get()) is not None:
                values = {tag(line.actor, name): math.nan if v is None else v for name, v in line.values.items()}
                run.log({**values, _STEP: line.step})
            ended = True
            run.finish()
        except Exception as error:  # of a service of somebody else's
            self.error = f"wandb: {type(error).__name__}: {error}".splitlines()[0]
            while not ended and self._queue.get() is not None:
                pass

    def _begin(self) -> Any:
        import wandb  # pyright: ignore[reportMissingImports]

        track, there = self._config.track, state.read(self._run_dir)
        run = wandb.init(
            project=track.wandb_project,
            mode=track.wandb_mode,
            dir=str(self._run_dir),
            name=self._run_dir.name,
            id=re.sub(r"[^\w-]", "-", there.run_id if there else self._run_dir.name)[-64:],
            resume="allow",
            config=msgspec.to_builtins(masked(self._config)),
            settings=wandb.Settings(console="off", silent=True),
        )
        run.define_metric("*", step_metric=_STEP)  # several actors report of one step, and a step may be trained again
        return run
