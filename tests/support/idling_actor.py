"""An actor in a process of its own, of which a test decides when it is replaced, stopped or cut off.

``python -m idling_actor URL RUN_ID INCARNATION LEASE_S MODE``: it is called "worker-0", and says the event "lives" over and
over. With MODE "hangs" it holds up its event loop from the first one on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from actors.runtime.context import ActorContext, run_actor
from actors.runtime.spec import ActorSpec
from miles_async.config.schema import Data, Model, Monitor, Run, RunConfig

NAME = "worker-0"
PAUSE_S = 0.02


class IdlingActor:
    role = "worker"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx

    async def run(self) -> None:
        await self.ctx.event("lives")
        while MODE == "hangs":
            time.sleep(0.1)  # noqa: ASYNC251
        while not self.ctx.stop.is_set():
            await self.ctx.event("lives")
            await asyncio.sleep(PAUSE_S)


@contextlib.contextmanager
def idling(
    url: str, run_id: str, incarnation: int, *, lease_s: float = 300.0, mode: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """The process, which is gone after the block. What it logs comes out of its ``stderr``."""
    command = [sys.executable, "-m", "idling_actor", url, run_id, str(incarnation), str(lease_s), mode]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


if __name__ == "__main__":
    URL, RUN_ID, INCARNATION, LEASE_S, MODE = sys.argv[1:]
    logging.basicConfig(level=logging.INFO)
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        run=Run(bus_lease_s=float(LEASE_S)),
        monitor=Monitor(heartbeat_s=0.1),
    )
    spec = ActorSpec(NAME, "worker", 0, "", config, Path(), "", URL, RUN_ID, int(INCARNATION))
    asyncio.run(run_actor(spec, IdlingActor))
