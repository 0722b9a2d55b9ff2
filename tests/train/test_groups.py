"""The process groups of a learner."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from miles_async.train.distributed import LOOPBACK, LearnerGroups, RanksSilent
from miles_async.train.ranks import Ranks, alone
from miles_async.weights.interface import GLOO


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


def test_groups_of_one_machine_are_on_loopback_and_a_process_that_has_closed_them_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch from this process would take it for somebody's word, and look for other machines on loopback."""
    monkeypatch.delenv(GLOO, raising=False)
    groups = LearnerGroups(torch.device("cpu"), alone(f"file://{tmp_path}/met"), timeout_s=30.0)
    try:
        assert os.environ[GLOO] == LOOPBACK
    finally:
        groups.close()
    assert GLOO not in os.environ
    with pytest.raises(RanksSilent):
        LearnerGroups(torch.device("cpu"), Ranks(0, 2, f"file://{tmp_path}/not-met"), timeout_s=0.2)
    assert GLOO not in os.environ
