"""Weights of the policy beside those that it has: the reference's, and those of earlier versions that sampled tokens.

Promises: after :meth:`KeptWeights.in_place` the policy's own weights are back, bit by bit, whatever happened inside; what
cannot be loaded again from a model directory goes into checkpoints. Beside adapters only these are kept, unless the reference
has other weights under them. All of them lie in the CPU's memory; a pass costs two
copies and no second model on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from miles_async.train.parameter_names import tensors
from miles_async.train.trained import Trained

REFERENCE = "reference"

Weights = list[torch.Tensor]


def copies(modules: Sequence[Any], *, frozen: bool = True) -> Weights:
    """What this process holds of the modules' parameters, in their order, as copies on the CPU. frozen: also of those that are
    not trained."""
    return [_copy(parameter) for _, parameter in _parameters(modules, frozen)]


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of ``tensor`` that this process holds, all of it but for a DTensor; a change of it is one of the tensor."""
    with torch.no_grad():
        to_local = getattr(tensor, "to_local", None)
        return tensor.detach() if to_local is None else to_local().detach()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return local_part(tensor).to("cpu", copy=True)


def _parameters(modules: Sequence[Any], frozen: bool) -> list[tuple[tuple[int, str], torch.Tensor]]:
    """Each parameter, and each bias that takes part in choosing experts, with the number of its module and its name there."""
    return [
        ((i, name), tensor)
        for i, module in enumerate(modules)
        for name, tensor in tensors(module)
        if frozen or tensor.requires_grad
    ]


class KeptWeights:
    """The weights of a model's ``modules`` that are kept. reference: what a reference model begins with, None without one;
    ref_update_interval: after so many versions it becomes the policy; old_versions: how many versions before the current one
    are kept, 0: none is; frozen: as in :func:`copies`, of all that is kept."""

    def __init__(
        self,
        modules: Sequence[Any],
        reference: Weights | None,
        *,
        ref_update_interval: int | None = None,
        old_versions: int = 0,
        frozen: bool = True,
    ) -> None:
        self._frozen = frozen
        self._modules, self._interval, self._count = modules, ref_update_interval, old_versions
        self._reference = reference
        self._old: dict[int, Weights] = {}

    @property
    def has_reference(self) -> bool:
        return self._reference is not None

    @property
    def keeps_old(self) -> bool:
        return self._count > 0

    @property
    def versions(self) -> list[int]:
        """Earlier versions whose weights are here, the oldest first."""
        return sorted(self._old)

    # in a batch

    def reference_in_place(self) -> contextlib.AbstractContextManager[None]:
        """The module computes what the reference does."""
        assert self._reference is not None
        return self._in_place(self._reference)

    def version_in_place(self, version: int) -> contextlib.AbstractContextManager[None]:
        """The module computes what it did at an earlier version, one of :attr:`versions`."""
        return self._in_place(self._old[version])

    def before_batch(self, version: int) -> None:
        """The weights of ``version`` are about to change."""
        if self._count:
            self._old[version] = self._copies()

    def after_batch(self, version: int) -> None:
        """The weights are those of ``version``: what is older than its batch can hold is dropped."""
        self._old = {old: weights for old, weights in self._old.items() if old >= version - self._count}
        if self._reference is not None and self._interval is not None and version % self._interval == 0:
            self._reference = self._copies()

    @contextlib.contextmanager
    def _in_place(self, weights: Weights) -> Iterator[None]:
        own = self._copies()
        self._put(weights)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, weights: Weights) -> None:
        with torch.no_grad():
            for (_, parameter), weight in zip(self._parameters(), weights, strict=True):
                local_part(parameter).copy_(weight)

    def _copies(self) -> Weights:
        return copies(self._modules, frozen=self._frozen)

    def _parameters(self) -> list[tuple[tuple[int, str], torch.Tensor]]:
        return _parameters(self._modules, self._frozen)

    # in a checkpoint

    @property
    def names(self) -> list[str]:
        """What a checkpoint has to hold: a version's number, or REFERENCE, where it is no longer that of its directory."""
        moving = self._reference is not None and self._interval is not None
        return [*map(str, self.versions), *([REFERENCE] if moving else [])]

    def wanted(self, names: Sequence[str]) -> list[str]:
        """The names, among those that a checkpoint holds, of what this run would have kept."""
        moving = self._reference is not None and self._interval is not None
        return [name for name in names if (moving if name == REFERENCE else self._count > 0)]

    def sharded_state(self, names: Sequence[str], model: Trained) -> dict[str, dict[str, Any]]:
        """What the checkpoint files store of these, or fill in to load. model: the one whose modules these are of."""
        return {name: model.sharded_weights(self._named(name), frozen=self._frozen) for name in names}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what was loaded into :meth:`sharded_state`."""
        order = [f"{i}.{key}" for (i, key), _ in self._parameters()]
        found = {name: [_copy(part[key]) for key in order] for name, part in state.items()}
        self._reference = found.pop(REFERENCE, self._reference)
        self._old = {int(name): weights for name, weights in found.items()}

    def _named(self, name: str) -> Weights:
        """The weights of that name, or as many zeros where there are none yet."""
        known = self._reference if name == REFERENCE else self._old.get(int(name))
        if known is not None:
            return known
        return [torch.zeros_like(local_part(p), device="cpu") for _, p in self._parameters()]
