"""The runs that somebody looks at: each is read once, however many look.

Promises: a bus is asked at most once in ``STATUS_S`` for a run; runs that nobody has looked at for longest are forgotten when
more than ``MOST_OPEN`` are open.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from miles_async.web.followed import FollowedRun
from miles_async.web.places import Places
from miles_async.web.samples import RecordedSteps
from miles_async.web.state import document
from miles_async.web.timeline_files import FollowedTimeline

STATUS_S = 0.9
MOST_OPEN = 16


class OpenRun:
    """What is read of one run. Its methods may be called from several threads."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.followed = FollowedRun(run_dir)
        self.samples = RecordedSteps(run_dir)
        self.timeline = FollowedTimeline(run_dir)
        self._asking = threading.Lock()
        self._asked_at = 0.0
        self._state: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """How it does, at most ``STATUS_S`` old. Raises OSError."""
        with self._asking:
            if not self._state or time.monotonic() - self._asked_at >= STATUS_S:
                self.followed.refresh()
                self._state = document(self.followed)
                self._asked_at = time.monotonic()
            return self._state


class OpenedRuns:
    """By name; ``places`` says which there are."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._runs: OrderedDict[Path, OpenRun] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, name: str) -> OpenRun:
        """Raises PlaceError: there is none of that name."""
        run_dir = self.places.find(name)
        with self._lock:
            found = self._runs.get(run_dir)
            if found is None:
                found = self._runs[run_dir] = OpenRun(run_dir)
            self._runs.move_to_end(run_dir)
            while len(self._runs) > MOST_OPEN:
                self._runs.popitem(last=False)
            return found
