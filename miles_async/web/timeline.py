"""Who did what when, from what a run leaves on disk: a fold over its metrics, transitions and events, without a clock or I/O.

    learner-0     wait, train, save       of each step's times (perf/train_wait_time, perf/train_time, perf/save_model_time)
    rollout-N     generate, wait          from the claim of a group to its publication, drop or failure; wait: it held none
    broadcaster   push                    each wave's weights/update_s, which ends with its report
    ENGINE        pause, busy             weights/paused_s at the end of a push; the share of a second that it had requests

Promises: a span is as long as it was reported; an attempt whose end is on no record ends where another one of its group begins,
or stays open; a step that is trained again has its spans beside those of the first time: both took place.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from typing import NamedTuple

from miles_async.monitor.progress import ENGINE_BUSY, PAUSED
from miles_async.monitor.record_lines import LEARNER, EventLine, MetricsLine, TransitionLine, is_step
from miles_async.web.spans import Span, Track

ENDS = frozenset({"published", "failed", "dropped", "released", "quarantined", "reconciled"})
QUIET = frozenset(
    {"dropped", "late_publication_refused", "sample_lost"}
)  # events of which there are too many for marks
ORDER = ("dealer", "rollout", "router", "engine", "learner", "broadcaster")  # of the tracks, by role
REPORT_S = (
    2.5  # a share of an engine's time that was reported longer after the last one says nothing of the time between
)
SHORT_WAIT_S = 0.01  # of a worker: not worth a span


class Mark(NamedTuple):
    """Something that happened once."""

    time: float
    actor: str
    kind: str


class Timeline:
    """Tracks by actor, all times in seconds since the epoch."""

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {}
        self.marks: list[Mark] = []
        self._open: dict[str, tuple[str, float]] = {}  # group to its worker and the time of its claim
        self._held: dict[str, int] = {}  # by worker: groups that it holds
        self._idle_since: dict[str, float] = {}
        self._reported: dict[str, float] = {}  # when each engine's share was reported last

    def add_metrics(self, line: MetricsLine) -> None:
        values = {name: value for name, value in line.values.items() if value is not None}
        if is_step(line) and line.actor == LEARNER:
            self._step(line.step, line.time, values)
        update = values.get("weights/update_s")
        if update is not None:
            self._track(line.actor).add(Span(line.time - update, line.time, "push", f"version {line.step}"))
        for name, value in values.items():
            if name.startswith(PAUSED + "/") and value > 0:
                engine = name.removeprefix(PAUSED + "/")
                self._track(engine).add(Span(line.time - value, line.time, "pause", f"version {line.step}"))
            elif name.startswith(ENGINE_BUSY):
                self._busy(name.removeprefix(ENGINE_BUSY), line.time, value)

    def _step(self, step: int, end: float, values: dict[str, float]) -> None:
        train, wait = values.get("perf/train_time", 0.0), values.get("perf/train_wait_time", 0.0)
        save, track, begin = values.get("perf/save_model_time", 0.0), self._track(LEARNER), end - train
        if wait > 0:
            track.add(Span(begin - wait, begin, "wait", f"groups for step {step}"))
        if save > 0:
            track.add(Span(begin - wait - save, begin - wait, "save", "a checkpoint"))
        if train > 0:
            track.add(Span(begin, end, "train", f"step {step}"))

    def _busy(self, engine: str, now: float, share: float) -> None:
        last = self._reported.get(engine, now - 1.0)
        self._reported[engine] = now
        if share > 0:
            begin = max(last, now - REPORT_S)
            self._track(engine).add(Span(begin, now, "busy", f"{share:.0%}", share))

    def add_transition(self, line: TransitionLine) -> None:
        for group in line.groups if line.kind in ENDS or line.kind == "claimed" else ():
            if (held := self._open.pop(group, None)) is not None:
                first = f", first token after {line.begun.first_token_at - held[1]:.3g} s" * bool(
                    line.begun.first_token_at
                )
                self._end(group, *held, line.time, "its lease ended" if line.kind == "claimed" else line.kind + first)
            if line.kind == "claimed":
                worker = line.by.partition("/")[0]
                self._begin(group, worker, line.time)

    def _begin(self, group: str, worker: str, now: float) -> None:
        since = self._idle_since.pop(worker, now)
        if now - since > SHORT_WAIT_S:
            self._track(worker).add(Span(since, now, "wait", "no group"))
        self._held[worker] = self._held.get(worker, 0) + 1
        self._open[group] = worker, now

    def _end(self, group: str, worker: str, begin: float, end: float, how: str) -> None:
        self._track(worker).add(Span(begin, max(begin, end), "generate", f"group {group}: {how}"))
        self._held[worker] -= 1
        if not self._held[worker]:
            self._idle_since[worker] = end

    def add_event(self, event: EventLine) -> None:
        if event.kind not in QUIET:
            about = event.data.get("actor") or event.data.get("engine")
            self.marks.append(Mark(event.time, about if isinstance(about, str) else event.actor, event.kind))

    def _track(self, actor: str) -> Track:
        return self.tracks.setdefault(actor, Track())

    def names(self) -> list[str]:
        """Of the tracks, in the order of the loop."""

        def key(name: str) -> tuple[int, str, int]:
            role, _, number = name.rpartition("-")
            role, count = (role, int(number)) if number.isdecimal() and role else (name, 0)
            return (ORDER.index(role) if role in ORDER else len(ORDER), role, count)

        return sorted(self.tracks, key=key)

    def begin_and_end(self) -> tuple[float, float]:
        """Of all spans; 0, 0 where there are none."""
        tracks = [track for track in self.tracks.values() if len(track)]
        if not tracks:
            return 0.0, 0.0
        return min(track.begin for track in tracks), max(track.end for track in tracks)

    def marks_between(self, first: float, last: float, most: int) -> list[Mark]:
        """Those of a window; of more than ``most`` as many, evenly chosen."""
        marks = sorted(self.marks)
        begin = bisect.bisect_left(marks, (first,))
        found = marks[begin : bisect.bisect_right(marks, (last, chr(0x10FFFF)))]
        return [found[len(found) * n // most] for n in range(most)] if len(found) > most else found


def lanes(spans: Sequence[Span]) -> list[int]:
    """For each of ``spans``, by their beginnings, a lane in which nothing else is at its time: as few as can be."""
    found: list[int] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []  # when a lane becomes free
    for span in spans:
        while busy and busy[0][0] <= span.begin:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (max(span.end, span.begin), lane))
        found.append(lane)
    return found
