"""The process groups of a learner whose ranks all hold a shard of one model, and train a share of a batch each."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from miles_async.train.distributed import LearnerGroups


class ShardGroups(LearnerGroups):
    """All ranks are data-parallel, and in one group, torch's own. Knows no Megatron."""

    def _split(self) -> None:
        self._dp: Any = dist.group.WORLD
        self.tensor_group = self.context_group = None
        self.exports, self.context_rank = True, 0  # whoever wants a whole tensor needs every rank's shard

    def _join(self) -> None:
        pass
