"""The lines of the ledger of versions as a test wants them: actors change them by its rules only."""

from __future__ import annotations

import msgspec

from bus import Bus, EngineState


async def set_engine(bus: Bus, engine: str, url: str, incarnation: int, version: int, state: str) -> None:
    """Write a line whatever it was. Raises what Redis does."""
    line = EngineState(url, incarnation, version, state)  # type: ignore[arg-type]
    await bus.redis.hset(bus.key("engines"), engine, msgspec.msgpack.encode(line))
