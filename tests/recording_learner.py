"""Learners that also write down what they did: put in place through ``[topology]``, as a user's own class would be."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from actors.learner import Learner
from actors.runtime.context import ActorContext
from benchmarks.group_files import write_groups
from bus.messages import Group
from miles_async.train import checkpoint
from miles_async.weights.checksum import checksums


class RecordingLearner(Learner):
    """Writes the groups of step ``s``, as its rank trained on them, to ``trained/s-RANK`` in the run directory."""

    def _train(self, groups: list[Group]) -> dict[str, float]:
        metrics = super()._train(groups)
        directory = self.ctx.run_dir / "trained"
        directory.mkdir(exist_ok=True)
        write_groups(directory / f"{self.trainer.version:04d}-{self.rank}", groups)
        return metrics


class LearnerKilledWhileSaving(RecordingLearner):
    """Is killed (kill -9) in the middle of writing its checkpoints of two versions, the first time that it writes them:
    with all files written and none in place, and with the directory in place and the pointer not."""

    MOMENTS = {10: ".writing-0000010", 20: ".latest"}  # version: what was made durable last

    def __init__(self, ctx: ActorContext) -> None:
        super().__init__(ctx)
        fsync = checkpoint._fsync

        def fsync_or_die(path: Path) -> None:
            fsync(path)
            version = self.trainer.version
            once = self.ctx.run_dir / f"killed-at-{version}"
            if path.name == self.MOMENTS.get(version) and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint._fsync = fsync_or_die


class ChecksumLearner(Learner):
    """Writes the checksums of every version that it exports to ``checksums/VERSION.json`` in the run directory."""

    def _write_snapshot(self, version: int) -> Path | None:
        directory = self.ctx.run_dir / "checksums"
        directory.mkdir(exist_ok=True)
        (directory / f"{version}.json").write_text(json.dumps(checksums(self.trainer.export())))
        return super()._write_snapshot(version)
