"""Where a run of ``bench schedule`` loses time against the ideal: what each link of its chain adds, from the record it leaves.

    step ends ─offer─► admitted ─claim─► claimed ─generate─► published ─batch─► batched ─train─► step ends

Promises: pure; medians in ms. ``offer``: from the end of a step to the next admission, the update of the engines included.
``claim``: from an admission to the first claim behind it. ``generate``: from a claim to the publication, less what the trace
says and the updates that the group went through. ``batch``: from when the learner was free and the batch ready. ``train``:
beyond the step itself, the snapshot of its weights included.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.lib.schedule.trace import Trace


def latencies(
    transitions: Iterable[Mapping[str, Any]], step_ends: Mapping[int, float], trace: Trace, first: int, last: int
) -> dict[str, float | None]:
    """Of the steps ``first`` to ``last``. ``transitions``: the lines of ``transitions.jsonl``; ``step_ends``: in seconds."""
    admissions: list[float] = []
    positions: dict[str, int] = {}
    claimed: dict[str, float] = {}
    claims: list[float] = []
    published: dict[str, tuple[float, int]] = {}  # when, and how many versions sampled it
    batched: dict[int, tuple[float, list[str]]] = {}
    for line in transitions:
        when, groups = int(line["id"].partition("-")[0]) / 1e3, line["groups"]
        if line["kind"] == "admitted":
            admissions.append(when)
            positions |= {group: len(positions) + place for place, group in enumerate(groups)}
        elif line["kind"] == "claimed":
            claims.append(when)
            claimed |= dict.fromkeys(groups, when)
        elif line["kind"] == "published":
            published |= dict.fromkeys(groups, (when, len(line["versions"])))
        elif line["kind"] == "batched":
            batched[line["step"]] = when, groups
        elif line["kind"] == "extended":
            batched[line["step"]] = when, [*batched[line["step"]][1], *groups]
    steps = [
        step for step in range(first + 1, last + 1) if step in batched and step - 1 in step_ends and step in step_ends
    ]
    trained = [group for step in steps for group in batched[step][1]]
    ready = {step: max(published[group][0] for group in batched[step][1]) for step in steps}
    began = [when for when in admissions if step_ends[first] <= when <= step_ends[last]]
    return {
        "offer": _median(_next(admissions, step_ends[step - 1]) for step in steps),
        "claim": _median(_next(claims, when) for when in began),
        "generate": _median(
            published[group][0]
            - claimed[group]
            - trace.seconds(positions[group])
            - (published[group][1] - 1) * trace.update_s
            for group in trained
        ),
        "batch": _median(batched[step][0] - max(ready[step], step_ends[step - 1]) for step in steps),
        "train": _median(step_ends[step] - batched[step][0] - trace.step_s for step in steps),
    }


def _next(moments: list[float], moment: float) -> float | None:
    """From ``moment`` to the first of ``moments``, which are in order, behind it."""
    place = bisect.bisect_left(moments, moment)
    return moments[place] - moment if place < len(moments) else None


def _median(seconds: Iterable[float | None]) -> float | None:
    found = [s for s in seconds if s is not None]
    return round(statistics.median(found) * 1e3, 1) if found else None
