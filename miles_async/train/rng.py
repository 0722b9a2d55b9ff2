"""Random states of a learner process, for checkpoints.

Promises: restoring gives the process the generators it had. Nothing in a step draws from them (dropout is off), so rank 0's
states serve for all; those of Megatron's tracker differ from rank to rank, but are a function of seed and rank that every start
computes anew, and are in no checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch


def get_state() -> dict[str, Any]:
    """The states of PyTorch's generators, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_state(state: dict[str, Any]) -> None:
    """Restore what :func:`get_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
