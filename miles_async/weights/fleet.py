"""What the broadcaster knows: the newest snapshot, the engines, and who is updated next.

Promises: pure (messages in, decisions out); an engine's record is replaced, never mixed, when it comes back with a new
incarnation; the split into waves depends on the engines' names only, so that groups can be kept from version to version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.messages import EngineDown, EngineUp, Message, Snapshot

UNKNOWN = -1  # incarnation of weights that we did not send ourselves


@dataclass(eq=False)
class Member:
    """One engine in one incarnation. ``served`` is the (incarnation, version) of the snapshot it confirmed to us."""

    name: str
    url: str
    incarnation: int
    version: int
    served: tuple[int, int] | None = None
    fresh: bool = True  # nobody has touched its weights since it started
    down: bool = False
    ranks: int | None = None  # tensor-parallel size, once asked
    epoch: int = 0  # of its line in the ledger of versions: with the incarnation, which life of the engine this is

    def serve(self, snapshot: Snapshot) -> None:
        self.version, self.served, self.fresh = snapshot.version, key(snapshot), False

    def come_back(self) -> None:
        self.down, self.served, self.fresh = False, None, False


def key(snapshot: Snapshot) -> tuple[int, int]:
    """What orders snapshots: a learner that restarted may publish a lower version that is newer all the same."""
    return (snapshot.incarnation, snapshot.version)


@dataclass
class Fleet:
    """The fold of the ``weights`` stream."""

    newest: Snapshot | None = None
    members: dict[str, Member] = field(default_factory=dict)

    def fold(self, message: Message) -> None:
        """Take in one message; what is older than what we know is ignored."""
        if isinstance(message, Snapshot):
            if self.newest is None or key(message) >= key(self.newest):
                self.newest = message
        elif isinstance(message, EngineUp):
            self._up(message)
        elif isinstance(message, EngineDown):
            member = self.members.get(message.engine)
            if member is not None and _is_of(message, member):
                member.down = True

    def assume_serving(self, name: str, incarnation: int, version: int) -> None:
        """What the ledger says of an engine that a former broadcaster served: it takes its turn in the waves."""
        member = self.members.get(name)
        if member is not None and member.incarnation == incarnation and member.served is None:
            member.version, member.served, member.fresh = version, (UNKNOWN, version), False

    def _up(self, message: EngineUp) -> None:
        known = self.members.get(message.engine)
        if known is not None and known.incarnation > message.incarnation:
            return
        # an address belongs to who announced it last: the port of a dead engine may have been given to another one
        self.members = {name: m for name, m in self.members.items() if m.url != message.url or name == message.engine}
        member = Member(message.engine, message.url, message.incarnation, message.version, epoch=message.epoch)
        # an engine that says it twice may have been updated in between
        member.fresh = known is None or known.incarnation < message.incarnation
        self.members[message.engine] = member


def _is_of(down: EngineDown, member: Member) -> bool:
    """Not of a life that is over: an engine may have come back since that was said."""
    if down.incarnation == member.incarnation and down.epoch:
        return down.epoch >= member.epoch
    return down.incarnation >= member.incarnation


def wave_partition(fleet: Fleet, waves: int) -> list[list[Member]]:
    """The serving engines in at most ``waves`` parts of nearly equal size."""
    serving = sorted((m for m in fleet.members.values() if m.served is not None and not m.down), key=lambda m: m.name)
    return [part for part in (serving[i::waves] for i in range(waves)) if part]


def next_wave(fleet: Fleet, waves: int) -> list[Member]:
    """Who is updated now: first all that serve nothing yet (they hold up nobody), else the wave that is furthest behind.

    Empty: everybody has the newest snapshot, or there is none.
    """
    if fleet.newest is None:
        return []
    joining = sorted((m for m in fleet.members.values() if m.served is None and not m.down), key=lambda m: m.name)
    if joining:
        return joining
    target = key(fleet.newest)
    behind = [
        (min(m.served for m in wave if m.served is not None), number, wave)
        for number, wave in enumerate(wave_partition(fleet, waves))
        if any(m.served != target for m in wave)
    ]
    return min(behind)[2] if behind else []
