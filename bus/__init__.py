"""The message bus: typed messages, their codec, topics on Redis Streams, the ledger, the embedded server."""

from bus.client import Bus, EngineState, Roster
from bus.dial import connect
from bus.errors import BusError, LedgerError, NoRedisError
from bus.ledger import Ledger, balanced
from bus.run_key import run_key
from bus.snapshot_ledger import SnapshotLedger
from bus.version_ledger import VersionLedger

__all__ = [
    "Bus",
    "BusError",
    "EngineState",
    "Ledger",
    "LedgerError",
    "NoRedisError",
    "Roster",
    "SnapshotLedger",
    "VersionLedger",
    "balanced",
    "connect",
    "run_key",
]
