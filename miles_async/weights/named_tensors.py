"""What functions of the user give as a model's tensors: pairs of a name and a tensor, or what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from miles_async.hooks.faults import printable

NAMED_TENSORS = "pairs of (name, dense tensor), at least one, and each name once"


def listed(function: Callable[..., Any], *args: Any) -> Any:
    """All that ``function(*args)`` yields, if that is anything that can be gone through."""
    found = function(*args)
    return list(found) if isinstance(found, Iterable) and not isinstance(found, str | bytes | dict) else found


def named_tensors(pairs: Any, refusal: Callable[[Any], Exception]) -> dict[str, torch.Tensor]:
    """``pairs`` as tensors by name. Raises what ``refusal`` makes of the first thing that is wrong."""
    if not isinstance(pairs, list) or not pairs:
        raise refusal(pairs)
    found: dict[str, torch.Tensor] = {}
    for pair in pairs:
        if not _is_named_tensor(pair) or pair[0] in found:
            raise refusal(pair)
        found[pair[0]] = pair[1]
    return found


def _is_named_tensor(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    name, tensor = pair
    is_name = isinstance(name, str) and bool(name) and printable(name) == name
    return is_name and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta
