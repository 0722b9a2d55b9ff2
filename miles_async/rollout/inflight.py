"""How many samples a rollout worker keeps in flight at the engines, from what the engines say of their load.

Promises: the limit stays between its floor and its ceiling; more load never gives a higher limit; one change takes effect
before the next cut is made. Pure: no I/O, no clock; whoever has looked at the engines calls :meth:`AdaptiveLimit.look`.

    nobody queues, caches below GROW_BELOW, the limit binds   limit + step    (additive increase; faster up to a first cut)
    requests queue for two looks, or caches above CUT_ABOVE   limit * CUT     (multiplicative decrease: "trim")
    caches full and requests queue: engines retract           ... and what is above the limit comes back ("cancel")

Workers that share engines see the same loads and run the same rule, which is what makes their limits equal in the end (Chiu
and Jain, 1989). An engine counts as one voice, and half of the voices decide: a single slow engine does not hold up the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

GROW_BELOW = 0.80  # share of an engine's cache in use
CUT_ABOVE = 0.90
FULL = 0.97  # running requests are retracted, or soon will be
QUEUE_SHARE = 0.1  # of the running requests: so many may wait, to take the places of those that end,
QUEUE_SLACK = 8  # and so many beside them, which may only just have come
CUT = 0.75
LOOKS_TO_CEILING = 128  # that the limit needs to grow from nothing to its ceiling, once it was cut
FIRST_GROWTH = 4  # up to the first cut it grows by this part of itself
PATIENCE = 2  # looks in a row at a queue before it counts: one is there for a moment behind every weight update


@dataclass(frozen=True, slots=True)
class EnginePressure:
    """What one engine says of itself. running, waiting: requests. kv_usage: share of its cache, 0 to 1."""

    running: int
    waiting: int
    kv_usage: float

    @property
    def paused(self) -> bool:
        """Requests wait and none runs: it is being updated, which says nothing about its load."""
        return self.running == 0 and self.waiting > 0

    @property
    def queues(self) -> bool:
        return self.waiting > QUEUE_SHARE * self.running + QUEUE_SLACK

    @property
    def has_room(self) -> bool:
        return not self.queues and self.kv_usage < GROW_BELOW

    @property
    def retracts(self) -> bool:
        return self.waiting > 0 and self.kv_usage > FULL


@dataclass(frozen=True, slots=True)
class Advice:
    """limit: samples that may be in flight from now on. cancel: how many are to come back at once, the youngest first."""

    limit: int
    cancel: int = 0


class AdaptiveLimit:
    """The limit of one worker. Raises ValueError: not 1 <= floor <= ceiling."""

    def __init__(self, floor: int, ceiling: int, start: int) -> None:
        """``start`` is brought between the two."""
        if not 1 <= floor <= ceiling:
            raise ValueError(f"a floor of {floor} samples and a ceiling of {ceiling}")
        self.floor, self.ceiling = floor, ceiling
        self.limit = min(max(start, floor), ceiling)
        self._step = math.ceil(ceiling / LOOKS_TO_CEILING)
        self._looks_at_queue = 0
        self._was_cut = False

    def look(self, engines: Sequence[EnginePressure], in_flight: int, waiting: int = 0) -> Advice:
        """The new limit. in_flight: samples of this worker at the engines; waiting: those that wait for a slot."""
        known = [engine for engine in engines if not engine.paused]
        if not known:
            return Advice(self.limit)
        self._looks_at_queue = self._looks_at_queue + 1 if _half(e.queues for e in known) else 0
        pressed = self._looks_at_queue >= PATIENCE or _half(e.kv_usage > CUT_ABOVE for e in known)
        if pressed and in_flight <= self.limit:
            # what is in flight is what the engines speak of, however far above it the limit lies
            self.limit = max(self.floor, int(CUT * in_flight))
            self._was_cut = True
        elif in_flight + waiting >= self.limit and not self._looks_at_queue and _half(e.has_room for e in known):
            step = self._step if self._was_cut else max(self._step, self.limit // FIRST_GROWTH)
            self.limit = min(self.ceiling, self.limit + step)
        retracts = _half(e.retracts for e in known)
        return Advice(self.limit, max(0, in_flight - self.limit) if retracts else 0)


def read_loads(answer: Any) -> list[EnginePressure]:
    """The engines of the router's ``GET /loads``; what is not of that form is left out."""
    engines = answer.get("engines") if isinstance(answer, dict) else None
    found: list[EnginePressure] = []
    for engine in engines if isinstance(engines, list) else ():
        try:
            load = EnginePressure(int(engine["running"]), int(engine["waiting"]), float(engine["kv_usage"]))
        except (LookupError, TypeError, ValueError, OverflowError):
            continue
        if load.running >= 0 and load.waiting >= 0 and load.kv_usage >= 0:
            found.append(load)
    return found


def _half(votes: Iterable[bool]) -> bool:
    votes = list(votes)
    return 2 * sum(votes) >= len(votes)
