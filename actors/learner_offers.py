"""How the learner hands its weights over: announced in the run's record, and written again for who found them damaged.

Promises: what is announced has the checksum that its file was sealed with; a broadcaster that asks for the weights of a version
again is answered while that is the learner's version (else newer ones are on their way).
"""

from __future__ import annotations

from pathlib import Path

from actors.runtime.context import ActorContext
from bus import SnapshotLedger
from bus.messages import Control, Snapshot

AGAIN = "snapshot_again"  # a command; its reason is the version


class Offers:
    """How rank 0 hands its weights over."""

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self._ledger = SnapshotLedger(ctx.bus)
        self._cursor = "0"

    async def announce(self, version: int, path: Path | None) -> None:
        """Raises LedgerError: a later learner has spoken, or the version is none of this run's."""
        from miles_async.weights.verify import announced_checksum  # imports torch

        checksum = "" if path is None else announced_checksum(path)
        await self._ledger.announce(
            Snapshot(version=version, incarnation=self.ctx.incarnation, path=str(path), checksum=checksum)
        )

    async def is_asked_for(self, version: int) -> bool:
        """Whether somebody has asked for these weights again since the last call."""
        controls, self._cursor = await self.ctx.bus.read("control", Control, self._cursor)
        return any(control.command == AGAIN and control.reason == str(version) for control in controls)


async def ask_again(ctx: ActorContext, version: int) -> None:
    """Ask the learner to write its weights again, by who cannot use what it has written."""
    await ctx.bus.publish("control", Control(command=AGAIN, roles=("learner",), reason=str(version)))
