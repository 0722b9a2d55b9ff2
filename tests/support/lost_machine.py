"""A placement whose machine is lost and comes back: all its actors stop and count as ended, and when their successors have got
on they go on where they stood, as the processes of a machine do that was only cut off."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from elsewhere import Elsewhere
from launching import metrics

from actors.runtime.placement.base import Ending
from actors.runtime.spec import ActorId, ActorSpec

LOST = Ending(False, "its machine was lost")
LOOK_S = 0.05
PATIENCE_S = 120.0


class LostMachine(Elsewhere):
    """``lose_at``, ``back_at``: steps of the learner. ``endings``: how those who were lost have ended at last."""

    def __init__(self, run_dir: Path, lose_at: int, back_at: int) -> None:
        super().__init__(victim=ActorId("nobody", 0))
        self.run_dir, self.lose_at, self.back_at = run_dir, lose_at, back_at
        self.lost: dict[ActorId, asyncio.Task[Ending]] = {}
        self.endings: dict[ActorId, Ending] = {}
        self._losing: dict[ActorId, asyncio.Event] = {}
        self._story: asyncio.Task[None] | None = None

    def start(self, spec: ActorSpec) -> None:
        super().start(spec)
        self._story = self._story or asyncio.create_task(self._lose_and_come_back())

    def running(self) -> list[ActorId]:
        return [actor for actor in self.local.running() if actor not in self.lost]

    async def ended(self, actor: ActorId) -> Ending:
        self._losing[actor] = asyncio.Event()
        end, losing = asyncio.create_task(self.local.ended(actor)), asyncio.create_task(self._losing[actor].wait())
        await asyncio.wait({end, losing}, return_when=asyncio.FIRST_COMPLETED)
        losing.cancel()
        if end.done():
            return end.result()
        self.lost[actor] = end
        return LOST

    def terminate(self, actor: ActorId, *, by_force: bool = False) -> None:
        if actor not in self.lost:
            super().terminate(actor, by_force=by_force)

    async def _lose_and_come_back(self) -> None:
        await self._step(self.lose_at)
        old = [process.pid for process in self.local._processes.values() if process.pid is not None]
        for pid in old:
            os.kill(pid, signal.SIGSTOP)
        for actor in self.running():
            self._losing[actor].set()
        await self._step(self.back_at)
        for pid in old:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_S):
            for actor, end in self.lost.items():
                self.endings[actor] = await end

    async def _step(self, step: int) -> None:
        record = self.run_dir / "metrics.jsonl"
        while not record.exists() or max((line["step"] for line in metrics(self.run_dir)), default=0) < step:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
