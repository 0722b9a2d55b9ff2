"""What the learner's tensors go through on their way into a snapshot: quantisation, other names, tensors left out.

Promises: by default nothing is changed or copied; a function that gives a name twice, nothing at all or something else than
tensors is refused with the key that named it. Importing this file costs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from miles_async.config import ConfigError, RunConfig
from miles_async.hooks import Hook

if TYPE_CHECKING:
    import torch

EXPORT = Hook(
    "weights.export_function",
    ("tensors",),
    returns="an iterable of the (name, tensor) that engines get, made of an iterable of the Hugging Face ones",
    default="they are left as they are",
)


def exported(config: RunConfig, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors`` (Hugging Face names) as engines shall get them. Raises ConfigError, and what the function raises."""
    found = dict(tensors)
    for function in EXPORT.functions(config):
        pairs = list(function(iter(found.items())))
        found = dict(pairs)
        if len(found) != len(pairs) or not found or any(not hasattr(tensor, "nbytes") for tensor in found.values()):
            raise ConfigError(
                f'{EXPORT.key} = "{config.weights.export_function}": it must give (name, tensor) pairs, at least one and '
                f"each name once, not {len(pairs)} of {len(found)} names"
            )
    return found
