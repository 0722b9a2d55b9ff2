"""The record of a run that still goes on, line by line as it grows.

Promises: a line is given once, and only when it is whole; what was read is not read again (a poll that begins at the
beginning costs the run that it watches most of a core), but where steps are trained again: then the file is another one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miles_async.monitor.growing import GrowingFile


class GrowingRecord:
    """The metrics of one actor in ``RUN/metrics.jsonl``; the file need not be there yet."""

    def __init__(self, run_dir: Path, actor: str = "learner-0") -> None:
        self._file, self._actor = GrowingFile(run_dir / "metrics.jsonl"), actor

    def more(self) -> list[dict[str, Any]]:
        """The lines that have come since the last call."""
        lines = [json.loads(line) for line in self._file.more()[0] if self._actor.encode() in line]
        return [line for line in lines if line["actor"] == self._actor]
