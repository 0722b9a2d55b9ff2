"""The adapters of a model as PEFT names and cuts them: one pair for each matrix of transformers'.

    decoder.layers.0.self_attention.linear_qkv  ─►  base_model.model.model.layers.0.self_attn.{q,k,v}_proj.lora_{A,B}.weight

Promises: for each of transformers' matrices the product of its pair, times ``lora_alpha / r``, is what the merged weight has
more than the frozen one; where Megatron keeps several matrices as one, each has the same A and its own rows of B.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from miles_async.train.lora import adapters

_PREFIX, _WEIGHT = "base_model.model.", ".weight"


class AdapterSide:
    """One matrix of each adapter, ``"a"`` or ``"b"``, under the name of the weight that it lies beside. bridge: a
    ModelBridge."""

    def __init__(self, side: str, bridge: Any) -> None:
        self._side, self._bridge = side, bridge

    def view(self, module: torch.nn.Module) -> _View:
        """``module`` as a model whose parameters are these."""
        return _View(module, self._side)

    def to_hf(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """PEFT's names and tensors, made of the matrix as it is without tensor parallelism. name: of the weight."""
        of_weights = self._bridge.mbridge._weight_name_mapping_mcore_to_hf(name)
        names = [f"{_PREFIX}{hf.removesuffix(_WEIGHT)}.lora_{self._side.upper()}{_WEIGHT}" for hf in of_weights]
        parts = [tensor] * len(names) if self._side == "a" else self._rows(tensor, len(names))
        return zip(names, parts, strict=True)

    def _rows(self, tensor: torch.Tensor, count: int) -> list[torch.Tensor]:
        """A B [out, rank] in the rows of each of ``count`` matrices."""
        if count < 3:  # gate, up; or one
            return [*tensor.chunk(count)]
        config = self._bridge.hf_config
        groups, rank = config.num_key_value_heads, tensor.shape[1]
        heads = config.num_attention_heads // groups  # of a group's queries; they are followed by its key and its value
        of_groups = tensor.view(groups, heads + 2, -1, rank)
        return [part.reshape(-1, rank) for part in of_groups.split([heads, 1, 1], dim=1)]


class _View:
    """As much of a model as mbridge looks at."""

    def __init__(self, module: torch.nn.Module, side: str) -> None:
        self.decoder = module.decoder
        self._parameters = {f"{name}{_WEIGHT}": getattr(adapter, side) for name, adapter in adapters(module).items()}

    def state_dict(self) -> dict[str, Any]:
        return self._parameters

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(self._parameters.items())

    def named_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())
