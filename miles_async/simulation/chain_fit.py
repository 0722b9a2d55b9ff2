"""What the links between engines and learner take, and the learner itself: from the times that a run has left. Pure.

    step ends ─offer─► engines pause ─► admitted ─admit─► begun … generated ─reward─► graded ─publish─► ready ─batch─► trained

Promises: a delay is counted from the last thing that could have let it happen, and is a mean (fits.usual), so that a
simulation's throughput has what a busy machine costs; where all slots were taken, so that there was waiting for one, too, the
lower quartile counts.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from miles_async.simulation.fits import Fit, costs_of, lognormal_of, median, quartile, usual
from miles_async.simulation.observations import Observed, ObservedGroup, ObservedStep, ObservedUpdate

CLOCK_S = 0.002  # by which what is told of a moment may be apart: the bus counts milliseconds
AT_ONCE_S = 0.001  # a grade that is there so soon takes no time that a simulation could have


class Links(NamedTuple):
    """Seconds, as ``[links]`` has them."""

    admit_s: float
    publish_s: float
    batch_s: float
    offer_s: float


class Updates(NamedTuple):
    """``paused_s``: that an engine generated nothing, of a wave of one; ``paused_engine_s``: more for each engine of it."""

    paused_s: float
    paused_engine_s: float


class Learning(NamedTuple):
    """Seconds: of a batch, of a token of one replica, of a version that is offered, of a checkpoint."""

    step_s: float
    token_s: float
    export_s: float
    save_s: float
    error: float


def links_of(seen: Observed, slots: int) -> Links:
    """Of ``publish_s`` only what follows the grade. slots: groups that all workers may have in flight."""
    steps, groups = _in_a_row(seen), seen.groups
    ready = {
        number: max((groups[g].published or 0.0 for g in step.groups), default=0.0)
        for number, step in seen.steps.items()
    }
    begun = [
        (step.ended or 0.0) - step.train_s - max(ready[number], before.ended or 0.0)
        for number, before, step in steps
        if step.batches == 1
    ]
    return Links(
        admit_s=_admitting(seen, slots),
        publish_s=max(0.0, usual([g.published - g.graded for g in groups.values() if g.published and g.graded])),
        batch_s=max(0.0, usual(begun)),
        offer_s=max(0.0, usual(_offers(seen))),
    )


def _offers(seen: Observed) -> list[float]:
    """From each version to the pauses for it, and between the waves of engines: all of the time until the last one serves it
    but the pauses themselves."""
    by_version: dict[int, list[ObservedUpdate]] = {}
    for update in seen.updates:
        by_version.setdefault(update.version, []).append(update)
    waves = max(map(len, by_version.values()), default=0)
    return [
        max(u.ended for u in of_version) - step.ended - sum(max(u.paused_s.values()) for u in of_version)
        for version, of_version in by_version.items()
        if len(of_version) == waves and (step := seen.steps.get(version)) is not None and step.ended is not None
    ]


def _in_a_row(seen: Observed) -> list[tuple[int, ObservedStep, ObservedStep]]:
    """Steps that were trained, each with the one before it."""
    pairs = ((number, seen.steps.get(number - 1), step) for number, step in seen.steps.items())
    return [
        (number, before, step)
        for number, before, step in pairs
        if before is not None and before.ended is not None and step.ended is not None
    ]


def _admitting(seen: Observed, slots: int) -> float:
    """From what lets groups begin (engines have been updated, others were batched) to their admission, and on to their
    start. What it was that let them is not on record: of the first the median counts."""
    frees = sorted([update.ended for update in seen.updates] + seen.batches)
    open_groups = [g for g in seen.groups.values() if g.admitted is not None]
    admitted = sorted(g.admitted for g in open_groups if g.admitted is not None)
    over = sorted(end for g in open_groups if (end := g.generated or g.gone) is not None)
    to_admission, to_start, first = list[float](), list[float](), list[float]()
    for when, ids in seen.admissions:
        if place := bisect.bisect_right(frees, when + CLOCK_S):
            to_admission.append(max(0.0, when - frees[place - 1]))
        starts = [start - when for g in ids if (start := seen.groups[g].began) is not None and start >= when]
        if starts:
            first.append(min(starts))
        if bisect.bisect_right(admitted, when) - bisect.bisect_right(over, when) <= slots:
            to_start += starts
    return median(to_admission) + (max(0.0, usual(to_start)) if to_start else quartile(first))


def updates_of(seen: Observed) -> Updates:
    """Zero where no engine was paused."""
    if not seen.updates:
        return Updates(0.0, 0.0)
    paused = np.array([s for update in seen.updates for s in update.paused_s.values()])
    sizes = np.array([float(len(update.paused_s)) for update in seen.updates for _ in update.paused_s])
    if sizes.min() == sizes.max():
        return Updates(usual(paused), 0.0)
    once, each = costs_of([np.ones(len(sizes)), sizes], paused).costs
    return Updates(once, each)


def rewards_of(groups: Sequence[ObservedGroup]) -> tuple[float, float]:
    """Mean and sigma of the time from the last token to the grade; (0, 0): it is there at once."""
    took = np.array([g.graded - g.generated for g in groups if g.graded and g.generated])
    if not len(took) or np.median(took) < AT_ONCE_S:
        return 0.0, 0.0
    return lognormal_of(took)


def learning_of(seen: Observed, replicas: int, prompt: float, update_interval: int) -> Learning:
    """``prompt``: tokens of a prompt, where a group's own is not on record."""
    trained = {number: step for number, step in seen.steps.items() if step.ended is not None and step.batches}
    first = min(trained)
    steps = {
        number: step for number, step in trained.items() if number > first
    } or trained  # the first one is a cold start
    tokens = np.array([_tokens(step, seen, prompt) / replicas for step in steps.values()])
    columns = [np.array([float(step.batches) for step in steps.values()]), tokens]
    if update_interval > 1:
        columns.append(np.array([float(number % update_interval == 0) for number in steps]))
    fit: Fit = costs_of(columns, np.array([step.train_s for step in steps.values()]), constant=0)
    export_s = fit.costs[2] if update_interval > 1 else 0.0
    saves = [step.save_s for step in trained.values() if step.save_s]
    return Learning(fit.costs[0], fit.costs[1], export_s, float(np.mean(saves)) if saves else 0.0, fit.error)


def _tokens(step: ObservedStep, seen: Observed, prompt: float) -> float:
    """Of prompts and responses."""
    found = 0.0
    for group_id in step.groups:
        group = seen.groups[group_id]
        found += sum(group.lengths) + len(group.lengths) * (prompt if group.prompt is None else group.prompt)
    return found
