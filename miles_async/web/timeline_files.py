"""A run's timeline, followed while the run goes on: a window of it for the page, all of it as a trace.

Promises: a window costs the same however long the run was; the trace is the Trace Event Format that Perfetto and
chrome://tracing read, each actor a process, its overlapping spans beside each other; it is written in parts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from miles_async.monitor.record_lines import (
    EVENTS_FILE,
    METRICS_FILE,
    TRANSITIONS_FILE,
    EventLine,
    MetricsLine,
    TransitionLine,
)
from miles_async.web.following import Follower
from miles_async.web.timeline import Timeline, lanes

FEW = 240  # spans of a track that a window shows one by one
STRETCHES = 400  # of a window that has more
MARKS = 300
LANES = 24  # beside each other; a window with more shows how many there are


class FollowedTimeline:
    """Of the run in ``run_dir``. Its methods may be called from several threads."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self._lock = run_dir, threading.Lock()
        self._begin_again()

    def _begin_again(self) -> None:
        self._timeline = Timeline()
        self._metrics = Follower(self.run_dir / METRICS_FILE, MetricsLine)
        self._transitions = Follower(self.run_dir / TRANSITIONS_FILE, TransitionLine)
        self._events = Follower(self.run_dir / EVENTS_FILE, EventLine)

    def _refresh(self) -> None:
        """Raises OSError."""
        read = self._metrics.read(), self._transitions.read(), self._events.read()
        if any(void for void, _ in read):  # the record was rewritten
            self._begin_again()
            read = self._metrics.read(), self._transitions.read(), self._events.read()
        for line in read[0][1]:
            self._timeline.add_metrics(line)
        for line in read[1][1]:
            self._timeline.add_transition(line)
        for line in read[2][1]:
            self._timeline.add_event(line)

    def window(self, first: float | None, last: float | None) -> dict[str, Any]:
        """The tracks between two times (None: as far as there is anything). Raises OSError."""
        with self._lock:
            self._refresh()
            begin, end = self._timeline.begin_and_end()
            since, until = begin if first is None else first, end if last is None else last
            if not until > since:
                until = since + 1.0
            return {
                "begin": begin,
                "end": end,
                "first": since,
                "last": until,
                "tracks": [self._track(name, since, until) for name in self._timeline.names()],
                "marks": [list(mark) for mark in self._timeline.marks_between(since, until, MARKS)],
            }

    def _track(self, name: str, first: float, last: float) -> dict[str, Any]:
        track = self._timeline.tracks[name]
        spans = track.between(first, last)
        if len(spans) <= FEW:
            placed = lanes(spans)
            if max(placed, default=0) < LANES:
                return {"name": name, "spans": [[*span, lane] for span, lane in zip(spans, placed, strict=True)]}
        return {"name": name, "levels": track.levels(first, last, STRETCHES)}

    def trace(self) -> Iterator[bytes]:
        """The whole timeline as JSON. Raises OSError."""
        with self._lock:
            self._refresh()
            tracks = [(name, list(self._timeline.tracks[name].spans())) for name in self._timeline.names()]
            marks, (origin, _) = sorted(self._timeline.marks), self._timeline.begin_and_end()
        yield b'{"displayTimeUnit":"ms","traceEvents":[\n'
        number = {name: n for n, (name, _) in enumerate(tracks, 1)}
        events: list[dict[str, Any]] = [_name(n, name) for name, n in number.items()]
        events.append(_name(0, "events"))
        for name, spans in tracks:
            for span, lane in zip(spans, lanes(spans), strict=True):
                begin, took = round((span.begin - origin) * 1e6), round((span.end - span.begin) * 1e6)
                about = {"name": span.kind, "cat": span.kind, "ph": "X", "ts": begin, "dur": took}
                events.append(about | {"pid": number[name], "tid": lane, "args": {"says": span.says}})
            yield from _encoded(events)
            events = []
        for mark in marks:
            at = round((mark.time - origin) * 1e6)
            place = {"pid": number.get(mark.actor, 0), "tid": 0}
            events.append({"name": mark.kind, "ph": "i", "s": "p", "ts": at, **place, "args": {"actor": mark.actor}})
        yield from _encoded(events)
        yield b'{"name":"end","ph":"M","pid":0,"tid":0,"args":{}}\n]}\n'


def _name(number: int, name: str) -> dict[str, Any]:
    """The event that names a process."""
    return {"name": "process_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": name}}


def _encoded(events: list[dict[str, Any]]) -> Iterator[bytes]:
    if events:
        yield b"".join([msgspec.json.encode(event) + b",\n" for event in events])
