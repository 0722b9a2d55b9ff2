"""A learner that also writes down what it trained on, for the fault campaign: put in place through ``[topology]``."""

from __future__ import annotations

import json

from actors.learner import Learner
from bus.messages import Batch


class RecordingLearner(Learner):
    """Appends the group ids of step ``s`` to ``trained/s`` in the run directory, after the step; a replay appends them
    again. Appends the ledger's counts after each checkpoint to ``checkpoint_counts.jsonl``."""

    async def _step(self, batch: Batch) -> bool:
        made = await super()._step(batch)
        if self.rank == 0 and made:
            directory = self.ctx.run_dir / "trained"
            directory.mkdir(exist_ok=True)
            with (directory / f"{batch.step:06d}").open("a") as file:
                file.write(" ".join(batch.group_ids) + "\n")
        return made

    async def _checkpoint(self) -> None:
        await super()._checkpoint()
        if self.rank == 0:
            with (self.ctx.run_dir / "checkpoint_counts.jsonl").open("a") as file:
                file.write(json.dumps({"version": self.trainer.version, **await self.ledger.counts()}) + "\n")
