"""``miles-async top``: the live view of a launch, of any run that is there, alive or ended.

Promises: the run notices nothing: its record is read as it grows, its bus is asked as ``status`` asks it, nothing is written;
what is shown is what the launch itself shows, the events from now on among it; it ends with the run's launch.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TextIO

from redis.exceptions import RedisError

from bus.deadline import within
from bus.errors import NoRedisError, RedisLoadsError
from bus.messages import Event
from miles_async.config import toml
from miles_async.monitor.announce import Announcer
from miles_async.monitor.growing import GrowingFile
from miles_async.monitor.panel import LiveView
from miles_async.monitor.progress import Progress, progress_of
from miles_async.monitor.record_lines import EVENTS_FILE, METRICS_FILE, EventLine, Line, MetricsLine, decode_line
from miles_async.monitor.status import BUS_DEADLINE_S, check_is_run, read_bus
from miles_async.monitor.summary import last_summary
from miles_async.runs.launches import CONFIG_FILE
from miles_async.runs.state import RunState, living

LOOK_S = 0.5
ASK_S = 1.0  # between two questions to the bus
SILENT_S = 5.0  # a bus that did not answer is left alone for so long


def top(run_dir: Path, stream: TextIO) -> None:
    """Show the run on ``stream`` until its launch ends; of one that has ended the last picture. Raises ConfigError: no run."""
    check_is_run(run_dir)
    run = FollowedRun(run_dir)
    view, announcer = LiveView(run.progress, f"{run_dir}", "auto", stream), Announcer()
    view.start()
    try:
        while (supervisor := living(run_dir)) is not None:
            run.ask(supervisor)
            for event in run.look():
                if text := announcer.text(event):
                    view.say(text)
            view.turn_to(run.progress)
            view.update()
            time.sleep(LOOK_S)
        run.look()
        run.progress.ledger = (last_summary(run_dir) or {}).get("ledger") or run.progress.ledger
        view.turn_to(run.progress)
    finally:
        view.stop()


class FollowedRun:
    """The progress of a run as its directory and its bus tell it."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._ask_at = run_dir, 0.0
        self._events = 0  # known by now
        self.progress = self._begin()
        self.look()  # what has happened before is no news

    def _begin(self) -> Progress:
        self._metrics, self._told = (GrowingFile(self._run_dir / name) for name in (METRICS_FILE, EVENTS_FILE))
        path = self._run_dir / CONFIG_FILE
        return progress_of(toml.read(path)) if path.exists() else Progress(0)

    def look(self) -> list[Event]:
        """Take in what has been written; the events that are new. A line that cannot be read is passed over."""
        lines, is_another = self._metrics.more()
        if is_another or (lines and not self.progress.num_steps):  # the configuration is written before the first line
            before, self.progress = self.progress, self._begin()
            _keep_what_the_bus_said(before, self.progress)
            lines, _ = self._metrics.more()
        for line in lines:
            if (found := _decoded(line, MetricsLine)) is not None:
                self.progress.add_metrics(found)
        return self._look_at_events()

    def _look_at_events(self) -> list[Event]:
        known, news = self.progress.events.total(), list[Event]()
        for line in self._told.more()[0]:
            if (found := _decoded(line, EventLine)) is not None:
                self.progress.add_event(found)
                known += 1
                if known > self._events:
                    news.append(Event(actor=found.actor, kind=found.kind, time=found.time, data=found.data))
        self._events = max(self._events, known)
        return news

    def ask(self, supervisor: RunState) -> None:
        """The bus, if its turn has come: who is there, what they do, the ledger, the engines."""
        if supervisor.bus_url is None or time.monotonic() < self._ask_at:
            return
        try:
            seen = asyncio.run(within(BUS_DEADLINE_S, read_bus(supervisor, supervisor.bus_url), "the bus"))
        except (NoRedisError, RedisError, RedisLoadsError, OSError):  # heartbeats grow old, which the view shows
            self._ask_at = time.monotonic() + SILENT_S
            return
        self._ask_at = time.monotonic() + ASK_S
        self.progress.heartbeats = {beat.actor: beat for beat in seen.beats}
        self.progress.ledger = dict(seen.counts)
        self.progress.engine_versions = {name: engine.version for name, engine in seen.engines.items()}


def _keep_what_the_bus_said(before: Progress, now: Progress) -> None:
    now.heartbeats, now.ledger, now.engine_versions = before.heartbeats, before.ledger, before.engine_versions


def _decoded(line: bytes, kind: type[Line]) -> Line | None:
    try:
        return decode_line(line, kind)
    except ValueError:
        return None
