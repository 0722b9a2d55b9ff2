"""What both kinds of router follow: the lines of the ledger of versions, at each news of weights.

Promises: whoever follows reads the ledger itself, so that news that is late, or lost, changes nothing but the time at which it
is read; an engine that leaves is reported down in the life in which it leaves, and in no later one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from actors.runtime.context import ActorContext
from bus import EngineState, VersionLedger
from bus.topics import Topic


async def follow_lines(ctx: ActorContext, block_ms: int) -> AsyncIterator[Mapping[str, EngineState]]:
    """The lines of all engines: now, at each news of weights, and at the latest ``block_ms`` after the last time."""
    cursors: dict[Topic, str] = {"weights": await ctx.bus.last_id("weights")}
    while not ctx.stop.is_set():
        yield await ctx.engine_states()
        await ctx.bus.wait_for_news(cursors, block_ms=block_ms)


def serves(line: EngineState) -> bool:
    """Whether an engine gets requests by its line."""
    return line.state in ("serving", "updating")


async def report_gone(ledger: VersionLedger, name: str, line: EngineState, why: str) -> None:
    """An engine that leaves gets no more requests: say so in the ledger, for the life that its line is of."""
    await ledger.down(name, why, line.incarnation, line.epoch)
