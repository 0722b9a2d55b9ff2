"""A learner that keeps what its run can be judged by, token by token: put in place through ``[topology]``.

Promises: ``kept/V`` in the run directory is a copy of the weights that engines got as version V; ``groups/S`` holds the groups
of step S as they were trained on (a replay writes the same again).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lib.group_files import read_groups, write_groups
from benchmarks.lib.recording_learner import RecordingLearner
from bus.messages import Group


class KeepingLearner(RecordingLearner):
    """See the head of this file."""

    def _write_snapshot(self, version: int) -> Path | None:
        path = super()._write_snapshot(version)
        if path is not None:
            shutil.copytree(path, self.ctx.run_dir / "kept" / str(version), dirs_exist_ok=True)
        return path

    def _train(self, groups: list[Group], *, ticks: bool) -> dict[str, float]:
        metrics = super()._train(groups, ticks=ticks)
        directory = self.ctx.run_dir / "groups"
        directory.mkdir(exist_ok=True)
        write_groups(directory / f"{self.trainer.version:06d}", groups)
        return metrics


def kept_groups(run_dir: Path) -> Iterator[Group]:
    """All groups that were trained on, step by step."""
    for file in sorted((run_dir / "groups").iterdir()):
        yield from read_groups(file)
