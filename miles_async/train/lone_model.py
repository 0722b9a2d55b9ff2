"""A model of the learner in a process that trains nothing: built on the CPU, with nobody to wait for."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from miles_async.train import cpu_shim
from miles_async.train.distributed import LearnerGroups
from miles_async.train.model import gpt_model
from miles_async.train.quiet_megatron import quiet_megatron
from miles_async.train.ranks import alone

ALONE_S = 60.0  # a group of one rank waits for nobody


@contextlib.contextmanager
def lone_model(make: Callable[..., Any], path: str, dtype: torch.dtype, *, seed: int = 0) -> Iterator[tuple[Any, Any]]:
    """The bridge that ``make(path, dtype, device)`` gives, and its model. The process must not be in a group of torch's, and is
    in none afterwards. Raises ModelError."""
    device = torch.device("cpu")
    quiet_megatron()
    cpu_shim.install(device)
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    with tempfile.TemporaryDirectory() as meeting:
        groups = LearnerGroups(device, alone(f"file://{meeting}/alone"), timeout_s=ALONE_S)
        try:
            with cpu_shim.cuda_means_cpu(device):
                model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
                bridge = make(path, dtype, device)
                yield bridge, gpt_model(bridge.build())
        finally:
            groups.close()
