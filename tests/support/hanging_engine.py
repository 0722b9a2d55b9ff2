"""An engine host for ``[topology]`` whose compute thread hangs in the middle of a step while a file ``hang`` is there."""

from __future__ import annotations

import time

from actors.engine import EngineHost
from miles_async.engines.embedded.scheduler import Scheduler
from miles_async.engines.embedded.step_output import StepOutput


class HangingEngine(EngineHost):
    async def run(self) -> None:
        step, flag = Scheduler.step, self.ctx.run_dir / "hang"

        def hanging(self: Scheduler) -> StepOutput:
            while flag.exists():
                time.sleep(0.05)
            return step(self)

        Scheduler.step = hanging
        await super().run()
