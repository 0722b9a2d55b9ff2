"""What the learner's tensors go through on their way into a snapshot: quantisation, other names, tensors left out.

Promises: by default nothing is changed or copied; a function that gives a name twice, nothing at all or something else than
tensors, or that raises, is refused with the key that named it. Importing this file costs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miles_async.config.schema import RunConfig
from miles_async.hooks.calls import called, refused
from miles_async.hooks.hook import Hook

if TYPE_CHECKING:
    import torch

    from miles_async.weights.safetensors_file import Spec

EXPORT = Hook(
    "weights.export_function",
    ("tensors",),
    returns="an iterable of the (name, tensor) that engines get, made of an iterable of the Hugging Face ones",
    default="they are left as they are",
    form="iterated",
)


def outgoing(config: RunConfig, backend: Any) -> tuple[Sequence[Spec], Iterable[tuple[str, torch.Tensor]]]:
    """What engines shall get of the weights of a LearnerBackend: what is announced, and then one tensor after the other. A
    function of the user's sees all of them, as copies. Nothing on every rank but 0, which go through it all the same. Raises
    HookFailed."""
    if not EXPORT.functions(config):
        return backend.stream()
    from miles_async.weights.safetensors_file import specs_of

    tensors = backend.export()
    tensors = exported(config, tensors) if tensors else {}
    return specs_of(tensors.items()), tensors.items()


def exported(config: RunConfig, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors`` (Hugging Face names) as engines shall get them. Raises HookFailed."""
    found = dict(tensors)
    for function in EXPORT.functions(config):
        from miles_async.weights.named_tensors import NAMED_TENSORS, listed, named_tensors

        pairs = called(EXPORT, listed, function, iter(found.items()), of=function)
        found = named_tensors(pairs, lambda wrong, f=function: refused(EXPORT, f, wrong, NAMED_TENSORS))
    return found
