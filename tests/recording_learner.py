"""Learners that also write down what they did: put in place through ``[topology]``, as a user's own class would be."""

from __future__ import annotations

import json
from pathlib import Path

from actors.learner import Learner
from bus.codec import encode
from bus.messages import Group
from miles_async.engine.control import checksums


class RecordingLearner(Learner):
    """Writes the groups of step ``s``, as its rank trained on them, to ``trained/s-RANK`` in the run directory."""

    def _train(self, groups: list[Group]) -> dict[str, float]:
        metrics = super()._train(groups)
        directory = self.ctx.run_dir / "trained"
        directory.mkdir(exist_ok=True)
        frames = [encode(group) for group in groups]
        data = b"".join(len(frame).to_bytes(8, "little") + frame for frame in frames)
        (directory / f"{self.trainer.version:04d}-{self.rank}").write_bytes(data)
        return metrics


class ChecksumLearner(Learner):
    """Writes the checksums of every version that it exports to ``checksums/VERSION.json`` in the run directory."""

    def _write_snapshot(self, version: int) -> Path | None:
        directory = self.ctx.run_dir / "checksums"
        directory.mkdir(exist_ok=True)
        (directory / f"{version}.json").write_text(json.dumps(checksums(self.trainer.export())))
        return super()._write_snapshot(version)
