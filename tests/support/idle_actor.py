"""An actor that does nothing until it is told to stop."""

from __future__ import annotations

from actors.runtime.context import ActorContext


class Idle:
    role = "dealer"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx

    async def run(self) -> None:
        await self.ctx.stop.wait()
