"""How long an engine takes for a token, by how many requests it runs: from when groups began and ended. Pure.

A step of an engine gives every running sample a token, and takes ``a + n b`` of n running ones; whoever joins is prefilled
first, ``c`` a token, and all wait for it. Summed over the L steps of a group's longest sample,

    ended - began - paused  =  e + a L + b L n + c p

where n is how many ran, on average over its steps, and p the tokens that were prefilled meanwhile: it is linear. When the
shorter samples of a group ended, and how fast steps followed each other, is not on record: both follow from a and b, so that
the fit is made ROUNDS times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from miles_async.simulation.assignment import Pause, assigned
from miles_async.simulation.fits import Floats, costs_of

ROUNDS = 4
LATE_S = (0.0, 0.004, 0.016, 0.064, 0.256)  # delays that are tried first
REFINED = 3  # times that they are tried closer to the best one


class Generation(NamedTuple):
    """A group that was generated: from when to when, tokens of its responses and of its prompt."""

    began: float
    ended: float
    lengths: tuple[int, ...]
    prompt: float


class Fleet(NamedTuple):
    """``policy``: of the router. ``per_sample``: each sample is a request of its own. ``prefix_cache``: a prompt is prefilled
    once for the samples of a request. ``retracts``: an update prefills again what runs."""

    num_engines: int
    policy: str = "least_inflight"
    per_sample: bool = False
    prefix_cache: bool = True
    retracts: bool = True


class EngineFit(NamedTuple):
    """Seconds. ``overhead_s``: of a group, beside its tokens. ``running``: samples that an engine had, of nine tenths of the
    groups from the least to the greatest. ``error``: mean distance of a group's time from the fit, over the mean time."""

    step_s: float
    step_request_s: float
    prefill_token_s: float
    overhead_s: float
    running: tuple[float, float]
    error: float


def engine_fit(
    groups: Sequence[Generation], unfinished: Sequence[Generation], pauses: Sequence[Pause], fleet: Fleet
) -> EngineFit:
    """``unfinished``: groups that ended without a response on record; they have the lengths that they may have made until then.
    There is at least one group.

    An answer takes a while to be known: who frees an engine then, and not when it ended, sends the next request elsewhere. Of
    the delays that it may be, the one counts with which the times fit best.
    """

    def fit(late: float) -> EngineFit:
        every = [*groups, *unfinished]
        return _fit([_sooner(group, late) for group in every], len(groups), pauses, fleet)

    found = {late: fit(late) for late in LATE_S}
    for _ in range(REFINED):
        best = min(found, key=lambda late: found[late].error)
        for other in (_below(best, found), _above(best, found)):
            if other is not None and (middle := (best + other) / 2) not in found:
                found[middle] = fit(middle)
    late, best_fit = min(found.items(), key=lambda item: item[1].error)
    return best_fit._replace(overhead_s=best_fit.overhead_s + late)


def _below(value: float, known: Iterable[float]) -> float | None:
    """The next one."""
    return max((other for other in known if other < value), default=None)


def _above(value: float, known: Iterable[float]) -> float | None:
    """The next one."""
    return min((other for other in known if other > value), default=None)


def _sooner(group: Generation, late: float) -> Generation:
    return group._replace(ended=max(group.ended - late, group.began + (group.ended - group.began) / 2))


def _fit(every: Sequence[Generation], count: int, pauses: Sequence[Pause], fleet: Fleet) -> EngineFit:
    """Of the first ``count`` groups."""
    samples = _Samples.of(every, pauses, fleet)
    longest = samples.longest[:count]
    began, ended = samples.began[longest], samples.group_ended[longest]
    steps, engines = samples.lengths[longest], samples.engines[longest]
    costs: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    error, running = 0.0, np.zeros(count)
    for _ in range(ROUNDS):
        running, prefilled, paused = np.zeros(count), np.zeros(count), np.zeros(count)
        for engine in range(fleet.num_engines):
            own = [pause for pause in pauses if pause.engine == engine]
            clock = _Clock(samples, engine, own, costs[0], costs[1])
            mine = engines == engine
            running[mine] = clock.running(began[mine], ended[mine])
            prefilled[mine] = _prefilled(samples, engine, own, fleet, began[mine], ended[mine])
            paused[mine] = _overlaps(began[mine], ended[mine], own)
            samples.end_by(clock, engine)
        fit = costs_of([steps, steps * running, prefilled, np.ones(count)], np.maximum(ended - began - paused, 0.0), 3)
        costs, error = fit.costs, fit.error
        if costs[0] + costs[1] == 0.0:
            break
    low, high = np.quantile(running, [0.05, 0.95])
    step, request, prefill, overhead = costs
    return EngineFit(step, request, prefill, overhead, (float(low), float(high)), error)


class _Samples:
    """All samples, in the order of their groups. ``longest``: of each group, its index."""

    def __init__(self, groups: Sequence[Generation]) -> None:
        sizes = np.array([len(group.lengths) for group in groups])
        self.first = np.cumsum(sizes) - sizes
        self.of_group = np.repeat(np.arange(len(groups)), sizes)
        self.lengths = np.array([length for group in groups for length in group.lengths], np.float64)
        most = [int(np.argmax(group.lengths)) for group in groups]
        self.longest = self.first + np.array(most)
        self.began = np.array([group.began for group in groups])[self.of_group]
        self.group_ended = np.array([group.ended for group in groups])[self.of_group]
        self.share = self.lengths / self.lengths[self.longest][self.of_group]
        self.ended = self.began + self.share * (self.group_ended - self.began)
        self.prompts = np.zeros(len(self.lengths))  # that are prefilled with it
        self.engines = np.zeros(len(self.lengths), np.int64)

    @classmethod
    def of(cls, groups: Sequence[Generation], pauses: Sequence[Pause], fleet: Fleet) -> _Samples:
        found = cls(groups)
        prompts = np.array([group.prompt for group in groups], np.float64)
        if fleet.per_sample or not fleet.prefix_cache:
            found.prompts = prompts[found.of_group]
        else:
            found.prompts[found.first] = prompts
        if fleet.per_sample:
            began, ended = found.began, found.ended
            found.engines = np.array(assigned(began.tolist(), ended.tolist(), pauses, fleet.num_engines, fleet.policy))
        else:
            began, ended = found.began[found.first], found.group_ended[found.first]
            own = assigned(began.tolist(), ended.tolist(), pauses, fleet.num_engines, fleet.policy)
            found.engines = np.array(own)[found.of_group]
        return found

    def end_by(self, clock: _Clock, engine: int) -> None:
        """Of the samples of an engine, when they ended by its clock: as far through their group's steps as they are long."""
        mine = self.engines == engine
        began, whole = clock.steps(self.began[mine]), clock.steps(self.group_ended[mine])
        self.ended[mine] = clock.when(began + self.share[mine] * (whole - began))


class _Clock:
    """An engine's steps over time, up to a factor: at each moment as many a second as those that run leave, in a pause none."""

    def __init__(
        self, samples: _Samples, engine: int, pauses: Sequence[Pause], step_s: float, request_s: float
    ) -> None:
        mine = samples.engines == engine
        moments = [samples.began[mine], samples.ended[mine], *(np.array(pause[1:]) for pause in pauses)]
        self._times = np.unique(np.concatenate(moments)) if mine.any() else np.zeros(1)
        begun = np.searchsorted(np.sort(samples.began[mine]), self._times, side="right")
        over = np.searchsorted(np.sort(samples.ended[mine]), self._times, side="right")
        running = (begun - over)[:-1].astype(np.float64)
        lasts = np.diff(self._times)
        rate = 1.0 / np.maximum(step_s + running * request_s, 1e-12)
        for pause in pauses:
            middle = self._times[:-1] + lasts / 2
            rate[(middle > pause.began) & (middle < pause.ended)] = 0.0
        self._steps = np.concatenate([[0.0], np.cumsum(rate * lasts)])
        self._running = np.concatenate([[0.0], np.cumsum(rate * lasts * running)])

    def steps(self, times: Floats) -> Floats:
        return np.interp(times, self._times, self._steps)

    def when(self, steps: Floats) -> Floats:
        return np.interp(steps, self._steps, self._times)

    def running(self, began: Floats, ended: Floats) -> Floats:
        """How many ran, on average over the steps between two times."""
        total = np.interp(ended, self._times, self._running) - np.interp(began, self._times, self._running)
        return total / np.maximum(self.steps(ended) - self.steps(began), 1e-12)


def _prefilled(
    samples: _Samples, engine: int, pauses: Sequence[Pause], fleet: Fleet, began: Floats, ended: Floats
) -> Floats:
    """Tokens that the engine prefilled between two times, whoever begins at the first of them included."""
    mine = samples.engines == engine
    moments, tokens = samples.began[mine], samples.prompts[mine]
    if fleet.retracts and len(pauses):
        again = np.array([_context(samples, mine, pause.ended) for pause in pauses])
        moments, tokens = np.append(moments, [pause.ended for pause in pauses]), np.append(tokens, again)
    order = np.argsort(moments, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(tokens[order])])
    ordered = moments[order]
    return totals[np.searchsorted(ordered, ended)] - totals[np.searchsorted(ordered, began)]


def _context(samples: _Samples, mine: np.ndarray, when: float) -> float:
    """Tokens in an engine's cache at that time."""
    runs = mine & (samples.began < when) & (samples.ended > when)
    lasts = np.maximum(samples.ended[runs] - samples.began[runs], 1e-9)
    return float((samples.prompts[runs] + samples.lengths[runs] * (when - samples.began[runs]) / lasts).sum())


def _overlaps(began: Floats, ended: Floats, pauses: Sequence[Pause]) -> Floats:
    """Seconds of all pauses together that lie between each two times."""
    found = np.zeros(len(began))
    for pause in pauses:
        found += np.maximum(0.0, np.minimum(ended, pause.ended) - np.maximum(began, pause.began))
    return found
