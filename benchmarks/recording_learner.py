"""A learner that also writes down which groups it trained on, for the fault campaign: put in place through ``[topology]``."""

from __future__ import annotations

from actors.learner import Learner
from bus.messages import Batch


class RecordingLearner(Learner):
    """Writes the group ids of step ``s`` to ``trained/s`` in the run directory, after the step; a replay writes them again."""

    async def _step(self, batch: Batch) -> None:
        await super()._step(batch)
        if self.rank == 0:
            directory = self.ctx.run_dir / "trained"
            directory.mkdir(exist_ok=True)
            with (directory / f"{batch.step:06d}").open("a") as file:
                file.write(" ".join(batch.group_ids) + "\n")
