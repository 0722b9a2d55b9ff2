"""Every moment of every group and every update of a simulation, as the lines that a run leaves of them.

Promises: the lines are those of ``transitions.jsonl`` and ``metrics.jsonl``, in the order of time, which is the simulation's,
to the millisecond; who is not asked for them costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bus.messages import ReadyGroup
from miles_async.simulation.events import Events
from miles_async.simulation.samples import SimulatedGroup

HELD = "held"  # what the ledger's scripts say of a step that may be extended


class Moments:
    """``transitions``: of groups, and ``updates``: a line for each wave; None where nobody wants them."""

    def __init__(self, events: Events, *, transitions: bool, updates: bool) -> None:
        self._events = events
        self.transitions: list[dict[str, Any]] | None = [] if transitions else None
        self.updates: list[dict[str, Any]] | None = [] if updates else None

    def admitted(self, groups: Iterable[SimulatedGroup]) -> None:
        if self.transitions is not None:
            self._add("admitted", [group.group_id for group in groups])

    def claimed(self, group: SimulatedGroup) -> None:
        if self.transitions is not None:
            self._add("claimed", [group.group_id], by=f"rollout-{group.worker}/1", attempt=group.attempt)

    def published(self, ready: ReadyGroup) -> None:
        self._add("published", [ready.group_id], lengths=ready.lengths, versions=ready.versions)

    def batched(self, chosen: Sequence[str], step: int, *, begins: bool, ticks: bool) -> None:
        """``step``: that has them; ``begins``: they are its first batch."""
        self._add("batched" if begins else "extended", chosen, step=step, detail="" if ticks else HELD)

    def dropped(self, group: SimulatedGroup, reason: str, *, whole: bool) -> None:
        """whole: all of its tokens had been made."""
        if self.transitions is not None:
            self._add("dropped", [group.group_id], reason=reason, lengths=tuple(group.drawn.lengths) if whole else ())

    def updated(self, version: int, engines: Sequence[str], seconds: float) -> None:
        """A wave of engines has a version, for which each of them generated nothing for so long."""
        if self.updates is not None:
            values = {"weights/update_s": seconds} | {f"weights/paused_s/{name}": seconds for name in engines}
            self.updates.append({"actor": "broadcaster", "step": version, "time": self._events.now, "values": values})

    def _add(self, kind: str, groups: Sequence[str], **values: Any) -> None:
        if self.transitions is not None:
            entry = f"{round(self._events.now * 1000)}-{len(self.transitions)}"
            told = {name: value for name, value in values.items() if value}
            self.transitions.append({"id": entry, "kind": kind, "groups": groups, **told})
