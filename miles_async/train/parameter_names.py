"""A model under the parameter names of TransformerEngine's layers, which mbridge knows, also where it has local ones.

Promises: copies nothing but a weight that has an adapter, to merge it; every parameter, and every buffer that a checkpoint has,
is there once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from miles_async.train.lora import merged_parameters

_EXPERT = re.compile(r"\.mlp\.experts\.local_experts\.(\d+)\.(linear_fc[12])\.weight$")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
EXPERTS = ".mlp.experts."  # in the name of each parameter of an expert


def tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of all that a checkpoint has of ``model``, a module or such a view."""
    yield from model.named_parameters()
    yield from expert_biases(model)


def expert_biases(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that take part in choosing experts."""
    return ((name, buffer) for name, buffer in model.named_buffers() if is_bias(name))


def is_bias(name: str) -> bool:
    """Whether it is such a buffer's name."""
    return name.endswith(".expert_bias")


class OwnNames:
    """The view of a GPTModel of TransformerEngine's layers. Its tensors are looked up once: mbridge does so for each of them,
    which takes minutes where there are thousands of experts."""

    def __init__(self, module: torch.nn.Module):
        self._module = module
        self.decoder: Any = module.decoder
        self._state: dict[str, Any] | None = None

    def _rename(self, name: str) -> str:
        return name

    def state_dict(self) -> dict[str, Any]:
        """The module's own tensors."""
        if self._state is None:
            self._state = {self._rename(name): value for name, value in self._module.state_dict().items()}
        return self._state

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((self._rename(name), parameter) for name, parameter in merged_parameters(self._module))

    def named_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((self._rename(name), buffer) for name, buffer in self._module.named_buffers())


class TransformerEngineNames(OwnNames):
    """The view of a GPTModel of local layers."""

    def __init__(self, module: torch.nn.Module):
        super().__init__(module)
        self._latent = bool(getattr(module.config, "multi_latent_attention", False))
        self._mixtures = {str(i) for i, layer in enumerate(self.decoder.layers) if hasattr(layer.mlp, "router")}

    def _rename(self, name: str) -> str:
        if self._latent:
            name = re.sub(r"\.(q|kv)_layernorm\.weight$", r".linear_\1_up_proj.layer_norm_weight", name)
        else:
            name = name.replace(".input_layernorm.weight", ".self_attention.linear_qkv.layer_norm_weight")
        layer = _LAYER.match(name)
        if layer is None or layer[1] not in self._mixtures:  # else nothing is fused with it
            return name.replace(".pre_mlp_layernorm.weight", ".mlp.linear_fc1.layer_norm_weight")
        return _EXPERT.sub(lambda found: f".mlp.experts.{found[2]}.weight{found[1]}", name)
