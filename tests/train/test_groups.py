"""The process groups of a learner."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from miles_async.train.distributed import LearnerGroups
from miles_async.train.ranks import alone


def test_over_gloo_there_is_one_group_for_the_same_ranks(tmp_path: Path) -> None:
    """Each would have threads of its own, which poll."""
    new_group = dist.new_group
    for attempt in range(2):  # a process may build new ones
        groups = LearnerGroups(torch.device("cpu"), alone(f"file://{tmp_path / str(attempt)}"), timeout_s=30.0)
        try:
            assert parallel_state.get_data_parallel_group() is dist.group.WORLD
            assert parallel_state.get_tensor_model_parallel_group() is dist.group.WORLD
            assert len(dist.distributed_c10d._world.pg_map) == 1
            assert dist.new_group is new_group
        finally:
            groups.close()
        assert not dist.is_initialized()
