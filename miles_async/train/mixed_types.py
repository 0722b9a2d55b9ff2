"""Megatron's optimizers of a model whose trained parameters are of two types, bfloat16 and float32.

Promises: a checkpoint has the same of every parameter, a float32 value and the optimizer's state, whichever type it has in the
model; each optimizer finds the state of a parameter where it put it. Two repairs, on the instance:

- Float16OptimizerWithFloat16Params stores parameters by their place among those of bfloat16, and its optimizer counts all
  (optimizer.py, sharded_state_dict). While it stores and restores, a float32 parameter is its own copy.
- DistributedOptimizer notes each parameter's place in the order of its buffers, and puts the float32 ones first
  (distrib_optimizer.py, _build_optimizer_group_ranges and _build_model_and_main_param_groups).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any


def repair(part: Any) -> None:
    """One optimizer of Megatron's, not yet stepped. Without effect where all parameters are of one type, or none is there."""
    if any(getattr(part, "fp32_from_fp32_groups", ())):
        for name in ("state_dict", "sharded_state_dict", "load_state_dict"):
            setattr(part, name, _counting_all(part, getattr(part, name)))
    wide_groups: list[list[Any]] = getattr(part, "model_fp32_groups", [])
    for group, wide in enumerate(wide_groups):
        for place, parameter in enumerate([*wide, *part.model_float16_groups[group]]):
            part.model_param_group_index_map[parameter] = (group, place)


def _counting_all(part: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def counting(*args: Any, **kwargs: Any) -> Any:
        with _all_have_copies(part):
            return method(*args, **kwargs)

    return counting


@contextlib.contextmanager
def _all_have_copies(part: Any) -> Iterator[None]:
    halves, copies = part.float16_groups, part.fp32_from_float16_groups
    of_copy = {
        id(copy): half
        for ours, theirs in zip(halves, copies, strict=True)
        for half, copy in zip(ours, theirs, strict=True)
    }
    everything = [[*group["params"]] for group in part.optimizer.param_groups]
    part.fp32_from_float16_groups = everything
    part.float16_groups = [[of_copy.get(id(one), one) for one in group] for group in everything]
    try:
        yield
    finally:
        part.float16_groups, part.fp32_from_float16_groups = halves, copies
