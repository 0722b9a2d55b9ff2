"""How many engines a run should have, by the room that its cluster has: pure.

Promises: who has had no place for long, or is on a machine that is taken back, leaves; others come, in their place and beyond,
as far as there is room; nobody leaves who would leave fewer than ``least``, and nobody who serves where fewer than ``least``
would serve then; of those that stay there are at most ``most``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Seen:
    """``engines``: those that were not asked to leave, oldest first. Of them: ``serving``, who answers requests; ``waiting``,
    who has no place yet; ``homeless``, who has had none for long; ``noticed``, whose machine is taken back. ``free``: how many
    more there is room for."""

    engines: tuple[str, ...]
    serving: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    homeless: frozenset[str] = frozenset()
    noticed: frozenset[str] = frozenset()
    free: int = 0


class Change(NamedTuple):
    """``come``: how many more; ``leave``: who, to be drained."""

    come: int = 0
    leave: tuple[str, ...] = ()


def decide(seen: Seen, least: int, most: int) -> Change:
    """What has to change now; asked again, it goes on from there."""
    going = (seen.homeless | seen.noticed) & set(seen.engines)
    staying = [name for name in seen.engines if name not in going]
    left, leave = set(seen.engines), list[str]()
    for name in reversed(seen.engines):
        if name in going and len(left) > least and _is_spared(name, left, seen.serving, least):
            left.discard(name)
            leave.append(name)
    # those in whose place others have come, and who have a place again themselves
    spare = sorted(reversed(staying), key=lambda name: (name not in seen.waiting, name in seen.serving))
    leave += spare[: max(0, len(staying) - most)]
    room = seen.free - len(seen.waiting - set(leave))  # who waits has it first
    return Change(max(0, min(room, most - len(staying))), tuple(leave))


def _is_spared(name: str, left: set[str], serving: frozenset[str], least: int) -> bool:
    return name not in serving or len(serving & left) > least
