"""The host of one engine for evaluation: an engine like the others, which nobody of the training knows.

Publishes: its address, once the engine answers. Consumes: nothing; prompts and weights come from the evaluator alone.

Keeps: it is never announced on ``weights``, so that the broadcaster does not update it and the router sends it nothing: its
weights change only between two points. It yields the processor to everybody else.
"""

from __future__ import annotations

import msgspec

from actors.engine import EngineHost
from actors.runtime.context import ActorContext


class EvalEngine(EngineHost):
    role = "eval_engine"

    def __init__(self, ctx: ActorContext) -> None:
        super().__init__(ctx)
        section = ctx.config.eval
        if section.urls:
            self.engine = msgspec.structs.replace(self.engine, kind="external", urls=section.urls)
        if section.engine_args is not None:
            self.engine = msgspec.structs.replace(self.engine, args=section.engine_args)

    async def run(self) -> None:
        await self.serve()

    async def announce(self, url: str) -> None:
        await self.ctx.bus.set_address(self.ctx.name, url)
        await self.ctx.event("engine_up", url=url)
