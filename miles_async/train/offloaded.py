"""Megatron's optimizer in the CPU's memory (``learner.optimizer_cpu_offload``): its HybridDeviceOptimizer.

    gradients ──► CPU: AdamW of float32 copies ──► weights on the device; of the share that is offloaded

Promises: a step is that of an optimizer on the device, and a checkpoint like any other, also before the first step: tensors and
plain data only, where Megatron's has the classes of its two optimizers among its settings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from miles_async.config import schema as cfg


def offloading(config: cfg.Learner) -> dict[str, Any]:
    """Fields of Megatron's OptimizerConfig; empty: none."""
    if not config.optimizer_cpu_offload:
        return {}
    return {
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": config.optimizer_offload_fraction,
        "use_precision_aware_optimizer": True,  # whose way through DistributedOptimizer it shares; all types stay float32
    }


def is_offloaded(part: Any) -> bool:
    """Whether one of Megatron's optimizers is such a one."""
    return hasattr(part.optimizer, "sub_optimizers")


def prepare(part: Any) -> None:
    """Make the state of an optimizer that has not stepped, and have it store plain data only."""
    _create_state(part.optimizer)
    part.sharded_state_dict = _without_classes(part.sharded_state_dict)


def _create_state(optimizer: Any) -> None:
    """By a step that changes nothing: steps are what makes it."""
    kept = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
        for parameter in group["params"]:
            parameter.decoupled_grad = torch.zeros_like(parameter, dtype=torch.float32)
    optimizer.step()
    optimizer.zero_grad()
    for group, (lr, weight_decay) in zip(optimizer.param_groups, kept, strict=True):
        group.update(lr=lr, weight_decay=weight_decay)
    for group in (group for part in optimizer.sub_optimizers for group in part.param_groups):
        if "step" in group:  # TransformerEngine's
            group["step"] = 0
    for entry in optimizer.state.values():
        if "step" in entry:  # torch's
            entry["step"].zero_()


def _without_classes(method: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @wraps(method)
    def stored(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state = method(*args, **kwargs)
        groups = state["optimizer"]["param_groups"]
        plain = [{name: value for name, value in group.items() if not isinstance(value, type)} for group in groups]
        return {**state, "optimizer": {**state["optimizer"], "param_groups": plain}}

    return stored
