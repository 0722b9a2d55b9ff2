"""Hugging Face model <-> Megatron model: which architectures, how weights are named, how they are copied.

Promises: a model whose configuration this bridge would compute differently from transformers is refused with one line;
loading and exporting keeps every bit. mbridge does the mapping; it expects TransformerEngine's parameter names, so where
TransformerEngine is absent the local layers are built and shown to it under those names.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import torch

from miles_async.models.hf_config import HfConfig
from miles_async.models.support import LEARNER, ModelError, check_model
from miles_async.train.light_imports import imported_when_called

__all__ = ["ModelBridge", "ModelError"]

# Fusions need Apex or TransformerEngine. Dropout would make the learner's log-probs differ from the engine's.
# calculate_per_token_loss: DDP then sums gradients over ranks; the loss is normalised by the whole step beforehand.
_OVERRIDES: dict[str, Any] = {
    "use_cpu_initialization": True,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "persist_layer_norm": False,
    "attention_softmax_in_fp32": True,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "calculate_per_token_loss": True,
}


def load_hf_config(path: str) -> HfConfig:
    """The configuration at ``path``. Raises ModelError if the learner would compute its model differently."""
    return HfConfig(check_model(path, LEARNER))


class ModelBridge:
    """One model of one checkpoint. Megatron's parallel state must be initialised first."""

    def __init__(self, path: str, dtype: torch.dtype, device: torch.device):
        self.path = path
        self.device = device
        self.hf_config = load_hf_config(path)
        local = device.type != "cuda" or importlib.util.find_spec("transformer_engine") is None
        self._bridge = _bridge_class(self.hf_config.model_type, local)(self.hf_config, dtype=dtype)
        self._view = _TransformerEngineNames if local else (lambda module: module)

    @property
    def config(self) -> Any:
        """Megatron's TransformerConfig."""
        return self._bridge.config

    def build(self) -> torch.nn.Module:
        """The model with the checkpoint's weights, on the device, in Float16Module for bfloat16. Collective over
        tensor-parallel ranks."""
        from megatron.core import tensor_parallel
        from megatron.core.transformer.module import Float16Module

        module = self._bridge._model_provider([])(pre_process=True, post_process=True)
        for parameter in module.parameters():
            tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
        module.to(self.device)
        if self.config.bf16:
            # A transformers-tied output layer has no weight of its own, so it is enough to convert what is there.
            wrapped = Float16Module(self.config, module)
        else:
            wrapped = module
        with torch.no_grad():
            self._bridge.load_weights([self._view(module)], self.path)
        return wrapped

    def hf_tensors(self, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each tensor of the Hugging Face checkpoint; values may be views of the parameters.

        For the data-parallel layouts of this learner, where every rank holds the whole model: no communication.
        """
        for name, parameter in self._view(module).named_parameters():
            yield from zip(*self._bridge._weight_to_hf_format(name, parameter.detach()), strict=True)


def _bridge_class(model_type: str, local: bool) -> Any:
    base = _mbridge_class(model_type)

    class Bridge(base):
        def _build_base_config(self, *args: Any, **kwargs: Any) -> Any:
            return super()._build_base_config(*args, **{**kwargs, **_OVERRIDES})

        def _adjust_mapping_for_shared_weights(self) -> None:
            # mbridge changes the class's mapping for a tied model; the next untied model must not inherit that
            self._DIRECT_MAPPING = dict(type(self)._DIRECT_MAPPING)
            super()._adjust_mapping_for_shared_weights()

        def _get_gptmodel_args(self) -> dict[str, Any]:
            config = self.hf_config
            return {
                "vocab_size": config.vocab_size,
                "max_sequence_length": config.max_position_embeddings,
                "position_embedding_type": "rope",
                "rotary_base": config.rope_theta,
            }

        def _get_actual_hf_path(self, weight_path: str) -> str:
            return weight_path  # a directory already

        def _get_transformer_layer_spec(self, vp_stage: int | None = None) -> Any:
            if not local:
                return super()._get_transformer_layer_spec(vp_stage)
            self.has_vp_stage = True
            from miles_async.train.local_layers import local_block_spec

            return local_block_spec(self.config)

    return Bridge


class _TransformerEngineNames:
    """A model of local layers under the parameter names TransformerEngine's layers would have. Copies nothing."""

    def __init__(self, module: torch.nn.Module):
        self._module = module
        self.decoder = module.decoder

    @staticmethod
    def _rename(name: str) -> str:
        name = name.replace(".input_layernorm.weight", ".self_attention.linear_qkv.layer_norm_weight")
        return name.replace(".pre_mlp_layernorm.weight", ".mlp.linear_fc1.layer_norm_weight")

    def state_dict(self) -> dict[str, Any]:
        return {self._rename(name): value for name, value in self._module.state_dict().items()}

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((self._rename(name), parameter) for name, parameter in self._module.named_parameters())


def _mbridge_class(model_type: str) -> Any:
    """mbridge's bridge of one architecture. Its packages import all that they know, vision models and half of transformers
    among it, so they are not executed."""
    for name in ("mbridge", "mbridge.models"):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            assert spec is not None, "mbridge is a dependency"
            sys.modules[name] = importlib.util.module_from_spec(spec)
    # of transformers it wants a name for an annotation, and a function that downloads a model
    with imported_when_called("transformers", "transformers.utils", "transformers.utils.hub"):
        importlib.import_module(f"mbridge.models.{model_type}")
    from mbridge.core.bridge import _MODEL_REGISTRY

    return _MODEL_REGISTRY[model_type]
