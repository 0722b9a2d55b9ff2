"""The learner's own log-prob of each token that it trains, as the pass that trains it computes it (`record.learner_log_probs`).

Promises: no pass and no meeting of ranks is made for it, and nothing waits for the device before the step is over; of several
passes over the batch the first counts, so that a token's is of the weights that its own optimizer step begins with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from miles_async.train.batch import Array, MicroBatch
from miles_async.train.distributed import LearnerGroups


class OwnLogProbs:
    """Of one process, and of the step that it made last. ``wanted`` false: nothing is kept."""

    def __init__(self, wanted: bool, groups: LearnerGroups) -> None:
        # processes that split the model's width or its sequences have all the same values
        same = (group for group in (groups.tensor_group, groups.context_group) if group is not None)
        self._wanted = wanted and all(group.rank() == 0 for group in same)
        self._parts: list[tuple[Array, torch.Tensor]] = []
        self._count = 0

    def begin(self, count: int) -> None:
        """Forget the last step. ``count``: N, the response tokens of this one's share."""
        self._parts, self._count = [], count

    def add(self, micros: Sequence[MicroBatch], logprobs: Sequence[torch.Tensor]) -> None:
        """A pass: the [n] of each of its micro-batches, on the device; none, where this is not the last stage of a pipeline."""
        if self._wanted and logprobs:
            index = np.concatenate([micro.token_index for micro in micros])
            self._parts.append((index, torch.cat([part.detach().float() for part in logprobs])))

    def fetch(self) -> Array | None:
        """[N] float32, nan where a token was not trained. None: nothing was, or another process of this replica has them."""
        if not self._parts:
            return None
        found = np.full(self._count, np.nan, dtype=np.float32)
        for index, values in reversed(self._parts):
            found[index] = values.cpu().numpy()
        self._parts = []
        return found
