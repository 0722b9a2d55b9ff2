"""A tracker that is somebody else's package: what wandb_tracker.py and mlflow_tracker.py share.

Promises: all that is asked of the package is asked by one thread, its import too, which nobody waits for but
:meth:`PackageTracker.close`, and that for ``CLOSE_S`` at most; what comes while it is busy is handed over at once, so that a
slow server does not fall behind; what it raises is said in one line, and ends the tracking alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

from miles_async.monitor.record_lines import MetricsLine

CLOSE_S = 30.0


class PackageTracker:
    """See Tracker (trackers.py). ``name``: of the package; ``how``: what its event says besides; ``left``: what becomes of what
    it has not taken in time."""

    def __init__(self, name: str, how: dict[str, Any], left: str) -> None:
        self.error = ""
        self.began: tuple[str, dict[str, Any]] = ("tracked", {"by": name, **how})
        self._name, self._left = name, left
        self._queue: queue.SimpleQueue[MetricsLine | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """In the thread, first."""
        raise NotImplementedError

    def log(self, lines: Sequence[MetricsLine]) -> None:
        """In the thread: all that waits, in its order."""
        raise NotImplementedError

    def finish(self) -> None:
        """In the thread, last."""
        raise NotImplementedError

    def add(self, line: MetricsLine) -> None:
        self._queue.put(line)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self.error = self.error or f"{self._name} did not end within {CLOSE_S:g} s: {self._left}"

    def _run(self) -> None:
        more = True  # may come
        try:
            self.begin()
            while more:
                lines, more = self._waiting()
                self.log(lines)
            self.finish()
        except Exception as error:  # of a service of somebody else's
            self.error = f"{self._name}: {type(error).__name__}: {error}".splitlines()[0]
            while more:
                _, more = self._waiting()

    def _waiting(self) -> tuple[list[MetricsLine], bool]:
        """What has come, once something has; whether more may come."""
        lines = list[MetricsLine]()
        while (line := self._queue.get()) is not None:
            lines.append(line)
            if self._queue.empty():
                return lines, True
        return lines, False
