"""The reference model: frozen weights that take the learner's place for a forward pass.

Promises: after :meth:`ReferenceWeights.in_place` the learner's own weights are back, bit by bit, whatever happened inside.
The weights lie in the CPU's memory; a pass costs two copies and no second model on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def copies(module: torch.nn.Module) -> list[torch.Tensor]:
    """The module's parameters, in their order, as copies on the CPU."""
    return [parameter.detach().to("cpu", copy=True) for parameter in module.parameters()]


class ReferenceWeights:
    """``weights`` are the reference's parameters, in the order of ``module``'s."""

    def __init__(self, module: torch.nn.Module, weights: list[torch.Tensor]) -> None:
        self._module, self._weights = module, weights

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The module computes what the reference does."""
        own = copies(self._module)
        self._put(self._weights)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, weights: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self._module.parameters(), weights, strict=True):
                parameter.copy_(weight)
