"""What a learner does about its checkpoints beside writing them: where it goes on from, and what the ledger may forget.

Promises: a learner begins with the newest checkpoint that is as it was written, and says which one was not; the ledger
forgets the groups of a step only when the second newest checkpoint contains it, so that the older one is of use. Where there
is no such margin (``checkpoint.keep = 1``, a Redis that has no room for the groups of two intervals), the record says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from actors.runtime.compute import ComputeThread
from actors.runtime.context import ActorContext
from bus import Ledger
from bus.waits import WaitKind
from miles_async.config.schema import RunConfig
from miles_async.train.checkpoint import checkpoint_of_step
from miles_async.train.checkpoint_choice import CheckpointChoice

if TYPE_CHECKING:
    from miles_async.train.backend import LearnerBackend

# Of what Redis may use: what is kept for the older checkpoint and as much again for the next one stays below the share at
# which the dealer stops (0.8).
ROOM_FOR_TWO = 0.4


async def choose(
    ctx: ActorContext, ledger: Ledger, trainer: LearnerBackend, compute: ComputeThread, root: Path
) -> CheckpointChoice:
    """Where to go on from. Raises CheckpointError: no checkpoint is of use. Collective."""
    forgotten = await ledger.forgotten()
    with ctx.waiting(WaitKind.CHECKPOINTS, root=str(root)):
        choice = await compute(trainer.choose_checkpoint, root, forgotten)
    if ctx.index == 0:
        for cause in choice.damaged:
            await ctx.event("checkpoint_damaged", cause=cause, goes_on_from=str(choice))
        if not choice.verified:
            why = "it has no checksums: an earlier version of this program wrote it"
            await ctx.event("checkpoint_unverified", checkpoint=choice.path, why=why)
    return choice


def of_the_replayed(config: RunConfig) -> Path | None:
    """The checkpoint of the run whose record is trained again that it begins with; None: it begins at the beginning.

    Raises CheckpointError: that run has none of that step any more.
    """
    run, step = config.replay.run, config.replay.from_step
    return checkpoint_of_step(Path(run) / "checkpoints", step) if run is not None and step else None


async def settle(ctx: ActorContext, ledger: Ledger, version: int, previous: int) -> None:
    """The checkpoint of ``version`` is durable, and beside it the one of ``previous`` (0: the weights of the beginning)."""
    keep = ctx.config.checkpoint.keep
    usable, why = (previous, "") if keep > 1 else (version, "checkpoint.keep = 1")
    await ledger.commit(version, forget=usable)
    used, limit = await ctx.bus.memory()
    if usable < version and limit and used > ROOM_FOR_TWO * limit:
        usable, why = (
            version,
            f"Redis has no room for the groups of two intervals ({used >> 20} of {limit >> 20} MB used)",
        )
        await ledger.commit(version, forget=usable)
    only = {"no_older_one_is_usable": why} if why else {}
    await ctx.event("checkpoint", version=version, usable_from=usable, **only)
