"""Snapshots as a learner announces them, in a ledger that has batches for any version."""

from __future__ import annotations

from pathlib import Path

from bus import Bus, SnapshotLedger
from bus.messages import Snapshot
from miles_async.weights.verify import announced_checksum


async def announce(bus: Bus, version: int, incarnation: int = 1, path: Path | str = "nowhere") -> Snapshot:
    await bus.redis.hset(bus.key("l:meta"), "last_step", 10**6)
    checksum = announced_checksum(Path(path))
    snapshot = Snapshot(version=version, incarnation=incarnation, path=str(path), checksum=checksum)
    await SnapshotLedger(bus).announce(snapshot)
    return snapshot
