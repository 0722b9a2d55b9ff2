"""What the broadcaster tells of its engines: every line of the ledger of versions that it writes, and the news with it.

Promises: an engine is announced only in the life in which it was updated, and not while it is down, however late this
process gets to it (each change is a compare-and-set, ``bus/version_ledger.py``); a line that somebody else has written over is
written again; the line of an engine that leaves goes when it is down and no update is under way there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

from actors.runtime.context import ActorContext
from bus import EngineState, VersionLedger
from bus.messages import EngineDown, EngineUp, Snapshot
from miles_async.weights.fleet import Fleet, Member

_Moves = Literal["starting", "updating", "serving"]
MEND_S = 1.0  # how soon a damaged line of the ledger of versions is right again


class Announcements:
    """What one broadcaster announces about the engines of its ``fleet``. ``wave``: those that are being updated."""

    def __init__(self, ctx: ActorContext, fleet: Fleet) -> None:
        self.ctx, self.fleet = ctx, fleet
        self.ledger = VersionLedger(ctx.bus)
        self.wave: set[str] = set()
        self._written: dict[str, EngineState] = {}  # each line as it was when we wrote or read it last
        self._writing = asyncio.Lock()  # a line and what is remembered of it change together

    # what the fleet is told

    async def hear(self, message: EngineUp | EngineDown) -> None:
        """Fold what is said of an engine, and have its line say so, too."""
        async with self._writing:
            if isinstance(message, EngineUp):
                line = await self.ledger.heard(message)
                self.fleet.fold(message)
                self._adopt(message.engine, line)
            else:
                self.fleet.fold(message)
                await self.ledger.down(message.engine, message.reason, message.incarnation, message.epoch, told=True)

    def _adopt(self, name: str, line: EngineState) -> None:
        """What a line says of a life is so, whatever was heard of it before."""
        self._written[name] = line
        member = self.fleet.members.get(name)
        if member is not None and line.incarnation == member.incarnation:
            member.epoch = line.epoch
            member.down = member.down or line.state == "down"

    def resume(self, lines: Mapping[str, EngineState]) -> None:
        """Go on from the lines that a former broadcaster has left."""
        for name, line in lines.items():
            self._adopt(name, line)
            if line.state in ("serving", "updating"):
                self.fleet.assume_serving(name, line.incarnation, line.version)

    # what the others hear

    async def updating(self, member: Member) -> bool:
        """False: it is down by now, or was started again. One that serves nothing yet stays without requests meanwhile."""
        state = "starting" if member.served is None else "updating"
        return await self._move(member, state, member.version) is not None

    async def serves(self, member: Member, snapshot: Snapshot) -> None:
        """An engine has confirmed these weights; unless its life is over, it gets requests from now on."""
        if self.fleet.members.get(member.name) is not member or member.down:
            return  # it went away, or was started again, meanwhile
        if await self._move(member, "serving", snapshot.version) is not None:
            member.serve(snapshot)

    async def _move(self, member: Member, state: _Moves, version: int) -> EngineState | None:
        async with self._writing:
            moved = await self.ledger.move(member.name, _line(member), state, version)
            if moved is not None:
                self._written[member.name] = moved
            else:
                member.down = True  # the news of it is on its way; one that answers after all is brought back
        return moved

    async def down(self, member: Member, why: str) -> None:
        await self.ctx.event("engine_down", engine=member.name, cause=why)
        async with self._writing:
            member.down = True
            if await self.ledger.down(member.name, why, member.incarnation, member.epoch):
                self._written[member.name] = _line(member, "down")

    async def back(self, member: Member) -> bool:
        """One that was down answers. False: it is another one by now, of which its host tells."""
        async with self._writing:
            if self.fleet.members.get(member.name) is not member or not member.down:
                return False
            line = await self.ledger.back(member.name, _line(member))
            if line is None or self.fleet.members.get(member.name) is not member:
                return False
            self._written[member.name], member.epoch = line, line.epoch
            member.come_back()
        await self.ctx.event("engine_back", engine=member.name)
        return True

    # lines that are wrong, or nobody's any more

    async def mend(self) -> None:
        """Keep the ledger of versions as it was written: without its lines nobody would be given work."""
        while not self.ctx.stop.is_set():
            await asyncio.sleep(MEND_S)
            lines = await self.ctx.engine_states()
            await self.let_go(lines)
            for name in [name for name, ours in self._written.items() if lines.get(name) != ours]:
                await self._mend_line(name)

    async def _mend_line(self, name: str) -> None:
        async with self._writing:
            if name in self._written and name not in self.ctx.roster.leaving:
                self._adopt(name, await self.ledger.mend(name, self._written[name]))

    async def let_go(self, lines: Mapping[str, EngineState]) -> None:
        """Forget the engines that leave, each when the router has said that it is down and no update is under way there.

        The supervisor ends an engine's process when its line is gone. Until it is down an engine that leaves is updated like
        any other: its last requests may take long, and nothing is admitted that an old version could make too stale.
        """
        for name in self.ctx.roster.leaving:
            member = self.fleet.members.get(name)
            if member is not None and member.served is None:  # no request has ever been sent there
                member.down = True
            if member is not None and (name in self.wave or not member.down):
                continue
            async with self._writing:
                if name in lines and not await self.ledger.forget(name, lines[name]):
                    continue  # it has changed since it was read: at the next look
                self._written.pop(name, None)
                if self.fleet.members.get(name) is member:
                    self.fleet.members.pop(name, None)


def _line(member: Member, state: Literal["starting", "down"] = "starting") -> EngineState:
    return EngineState(member.url, member.incarnation, member.version, state, member.epoch)
