"""What a learner's process writes into the run's record: its own log-prob of each token that it trained.

Promises: the next step waits for no disk; a disk that takes nothing costs the record these log-probs, is told of once for each
cause, and is nothing to the run; at the end what is on its way is waited for, ``CLOSE_S`` at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from actors.runtime.context import ActorContext
from bus.messages import Group
from miles_async.recording.learner_log_probs import items
from miles_async.recording.recorder import recorder

CLOSE_S = 30.0


class LearnerRecord:
    """Of one life of a rank. ``wanted``: whether there is anything to be written at all."""

    def __init__(self, ctx: ActorContext) -> None:
        self.wanted = ctx.config.record.learner_log_probs
        self._ctx, self._owner = ctx, f"{ctx.name}/{ctx.incarnation}"
        self._recorder = recorder(ctx.config, ctx.run_dir, ctx.name, ctx.incarnation) if self.wanted else None
        self._writing: set[asyncio.Task[None]] = set()
        self._told: set[str] = set()

    def begin(self, step: int, groups: Sequence[Group], log_probs: npt.NDArray[np.float32] | None) -> None:
        """Have it written. log_probs: of LearnerBackend.token_log_probs, of these groups; None: another rank has them."""
        if self._recorder is not None and log_probs is not None:
            task = asyncio.create_task(self._write(step, groups, log_probs))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _write(self, step: int, groups: Sequence[Group], log_probs: npt.NDArray[np.float32]) -> None:
        assert self._recorder is not None
        found = items(step, groups, log_probs, self._owner)
        kept = await asyncio.gather(*(self._recorder.keep(*item) for item in found), return_exceptions=True)
        for error in kept:
            if error is not None and (cause := str(error) or type(error).__name__) not in self._told:
                self._told.add(cause)
                await self._ctx.event("log_probs_not_recorded", step=step, cause=cause)

    async def close(self) -> None:
        """The learner is about to end."""
        if self._recorder is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                while self._writing:
                    await asyncio.gather(*self._writing)
                await self._recorder.close()
        except TimeoutError:
            cause = f"the disk of record/ did not take them within {CLOSE_S:g} s"
            await self._ctx.event("log_probs_not_recorded", step=-1, cause=cause)
