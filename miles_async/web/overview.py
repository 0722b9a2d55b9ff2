"""The list of runs: the lines of ``miles-async runs``, the run that changed last first.

Promises: of a run that has ended its summary is read, of another one the end of its record, and that again only once it has
changed; a run that cannot be read has a line that says why.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from miles_async.monitor.record_lines import METRICS_FILE
from miles_async.monitor.runs_table import figures_of_record, row
from miles_async.runs.launches import CONFIG_FILE
from miles_async.web.places import Places

LEFT_OUT = ("run_dir", "age_s")  # where they lie is nobody's business, and an age is another one at each look
State = tuple[tuple[int, int, int] | None, ...]  # of files: inode, bytes, nanoseconds; None: it is not there


class Overview:
    """Of the runs in ``places``. Its methods may be called from several threads."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[State, dict[str, Any]]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """As :func:`miles_async.monitor.runs_table.row` has them, without ``LEFT_OUT``. Raises PlaceError."""
        with self._lock:
            found = set(self.places.all())
            self._known = {run_dir: known for run_dir, known in self._known.items() if run_dir in found}
            rows = [row(run_dir, time.time(), self._of_record) for run_dir in found]
        rows.sort(key=lambda one: (one["changed"], one["run"]), reverse=True)
        return [{key: value for key, value in one.items() if key not in LEFT_OUT} for one in rows]

    def _of_record(self, run_dir: Path) -> dict[str, Any]:
        state = tuple(_state(run_dir / name) for name in (METRICS_FILE, CONFIG_FILE))
        if run_dir not in self._known or self._known[run_dir][0] != state:
            self._known[run_dir] = state, figures_of_record(run_dir)
        return self._known[run_dir][1]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns
