"""Random states of a learner process, for checkpoints.

Promises: restoring gives the process the generators it had. Nothing in a step draws from them (dropout is off) and all
ranks start equal, so one rank's states serve for all.
"""

from __future__ import annotations

from typing import Any

import torch


def _tracker() -> Any:
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    return get_cuda_rng_tracker()


def get_state() -> dict[str, Any]:
    """The states of PyTorch's generators and of Megatron's tracker, as tensors."""
    state = {"cpu": torch.get_rng_state(), "tracker": dict(_tracker().get_states())}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_state(state: dict[str, Any]) -> None:
    """Restore what :func:`get_state` returned."""
    torch.set_rng_state(state["cpu"])
    _tracker().set_states(state["tracker"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
