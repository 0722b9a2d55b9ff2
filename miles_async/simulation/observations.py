"""When everything happened in a run: the material of a calibration. Pure; ``observed.py`` reads it.

Times are in seconds, of transitions by the clock of the bus, of generation by that of the worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class ObservedGroup:
    """Times of its last attempt; None: it did not come so far."""

    admitted: float | None = None
    began: float | None = None
    generated: float | None = None  # its last token was there
    graded: float | None = None
    published: float | None = None
    gone: float | None = None  # dropped
    reason: str = ""  # why
    lengths: tuple[int, ...] = ()
    prompt: int | None = None  # tokens; None: not on record


@dataclass
class ObservedStep:
    """``groups``: ids, of all its batches."""

    groups: list[str] = field(default_factory=list)
    batches: int = 0
    batched: float = 0.0  # the first of them
    ended: float | None = None
    train_s: float = 0.0
    save_s: float = 0.0  # that the learner stood still for a checkpoint before it


@dataclass
class ObservedUpdate:
    """Of a wave of engines to a version: when it ended, and how long each of them generated nothing."""

    version: int
    ended: float
    paused_s: dict[str, float]


@dataclass
class Observed:
    groups: dict[str, ObservedGroup] = field(default_factory=dict)
    steps: dict[int, ObservedStep] = field(default_factory=dict)
    updates: list[ObservedUpdate] = field(default_factory=list)
    admissions: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)  # when groups were batched or dropped: then others may begin


def whole(groups: Iterable[ObservedGroup]) -> list[ObservedGroup]:
    """Those that were generated from beginning to end, in the order in which they began."""
    found = [g for g in groups if g.began is not None and g.generated is not None and g.lengths and sum(g.lengths)]
    return sorted(found, key=lambda group: group.began or 0.0)
