"""One run as its files have it, followed while it is written: how far it is, its curves, its newest events.

Promises: a look costs what was written since the last one; a run whose record was rewritten is read again, and its
``generation`` is another one; whatever is damaged is one line in ``troubles``, and the rest is shown.
"""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

from miles_async.config import toml
from miles_async.config.schema import ConfigError
from miles_async.monitor.progress import Progress, progress_of
from miles_async.monitor.record_lines import (
    EVENTS_FILE,
    LEARNER,
    METRICS_FILE,
    EventLine,
    MetricsLine,
    is_step,
)
from miles_async.runs.launches import CONFIG_FILE
from miles_async.web.following import Follower
from miles_async.web.series import Series

EVENTS_KEPT = 100
RATES = ("samples_per_s", "tokens_per_s", "learner_busy")  # of the last steps, as curves of their own
RATE = "rate/"


class FollowedRun:
    """The run in ``run_dir``. Its methods may be called from several threads."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.generation, self.lock = run_dir, 0, threading.RLock()
        self._metrics = Follower(run_dir / METRICS_FILE, MetricsLine)
        self._events = Follower(run_dir / EVENTS_FILE, EventLine)
        self._begin()

    def _begin(self) -> None:
        self.series = Series()
        self.events: deque[EventLine] = deque(maxlen=EVENTS_KEPT)
        self.engine_events: dict[str, EventLine] = {}  # the last one of each engine
        self.progress = self._fresh()

    def _fresh(self) -> Progress:
        path, self._config_trouble = self.run_dir / CONFIG_FILE, ""
        try:
            return progress_of(toml.read(path)) if path.exists() else Progress(0)
        except (ConfigError, OSError) as error:
            self._config_trouble = str(error)
            return Progress(0)

    @property
    def troubles(self) -> list[str]:
        """What of the record cannot be read."""
        return [text for text in (self._config_trouble, self._metrics.trouble, self._events.trouble) if text]

    def refresh(self) -> None:
        """Take in what was written since the last time. Raises OSError."""
        with self.lock:
            void, lines = self._metrics.read()
            events_void, events = self._events.read()
            if (void or events_void) and not (void and events_void):  # read the other one from its beginning, too
                self._metrics = Follower(self._metrics.path, MetricsLine)
                self._events = Follower(self._events.path, EventLine)
                (_, lines), (_, events) = self._metrics.read(), self._events.read()
            if void or events_void:
                self.generation += 1
                self._begin()
            if lines and not self.progress.starts:
                self.progress = self._fresh()  # the configuration may be younger than the first look
            for line in lines:
                self._add(line)
            for event in events:
                self._add_event(event)

    def _add(self, line: MetricsLine) -> None:
        self.progress.add_metrics(line)
        further: dict[str, float] = {}
        if line.actor == LEARNER and is_step(line):
            recent = self.progress.recent()
            further = {RATE + name: getattr(recent, name) for name in RATES}
        self.series.add(line, further)

    def _add_event(self, event: EventLine) -> None:
        self.progress.add_event(event)
        self.events.append(event)
        engine = event.data.get("engine")
        if isinstance(engine, str):
            self.engine_events[engine] = event
