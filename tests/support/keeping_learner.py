"""A learner that keeps a copy of the weights of every version that is evaluated: put in place through ``[topology]``."""

from __future__ import annotations

import shutil
from pathlib import Path

from actors.learner import Learner
from miles_async.evaluation.settings import is_due


class KeepingLearner(Learner):
    def _write_snapshot(self, version: int) -> Path | None:
        path = super()._write_snapshot(version)
        if path is not None and is_due(self.config.eval, version):
            shutil.copytree(path, self.ctx.run_dir / "kept" / str(version))
        return path
