"""How the learner hands its weights over: written where their readers find them, announced in the run's record, and written
again for who found them damaged or not at all.

Promises: what is announced has the checksum that its file was sealed with; a broadcaster that asks for the weights of a version
again is answered while that is the learner's version (else newer ones are on their way); weights lie in memory only where all
who read them see it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from math import prod
from pathlib import Path

from actors.runtime.context import ActorContext
from actors.runtime.plan import names_of
from bus import SnapshotLedger
from bus.messages import Control, Snapshot
from miles_async.evaluation import settings as evaluation
from miles_async.evaluation.pins import pin
from miles_async.train.backend import LearnerBackend
from miles_async.weights.export import outgoing
from miles_async.weights.place import pins_kept
from miles_async.weights.snapshot import SnapshotError, write_where_there_is_room
from miles_async.weights.transports.table import TRANSPORTS
from miles_async.weights.verify import announced_checksum

AGAIN = "snapshot_again"  # a command; its reason is the version


class Offers:
    """How rank 0 hands its weights over."""

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx = ctx
        self._ledger = SnapshotLedger(ctx.bus)
        self._cursor = "0"
        self._in_memory = True
        self._engines_read = TRANSPORTS.load(ctx.config.weights.transport).ENGINES_READ

    async def find_readers(self) -> None:
        """Before a snapshot is written: whether all who read it see the memory of this machine."""
        readers = names_of(self.ctx.config, ("broadcaster", *evaluation.ROLES))
        if self._engines_read and self.ctx.config.rollout.generates:
            readers |= (await self.ctx.read_roster()).engines
        self._in_memory = await self.ctx.spec.site.memory_reaches(readers, self.ctx.bus)

    def write(self, trainer: LearnerBackend, version: int) -> Path | None:
        """The snapshot of ``version``, kept for an evaluation where that is due; None: on other ranks than 0."""
        ctx = self.ctx
        specs, tensors = outgoing(ctx.config, trainer)
        if ctx.index != 0:
            deque(tensors, maxlen=0)  # collective: every rank takes part, rank 0 has the result
            return None
        size = sum(prod(shape) * dtype.itemsize for _, dtype, shape in specs)
        root = ctx.spec.site.snapshot_root(ctx.config, ctx.run_dir, size, in_memory=self._in_memory)
        who = (version, ctx.incarnation)
        path = write_where_there_is_room(root, ctx.run_dir, *who, specs, tensors, ctx.model_path)
        if evaluation.is_due(ctx.config.eval, version):
            with contextlib.suppress(SnapshotError):  # the evaluator will say that it is gone
                pin(path, pins_kept(ctx.config.eval))
        return path

    async def announce(self, version: int, path: Path | None) -> None:
        """Raises LedgerError: a later learner has spoken, or the version is none of this run's."""
        checksum = "" if path is None else announced_checksum(path)
        await self._ledger.announce(
            Snapshot(version=version, incarnation=self.ctx.incarnation, path=str(path), checksum=checksum)
        )

    async def is_asked_for(self, version: int) -> bool:
        """Whether somebody has asked for these weights again since the last call."""
        controls, self._cursor = await self.ctx.bus.read("control", Control, self._cursor)
        return any(control.command == AGAIN and control.reason == str(version) for control in controls)


async def ask_again(ctx: ActorContext, version: int) -> None:
    """Ask the learner to write its weights again, by who cannot use what it has written."""
    await ctx.bus.publish("control", Control(command=AGAIN, roles=("learner",), reason=str(version)))


class Unseen:
    """Weights that were announced and that one process does not see: they may lie in the memory of another machine, that of the
    process before it."""

    def __init__(self, ctx: ActorContext, ledger: SnapshotLedger) -> None:
        self.ctx, self._ledger = ctx, ledger
        self._asked_for: Snapshot | None = None

    async def ask_for(self, snapshot: Snapshot) -> None:
        """Ask the learner for it again, once: it knows then that its memory is not seen. Nothing, where none announced it."""
        if not await self._ledger.knows(snapshot):
            return
        self.ctx.bus.refuse("weights", snapshot.path, SnapshotError("no weights lie there"))
        why = f"this machine sees none at {snapshot.path}"
        await self.ctx.event("snapshot_gone", version=snapshot.version, cause=why)
        if self._asked_for != snapshot:
            self._asked_for = snapshot
            await ask_again(self.ctx, snapshot.version)
