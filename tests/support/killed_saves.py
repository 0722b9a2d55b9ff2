"""Learners that are killed (kill -9) in the middle of an asynchronous save: put in place through ``[topology]``.

A life of the learner is due for one moment of MOMENTS, the next one that no life before it has met. Who meets it notes it in
the run directory and is gone: nothing is flushed, nobody is told.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from recording_learner import RecordingLearner

from actors import learner_saves
from actors.runtime.context import ActorContext
from bus.messages import Group
from miles_async.train import checkpoint
from miles_async.train.trainer import Trainer

BOTH = -1
# moment: the rank that is killed, in the order in which they come about
MOMENTS = {
    "before the copy": 0,
    "behind the copy": 1,
    "in a shard": 0,
    "between the shards of two ranks": 1,
    "behind the shards": 0,
    "before the checksums": 0,
    "before the rename": 0,
    "before latest": 0,
    "before the commit": 0,
    "behind the commit": 0,
    "in the next step": 1,
    "in the next step, all": BOTH,
}
NEVER_DURABLE = 7  # so many of them leave no checkpoint of the version that is being saved


def noted(run_dir: Path) -> list[str]:
    """The moments that were met, in their order."""
    return [path.name.split("-", 2)[2] for path in sorted(run_dir.glob("killed-*"))]


class LearnerKilledWhileSaving(RecordingLearner):
    """Of two ranks that each write a shard."""

    def __init__(self, ctx: ActorContext) -> None:
        super().__init__(ctx)
        self.due = next((moment for moment in MOMENTS if moment not in noted(ctx.run_dir)), "")
        self.shards = self.ctx.run_dir / f"shard-of-0-{ctx.incarnation}"
        if self.due:
            self._plant()

    def _come_to(self, moment: str) -> None:
        if moment == self.due and MOMENTS[moment] in (self.rank, BOTH):
            (self.ctx.run_dir / f"killed-{list(MOMENTS).index(moment):02d}-{moment}").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def _plant(self) -> None:
        from miles_async.train import dist_save  # imports Megatron, for which the shim has to be there

        writer: Any = dist_save._Writer
        self._before(Trainer, "begin_checkpoint", lambda *_: self._come_to("before the copy"))
        self._before(writer, "write", self._before_the_shard)
        self._behind(writer, "write", self._behind_the_shard)
        self._behind(writer, "_written", lambda *_: self._come_to("in a shard"))
        self._before(writer, "finish", lambda *_: self._come_to("behind the shards"))
        self._before(checkpoint.checksums, "write", lambda *_: self._come_to("before the checksums"))
        self._behind(checkpoint, "_fsync", self._behind_fsync)
        settle = learner_saves.settle

        async def settled(*args: Any) -> None:
            self._come_to("before the commit")
            await settle(*args)
            self._come_to("behind the commit")

        learner_saves.settle = settled  # pyright: ignore[reportPrivateImportUsage]

    @staticmethod
    def _before(owner: Any, name: str, call: Callable[..., Any]) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            call(*args)
            return function(*args, **kwargs)

        setattr(owner, name, wrapped)

    @staticmethod
    def _behind(owner: Any, name: str, call: Callable[..., Any]) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            call(*args)
            return found

        setattr(owner, name, wrapped)

    def _before_the_shard(self, *_: Any) -> None:
        self._come_to("behind the copy")
        if self.due == "between the shards of two ranks" and self.rank == 1:
            while not self.shards.exists():
                time.sleep(0.005)
            self._come_to(self.due)
        while self.due.startswith("in the next step"):  # this thread goes on no more
            time.sleep(1.0)

    def _behind_the_shard(self, *_: Any) -> None:
        if self.rank == 0:
            self.shards.touch()

    def _behind_fsync(self, path: Path) -> None:
        if path.name.startswith(".writing-"):
            self._come_to("before latest" if path.name.endswith("latest") else "before the rename")

    def _train(self, groups: list[Group], *, ticks: bool) -> dict[str, float]:
        if self.due.startswith("in the next step") and self.saves.on_its_way:
            self._come_to(self.due)
        return super()._train(groups, ticks=ticks)


class LearnerWhoseFirstSaveHangs(RecordingLearner):
    """In its shard, until it is killed; the steps go on."""

    def __init__(self, ctx: ActorContext) -> None:
        super().__init__(ctx)
        from miles_async.train import dist_save

        once = ctx.run_dir / "save-hangs"

        def hang(*_: Any) -> None:
            if not once.exists():
                once.touch()
                while True:
                    time.sleep(1.0)

        LearnerKilledWhileSaving._behind(dist_save._Writer, "_written", hang)
