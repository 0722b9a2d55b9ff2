"""A rollout worker that one prompt kills: put in place through ``[topology]``."""

from __future__ import annotations

import os
import signal

from actors.dealer import sampling_seed
from actors.rollout import RolloutWorker
from bus.messages import Ticket
from miles_async.rollout.interface import RolloutContext

POSITION = 5  # of the prompt in the order of dealing


class PoisonedWorker(RolloutWorker):
    """Dies (kill -9) of the prompt at ``POSITION``, whenever it begins with it."""

    async def _rollout(self, ticket: Ticket, context: RolloutContext) -> None:
        config = self.ctx.config
        if ticket.sampling_seed == sampling_seed(config.run.seed, POSITION, config.rollout.n_samples_per_prompt):
            os.kill(os.getpid(), signal.SIGKILL)
        await super()._rollout(ticket, context)
