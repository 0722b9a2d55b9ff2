"""The bridge that a ``model.model_provider`` of the user gives, held to what the learner needs of one.

Promises: a provider, or a method of its bridge, that raises or gives something else than a bridge's own is a HookFailed that
names ``model.model_provider`` and what it gave; what a bridge has besides is reached as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from miles_async.config.layout import layout_of
from miles_async.config.lora import lora_of
from miles_async.config.schema import RunConfig
from miles_async.hooks.calls import called, refused
from miles_async.train.bridge import ModelBridge
from miles_async.train.hooks import MODEL_PROVIDER
from miles_async.train.model_settings import model_settings
from miles_async.weights.named_tensors import NAMED_TENSORS, listed, named_tensors

METHODS = ("build", "hf_tensors")
ATTRIBUTES = ("path", "config", "hf_config")


class ProvidedBridge:
    """What ``make(path, dtype, device)`` gives. Raises HookFailed, here and at each method."""

    def __init__(self, make: Callable[..., Any], path: str, dtype: torch.dtype, device: torch.device) -> None:
        self._inner: Any = called(MODEL_PROVIDER, make, path, dtype, device)
        missing = [name for name in METHODS if not callable(getattr(self._inner, name, None))]
        missing += [name for name in ATTRIBUTES if getattr(self._inner, name, None) is None]
        if missing:
            raise refused(MODEL_PROVIDER, make, self._inner, f"a bridge: it has no {', no '.join(missing)}")
        if not isinstance(self._inner.path, str | Path) or not Path(self._inner.path).is_dir():
            raise refused(MODEL_PROVIDER, make, self._inner.path, "the path of a Hugging Face directory")
        size = getattr(self._inner.hf_config, "vocab_size", None)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise refused(MODEL_PROVIDER, make, size, "a vocab_size of its hf_config, a whole number above 0")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    def chunks(self) -> list[torch.nn.Module]:
        """The model, which is in one piece."""
        return [self.build()]

    def all_tensors(self, chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
        """Those of the model."""
        return self.hf_tensors(chunks[0])

    def build(self) -> torch.nn.Module:
        """The model with its weights."""
        module = called(MODEL_PROVIDER, self._inner.build)
        if not isinstance(module, torch.nn.Module) or next(module.parameters(), None) is None:
            raise refused(MODEL_PROVIDER, self._inner.build, module, "a torch.nn.Module with parameters")
        return module

    def hf_tensors(self, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each tensor of the Hugging Face checkpoint."""
        function = self._inner.hf_tensors
        pairs = called(MODEL_PROVIDER, listed, function, module, of=function)
        yield from named_tensors(pairs, lambda found: refused(MODEL_PROVIDER, function, found, NAMED_TENSORS)).items()


def bridge_maker(config: RunConfig) -> Callable[[str, torch.dtype, torch.device], Any]:
    """What makes the run's bridges: the built-in one, or a user's that is looked at. Raises HookError."""
    makes = MODEL_PROVIDER.functions(config)
    if makes:
        return partial(ProvidedBridge, makes[0])
    learner = config.learner
    return partial(
        ModelBridge,
        layout=layout_of(learner),
        settings=model_settings(learner),
        local=lora_of(learner)
        is not None,  # an adapter takes the input of a layer, which TransformerEngine norms itself
        fp32=learner.fp32_parameters,
    )
