"""What the supervisor asks of whoever gives actors a place to run: this machine, or many.

Promises of every placement: an actor is addressed by its name and incarnation, and by nothing else; where it runs, and by what
number or handle it is reached there, is the placement's own affair; its end is told once, also if it was killed; an actor
that has ended is not in the way of its next incarnation; after ``close`` nothing that it started is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from actors.runtime.lease import LAST_WORDS
from actors.runtime.spec import ActorId, ActorSpec
from bus.server import RedisServer
from miles_async.config.schema import RunConfig
from miles_async.monitor.diagnosis import Process


class NoPlaceError(OSError):
    """There is no place for an actor, or none for all of them: one line that says what is asked for, and what there is."""


class Room(NamedTuple):
    """What there is for the actors of a role. ``free``: how many more could come now; ``waiting``: who has no place yet, and
    for how many seconds; ``noticed``: who is on a machine that is about to be taken back; ``kept``: for how many of them
    the places that are kept are there, taken or not; ``lost``: the machines of those that are not."""

    free: int = 0
    waiting: Mapping[str, float] = {}
    noticed: frozenset[str] = frozenset()
    kept: int = 0
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ending:
    """How an actor has ended. ``in_order``: of itself, without an error. ``how``: for people, where it has said nothing."""

    in_order: bool
    how: str


def exit_words(code: int) -> str:
    """What the exit code of a process says to people; negative: the signal that ended it."""
    if code in LAST_WORDS:
        return LAST_WORDS[code]
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class Placement(Protocol):
    """One launch's. All of it is called from the supervisor's event loop."""

    @property
    def one_machine(self) -> bool:
        """Whether all actors are on the launch's machine, and share its memory."""
        ...

    def own_bus(self, config: RunConfig, run_dir: Path) -> RedisServer:
        """A server of the run's own, not started, whose URL the actors reach wherever they are."""
        ...

    def warm_up(self) -> None:
        """Prepare for actors, while the launch does other things. Raises NoPlaceError: what is asked for can never be had."""
        ...

    async def make_room(self, tell: Callable[[str], None]) -> None:
        """Wait until there is a place for every actor of the configuration; ``tell`` hears what is waited for.

        Raises NoPlaceError: not in time.
        """
        ...

    def start(self, spec: ActorSpec) -> None:
        """Start the actor of ``spec``, with the ``site`` that it has there. Raises OSError: there is no place for another."""
        ...

    def running(self) -> list[ActorId]:
        """The actors that have not ended, in the order in which they were started."""
        ...

    async def ended(self, actor: ActorId) -> Ending:
        """Wait for the end of an actor that was started; told once."""
        ...

    def terminate(self, actor: ActorId, *, by_force: bool = False) -> None:
        """Ask an actor to stop, or (``by_force``) end it at once. Of one that has ended: nothing."""
        ...

    def look(self) -> Mapping[str, Process]:
        """What is seen of the running actors, by name; and of a helper of the placement's, where that is amiss."""
        ...

    async def room(self, role: str) -> Room:
        """What there is for actors of ``role``; where none comes or goes by itself: nothing."""
        ...

    async def rearrange(self, role: str) -> None:
        """Actors of ``role`` are about to start, the first of them in the kept places that are there. Who is to be beside the
        first and waits for a place elsewhere is ended: its next life is there."""
        ...

    def go_on(self) -> None:
        """Have the placement's own helpers run, where somebody has stopped one: without them no end is seen."""
        ...

    def end(self) -> None:
        """End every actor at once, and wait a moment for their ends."""
        ...

    def close(self) -> None:
        """The launch is over: nothing is left, helpers included. Safe to call twice."""
        ...
