"""The checkpoints of a learner on their way to the disk: written in the step's place, or beside the steps that follow.

    version v ──► copy ──► the learner trains v + 1, v + 2, ...                 (checkpoint.async_save)
                   └─► a thread: shards, checksums, rename, latest ──► commit in the ledger

Promises: the ledger hears of a version only when all of its files are durable, those of every rank; at most one is on its way,
the next one waits for it, and so does the end of the run; a write that fails ends the learner with what the write raised, at
the latest when the learner next looks at what there is to train.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.learner_checkpoints import settle
from actors.learner_report import LearnerReport
from actors.runtime.compute import ComputeThread
from actors.runtime.context import ActorContext
from bus import Ledger
from bus.waits import WaitKind

if TYPE_CHECKING:
    from miles_async.train.backend import LearnerBackend


class LearnerSaves:
    """Of one rank. ``last``: the newest version that is durable; -1: there is none. ``on_its_way``: the one that is being
    written beside the steps, or was last."""

    def __init__(
        self, ctx: ActorContext, ledger: Ledger, report: LearnerReport, compute: ComputeThread, writer: ComputeThread
    ) -> None:
        """compute: the thread that trains; writer: the one beside it."""
        self._ctx, self._ledger, self._report = ctx, ledger, report
        self._beside = ctx.config.checkpoint.async_save
        self._compute, self._writer = compute, writer
        self.on_its_way: asyncio.Task[None] | None = None
        self._version = 0  # of that one
        self._spent: dict[str, float] = {}
        self.last = -1

    async def save(self, trainer: LearnerBackend, root: Path, extra: dict[str, Any]) -> None:
        """Save what ``trainer`` is now, below ``root``; with checkpoint.async_save this returns when it may go on. The one
        before it must have :meth:`ended`."""
        started, self._version = time.monotonic(), trainer.version
        if self._beside:
            with self._waiting():
                write = await self._compute(trainer.begin_checkpoint, root, extra)
            self.on_its_way = asyncio.create_task(self._write(self._version, write), name="checkpoint")
        else:
            with self._waiting():
                directory = await self._compute(trainer.save_checkpoint, root, extra)
            await self._durable(self._version, directory, self._compute)
        self._stood_still(started)

    async def ended(self) -> None:
        """Until none is on its way. Raises what its write did."""
        if self.on_its_way is not None:
            started = time.monotonic()
            with self._waiting():
                await self.on_its_way
            self.on_its_way = None
            self._stood_still(started)

    def check(self) -> None:
        """Raises what the write of the one on its way did, if that has failed."""
        if self.on_its_way is not None and self.on_its_way.done():
            self.on_its_way.result()

    def spent(self) -> dict[str, float]:
        """Seconds that saving took since this was last asked, as metrics."""
        spent, self._spent = self._spent, {}
        return spent

    async def _write(self, version: int, write: Callable[[], Path]) -> None:
        started = time.monotonic()
        directory = await self._writer(write)
        self._spent["perf/save_write_time"] = time.monotonic() - started
        await self._durable(version, directory, self._writer)

    async def _durable(self, version: int, directory: Path, thread: ComputeThread) -> None:
        previous, self.last = max(self.last, 0), version
        if self._ctx.index == 0:
            await settle(self._ctx, self._ledger, version, previous)
            await self._report.saved(version, directory, thread)

    def _waiting(self) -> Any:
        return self._ctx.waiting(WaitKind.CHECKPOINT, version=self._version)

    def _stood_still(self, since: float) -> None:
        name = "perf/save_model_time"
        self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - since
