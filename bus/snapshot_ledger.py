"""The ledger of snapshots: which weights the run's learner has announced, so that nothing else is taken for them.

Promises: what is recorded was announced by the learner of that incarnation, at a version that the ledger has batches for, and
before any later learner spoke or was begun (``bus/fence.py``); the record and the message on ``weights`` are written by one
atomic script, so that a message without its record is nobody's, and is refused.
"""

from __future__ import annotations

from pathlib import Path

from bus.client import Bus
from bus.codec import encode
from bus.errors import LedgerError
from bus.fence import FencedScript
from bus.messages import Snapshot

_SCRIPT = Path(__file__).parent / "scripts" / "snapshot.lua"


class SnapshotLedger:
    """Any process may hold one; only the learner announces."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._announce = FencedScript(bus, _SCRIPT.read_text())

    async def announce(self, snapshot: Snapshot) -> None:
        """Raises LedgerError: a later learner has spoken, or the ledger knows no batch of that step."""
        keys = [self.bus.key(name) for name in ("snapshots", "weights", "l:meta")]
        args = [snapshot.version, snapshot.incarnation, encode(snapshot)]
        done = int(await self._announce(keys=keys, args=args))
        if done != 1:
            why = "a learner of a later incarnation has spoken" if done == 0 else "the ledger has no batch of that step"
            raise LedgerError(f"weights of version {snapshot.version}, incarnation {snapshot.incarnation}: {why}")

    async def knows(self, snapshot: Snapshot) -> bool:
        """Whether exactly this was announced; what was not is refused."""
        field = f"{snapshot.incarnation}-{snapshot.version}"
        if await self.bus.redis.hget(self.bus.key("snapshots"), field) == encode(snapshot):
            return True
        self.bus.refuse(
            "weights", snapshot.path, LedgerError(f"no learner has announced version {snapshot.version} there")
        )
        return False
