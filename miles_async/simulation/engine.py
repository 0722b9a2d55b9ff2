"""One engine: continuous batching as a fluid, whose speed changes only when somebody joins or leaves.

    requests ──► waiting ──join: slots and cache have room, prefill holds everybody up──► running ──► ended
                    ▲                                                                       │
                    └──────────── retracted: the cache is full, the one that has least goes ┘

Promises: pure, in events: the work is for each sample and event, not for each token; between two events every running sample
gets a token each ``step`` seconds, a function of how many run and how long they are; a token is of the version that the engine
served when it was complete. Steps are counted from the engine's start, and stand still while it is paused or prefills.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from miles_async.simulation.samples import Sample
from miles_async.simulation.settings import Engines

NEVER = float("inf")
NEARLY = 1e-6  # of a token: what rounding may leave of it
RETRACT_STEPS = 20  # for which a full cache is to have room after a retraction: SGLang's SGLANG_RETRACT_DECODE_STEPS


class Speed(NamedTuple):
    """What all engines of a fleet have in common. step_s[n]: of n running requests; context_s: for each token in the cache."""

    step_s: list[float]
    context_s: float
    prefill_s: float
    cache: float
    admitted: float  # tokens in the cache up to which requests join
    max_running: int


def speed_of(engines: Engines) -> Speed:
    counts = np.arange(engines.max_running_requests + 1, dtype=np.float64)
    if engines.measured_running:
        running, rates = np.array(engines.measured_running), np.array(engines.measured_tokens_per_s)
        step_s = _line(counts, running, running / rates)
    else:
        step_s = engines.step_s + counts * engines.step_request_s
    cache = NEVER if engines.cache_tokens is None else float(engines.cache_tokens)
    admitted = cache * (1.0 - engines.cache_free) if engines.cache_tokens is not None else NEVER
    return Speed(
        step_s.tolist(),
        engines.step_context_s,
        engines.prefill_token_s,
        cache,
        admitted,
        engines.max_running_requests,
    )


def _line(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Straight between the points, and on beyond the last two of them; before the first one as there."""
    found = np.interp(x, xs, ys)
    if len(xs) > 1:
        slope = max(0.0, (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]))
        found = np.where(x > xs[-1], ys[-1] + slope * (x - xs[-1]), found)
    return found


class SimulatedEngine:
    """All times are the simulation's, in seconds."""

    def __init__(self, index: int, speed: Speed, slow: float = 1.0, version: int = 0) -> None:
        self.index, self.name, self.slow = index, f"engine-{index}", slow
        self._speed = speed
        self.waiting: deque[Sample] = deque()
        self.paused = self.down = False
        self.stamp = 0  # of its next event; one with another stamp is no more
        self.life = 0  # how often it died
        self.retractions = self.tokens = 0
        self.busy_s = 0.0
        self.version = self.next_version = version
        self._rows: dict[int, Sample] = {}
        self._ends: list[tuple[float, int, Sample]] = []  # a heap; those that left are passed over
        self._entries = 0
        self._bases = 0.0  # sum over rows of their base: with the steps, the tokens in the cache
        self._at_s, self._at = 0.0, 0.0  # a time, and the steps at it
        self._step = self._growth = 0.0  # seconds of a step at that time, and what each further one takes more
        self._left_s = 0.0  # of a prefill that a pause interrupted
        self._changes: list[tuple[float, int]] = [(0.0, version)]  # (steps, version that is served from there on)
        self._busy_since = NEVER

    # what others ask

    @property
    def running(self) -> int:
        return len(self._rows)

    @property
    def steps(self) -> float:
        """Decode steps up to the last event."""
        return self._at

    def busy_until(self, now: float) -> float:
        """Seconds in which it had a request, so far."""
        return self.busy_s + max(0.0, now - self._busy_since)

    def under_way(self, now: float, sample: Sample) -> int:
        """Tokens that a sample of its own has made since it joined."""
        if self._rows.get(sample.entry) is not sample:
            return 0
        return _whole((self._at if self.paused else self._steps_at(now)) - sample.start)

    def next_event(self) -> float:
        """When :meth:`advance` has something to do."""
        if self.paused or not self._rows:
            return NEVER
        steps = self._target() - self._at
        return self._at_s + steps * self._step + self._growth * steps * steps / 2.0

    # what happens to it

    def submit(self, now: float, samples: Iterable[Sample]) -> None:
        self.waiting.extend(samples)
        if self._busy_since == NEVER and self.waiting:
            self._busy_since = now
        if not self.paused:
            self._join(now, self._steps_at(now))

    def advance(self, now: float) -> list[Sample]:
        """At the time of :meth:`next_event`: the samples whose turn has ended, in the order in which they joined."""
        steps = self._target()
        ended: list[Sample] = []
        ends, limit = self._ends, steps + NEARLY
        while ends and ends[0][0] <= limit:
            _, entry, sample = heapq.heappop(ends)
            if entry in self._rows:
                self._leave(sample, steps, sample.goal - sample.made)
                ended.append(sample)
        if not ended:
            self._retract(steps)
        if ended and self.waiting:  # whoever was retracted waits until somebody ends
            self._join(now, steps)
        else:
            self._set_off(now, steps, 0.0)
        self._rest_if_idle(now)
        return ended

    def pause(self, now: float, coming: int) -> None:
        """coming: the version that it is to go on with."""
        self.next_version = coming
        self._at, self._left_s = self._steps_at(now), max(0.0, self._at_s - now) if self._rows else 0.0
        self._at_s, self.paused = now, True

    def resume(self, now: float, version: int, *, prefill: bool) -> None:
        """Go on with ``version``. prefill: what runs is prefilled again first, all of it."""
        self.paused, self.next_version = False, version
        if version != self.version:
            self.version = version
            self._changes = self._recent_changes()
            self._changes.append((self._at, version))
        held = self._bases + len(self._rows) * self._at if prefill else 0.0
        busy = self.slow * self._speed.prefill_s * held if prefill else self._left_s
        self._left_s = 0.0
        self._set_off(now, self._at, busy, anew=True)
        self._join(now, self._at)

    def clear(self, now: float) -> list[Sample]:
        """Everything that it has, with the tokens that are made: it has nothing more."""
        steps = self._at if self.paused else self._steps_at(now)
        gone = list(self._rows.values())
        for sample in gone:
            self._leave(sample, steps, _whole(steps - sample.start))
        gone += self.waiting
        self.waiting.clear()
        self._at, self._at_s = steps, now
        self._rest_if_idle(now)
        return gone

    def abort(self, now: float, samples: Iterable[Sample]) -> None:
        """Forget samples of its own, wherever they are."""
        steps = self._at if self.paused else self._steps_at(now)
        forgotten = set(map(id, samples))
        for sample in [row for row in self._rows.values() if id(row) in forgotten]:
            self._leave(sample, steps, _whole(steps - sample.start))
        if self.waiting:
            self.waiting = deque(sample for sample in self.waiting if id(sample) not in forgotten)
        if self.paused:
            self._at = steps
        else:
            self._set_off(now, steps, 0.0)
            self._join(now, steps)
        self._rest_if_idle(now)

    # its clock

    def _steps_at(self, now: float) -> float:
        after = now - self._at_s
        if after <= 0.0 or not self._rows or self.paused:
            return self._at
        if self._growth == 0.0:
            return self._at + after / self._step
        return self._at + (math.sqrt(self._step**2 + 2.0 * self._growth * after) - self._step) / self._growth

    def _set_off(self, now: float, steps: float, busy_s: float, *, anew: bool = False) -> None:
        """From ``steps`` at ``now`` on, after ``busy_s`` in which nobody gets a token, at the speed of those that run.

        Where the speed stays what it was, so does the point from which time is counted: no rounding adds up.
        """
        rows = len(self._rows)
        if not rows:
            self._step, self._at, self._at_s = 0.0, steps, now
            return
        step = self.slow * self._speed.step_s[rows]
        growth = 0.0
        if self._speed.context_s:
            step += self.slow * self._speed.context_s * (self._bases + rows * steps)
            growth = self.slow * self._speed.context_s * rows
        if anew or busy_s or growth or step != self._step:
            self._at_s, self._at = (now if anew else max(now, self._at_s)) + busy_s, steps
            self._step, self._growth = step, growth

    def _target(self) -> float:
        """The steps at which somebody ends or the cache is full."""
        ends = self._ends
        while ends[0][1] not in self._rows:
            heapq.heappop(ends)
        end = ends[0][0]
        if self._speed.cache == NEVER or len(self._rows) == 1:
            return end
        return max(self._at, min(end, (self._speed.cache - self._bases) / len(self._rows)))

    # who runs

    def _join(self, now: float, steps: float) -> None:
        """Those that wait and for whom there is room."""
        waiting, speed, rows = self.waiting, self._speed, self._rows
        due = 0.0
        while waiting and len(rows) < speed.max_running:
            sample = waiting[0]
            context = sample.prompt + sample.made
            if rows and self._bases + len(rows) * steps + context > speed.admitted:
                break
            waiting.popleft()
            sample.entry, sample.start, sample.base = self._entries, steps, context - steps
            sample.end = steps + (sample.goal - sample.made)
            self._entries += 1
            self._bases += sample.base
            rows[sample.entry] = sample
            heapq.heappush(self._ends, (sample.end, sample.entry, sample))
            due += sample.due
            sample.due = 0.0
        self._set_off(now, steps, self.slow * speed.prefill_s * due)

    def _leave(self, sample: Sample, steps: float, tokens: int) -> None:
        """Take a row out, which has made ``tokens`` since it joined."""
        del self._rows[sample.entry]
        sample.entry = -1
        self._bases = self._bases - sample.base if self._rows else 0.0
        if tokens <= 0:
            return
        sample.made += tokens
        self.tokens += tokens
        changes = self._changes
        if changes[-1][0] <= sample.start:  # nearly always
            sample.spans.append((changes[-1][1], tokens))
            return
        spans: list[tuple[int, int]] = []
        until = tokens
        for at, version in reversed(changes):
            before = min(until, max(0, _whole(at - sample.start)))
            if until > before:
                spans.append((version, until - before))
            until = before
            if not until:
                break
        sample.spans += reversed(spans)

    def _retract(self, steps: float) -> None:
        """Whoever has made least goes back, until there is room for RETRACT_STEPS of those that stay."""
        while len(self._rows) > 1:
            rows = len(self._rows)
            if self._bases + rows * (steps + RETRACT_STEPS) <= self._speed.cache:
                return
            sample = min(self._rows.values(), key=lambda row: (row.made - row.start, -row.entry))
            self._leave(sample, steps, _whole(steps - sample.start))
            sample.due = sample.prompt + sample.made
            self.waiting.appendleft(sample)
            self.retractions += 1

    def _recent_changes(self) -> list[tuple[float, int]]:
        """Those that a running sample may have seen."""
        oldest = min((sample.start for sample in self._rows.values()), default=NEVER)
        first = len(self._changes) - 1
        while first and self._changes[first][0] > oldest:
            first -= 1
        return self._changes[first:]

    def _rest_if_idle(self, now: float) -> None:
        if not self._rows and not self.waiting and self._busy_since != NEVER:
            self.busy_s += now - self._busy_since
            self._busy_since = NEVER


def _whole(tokens: float) -> int:
    return int(tokens + NEARLY)
