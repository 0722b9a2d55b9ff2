"""Which groups each step of a run trained on: a fold over the ledger's transitions. Pure.

Promises: a group is the attempt that had been published when its step was recorded, also where its lease made it more than once
(a Redis that lost its end has it made again); of a step that was recorded twice (its learner's ledger had lost its end) the
last record counts, and no step behind it is left: the ledger had forgotten those, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from miles_async.monitor.record_lines import TransitionLine

HELD = "held"  # what put_into of the ledger's scripts says of a step that may be extended
LOST = "invalid_payload"  # the reason of a group that was quarantined because its payload was gone (actors/learner_share.py)


class Attempt(NamedTuple):
    """At a group, that was published. ``graded``: when its rewards were there, in seconds since the epoch; 0: not on record."""

    lease: str = ""
    graded: float = 0.0


@dataclass
class RecordedStep:
    """What a step was recorded with."""

    groups: tuple[str, ...]
    sizes: tuple[int, ...]  # of the batches that it is of, more than one where its weights were held
    ended: bool = True  # whether its weights changed, as far as the record goes
    quarantined: set[str] = field(default_factory=set)  # of these, those that were left out before the step trained
    lost: set[str] = field(default_factory=set)  # of the quarantined, those whose payload was gone
    max_lag: int | None = None  # that they were chosen under; None: an earlier version of this program did not say
    masks: bool = False  # whether tokens beyond it were left out of the loss

    @property
    def trained(self) -> tuple[str, ...]:
        """The groups that the step trained on, in their order."""
        return tuple(group_id for group_id in self.groups if group_id not in self.quarantined)


class Steps:
    """Fed line by line. ``recorded``: by their numbers. ``published``: as which attempt a group of a step was."""

    def __init__(self) -> None:
        self.recorded: dict[int, RecordedStep] = {}
        self.published: dict[str, Attempt] = {}
        self._newest: dict[str, Attempt] = {}  # as which any group was, the last time

    def add(self, line: TransitionLine) -> None:
        """The next line of ``transitions.jsonl``."""
        step = self.recorded.get(line.step)
        if line.kind in ("batched", "extended"):
            self.published.update((group_id, self._newest.get(group_id, Attempt())) for group_id in line.groups)
        if line.kind == "published":
            self._newest[line.groups[0]] = Attempt(line.by, line.graded)
        elif line.kind == "batched":
            for forgotten in [number for number in self.recorded if number > line.step]:
                del self.recorded[forgotten]
            self.recorded[line.step] = _begun(line)
        elif step is not None and line.kind == "extended":
            step.groups, step.sizes = (*step.groups, *line.groups), (*step.sizes, len(line.groups))
            step.ended = line.detail != HELD
        elif step is not None and line.kind == "quarantined":
            step.quarantined.update(line.groups)
            if line.reason == LOST:
                step.lost.update(line.groups)


def _begun(line: TransitionLine) -> RecordedStep:
    """The step as it was recorded first."""
    return RecordedStep(
        line.groups,
        (len(line.groups),),
        ended=line.detail != HELD,
        max_lag=line.max_lag if line.max_lag >= 0 else None,
        masks=line.masked_tokens >= 0,
    )
