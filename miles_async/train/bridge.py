"""Hugging Face model <-> Megatron model: which architectures, how weights are named, how they are copied.

Promises: a model whose configuration this bridge would compute differently from transformers is refused with one line;
loading and exporting keeps every bit. mbridge does the mapping; it expects TransformerEngine's parameter names, so where
TransformerEngine is absent the local layers are built and shown to it under those names.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from miles_async.config.layout import WHOLE, Layout
from miles_async.models.hf_config import HfConfig, rope
from miles_async.models.mixtures import MIXTURES
from miles_async.models.rotary import as_said
from miles_async.models.support import LEARNER, ModelError, check_model
from miles_async.train import cpu_shim
from miles_async.train.fp32_parameters import keep_float32, wide_tensors
from miles_async.train.gathered import gathered
from miles_async.train.light_imports import imported_when_called
from miles_async.train.mixtures import mixture_settings
from miles_async.train.parameter_names import EXPERTS, OwnNames, TransformerEngineNames, is_bias, tensors
from miles_async.train.peft_names import AdapterSide

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
    """One model of one checkpoint. Megatron's parallel state must be initialised first, with the same ``layout``.

    settings: further fields of Megatron's TransformerConfig (model_settings.py). local: with local layers, also where
    TransformerEngine is installed. fp32: patterns of the names of weights that are float32 in a bfloat16 model.
    """

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        device: torch.device,
        layout: Layout = WHOLE,
        settings: Mapping[str, Any] | None = None,
        local: bool = False,
        fp32: Sequence[str] = (),
    ):
        self.path = path
        self.device = device
        self.layout = layout
        self.hf_config = load_hf_config(path)
        local = local or device.type != "cuda" or importlib.util.find_spec("transformer_engine") is None
        if local and self.hf_config.model_type in MIXTURES:
            cpu_shim.install_mixtures(device)
        self._fp32 = fp32 if dtype is torch.bfloat16 else ()
        self._fp32_files = wide_tensors(path) if self._fp32 else frozenset[str]()
        kind = _bridge_class(self.hf_config, local, layout, settings or {}, plain=not self._fp32)
        self.mbridge: Any = kind(self.hf_config, dtype=dtype)
        self.view = TransformerEngineNames if local else OwnNames

    @property
    def config(self) -> Any:
        """Megatron's TransformerConfig."""
        return self.mbridge.config

    def chunks(self) -> list[torch.nn.Module]:
        """This process' part of the model, with the checkpoint's weights, on the device: one module, or ``layout.virtual`` of
        them, each in Float16Module for bfloat16. Collective over tensor-parallel ranks."""
        from megatron.core.transformer.module import Float16Module

        virtual = self.layout.virtual > 1
        modules = [self._chunk(stage if virtual else None) for stage in range(self.layout.virtual)]
        # A transformers-tied output layer has no weight of its own, so it is enough to convert what is there.
        wrapped = [Float16Module(self.config, module) for module in modules] if self.config.bf16 else modules
        for module in modules if self._fp32 else ():
            keep_float32(module, self._hf_names(module), self._fp32)
            self.mbridge.dtype = None  # which weights would be rounded to before their parameters' types are looked at
        with torch.no_grad():
            self.mbridge.load_weights([self.view(module) for module in modules], self.path)
        return [*wrapped]

    def _chunk(self, stage: int | None) -> torch.nn.Module:
        from megatron.core import parallel_state, tensor_parallel

        where: Any = {"ignore_virtual": stage is None, "vp_stage": stage}
        module = self.mbridge._model_provider([])(
            pre_process=parallel_state.is_pipeline_first_stage(**where),
            post_process=parallel_state.is_pipeline_last_stage(**where),
            **({} if stage is None else {"vp_stage": stage}),
        )
        if stage is not None:
            module.vp_stage = stage
        if hasattr(module, "rotary_pos_emb"):  # latent attention has its own, in each layer
            rotary = module.rotary_pos_emb
            rotary.inv_freq = as_said(rotary.inv_freq, rope(vars(self.hf_config)))
        if self.layout.sequence and module.post_process:
            module.output_layer.sequence_parallel = False  # what it is given is gathered before (model.py)
        # Megatron adds the gradients of experts up over the ranks that have the same ones only where there are others besides
        replicated = self.layout.expert == 1 and self.layout.expert_tensor < self.layout.tensor
        for name, parameter in module.named_parameters():
            tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
            if replicated and EXPERTS in name:
                parameter.allreduce = False
        return module.to(self.device)

    def _hf_names(self, module: Any) -> dict[str, list[str]]:
        """Of each parameter the Hugging Face names of what is in it."""
        view = self.view(module)
        names = self.mbridge._weight_name_mapping_mcore_local_to_global(view)
        own = [name for name, _ in module.named_parameters()]
        return {name: self.mbridge._weight_name_mapping_mcore_to_hf(names[view._rename(name)]) for name in own}

    def all_tensors(self, chunks: Sequence[Any]) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each tensor of the Hugging Face checkpoint, on rank 0, with adapters merged; values may be views of
        the parameters.

        chunks: of the model, without Float16Module. Collective over the first replica's ranks where the layout splits the
        model; else there is no communication.
        """
        return gathered(self, chunks) if self.layout.splits_model else self.hf_tensors(chunks[0])

    def all_adapters(self, chunks: Sequence[Any]) -> Iterator[tuple[str, torch.Tensor]]:
        """As :meth:`all_tensors`, of the adapters' matrices, under PEFT's names."""
        for side in (AdapterSide("a", self), AdapterSide("b", self)):
            yield from gathered(self, chunks, side)

    # of a model in one piece; a bridge of the user's has these

    def build(self) -> torch.nn.Module:
        """The model with the checkpoint's weights, on the device, in Float16Module for bfloat16."""
        return self.chunks()[0]

    def hf_tensors(self, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """What :meth:`all_tensors` gives of the only part of a model. No communication."""
        for name, tensor in tensors(self.view(module)):
            yield from self.to_hf(name, tensor.detach())

    def to_hf(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The Hugging Face tensors in a parameter of the whole model, as engines have them: of the model's type, those that are
        float32 here and in the checkpoint's files excepted."""
        names, parts = self.mbridge._weight_to_hf_format(name, tensor)
        if self._fp32 and not is_bias(name):
            pairs = zip(names, parts, strict=True)
            parts = (part if hf in self._fp32_files else part.bfloat16() for hf, part in pairs)
        return zip(names, parts, strict=True)


def _bridge_class(
    config: HfConfig, local: bool, layout: Layout, settings: Mapping[str, Any], *, plain: bool = True
) -> Any:
    base = _mbridge_class(config.model_type)
    of_mixture = mixture_settings(config, local=local)
    overrides = _OVERRIDES | of_mixture | {"sequence_parallel": layout.sequence, **settings}

    class Bridge(base):
        def _build_base_config(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("max_position_embeddings", None)  # of DeepSeek; Megatron has renamed it, mixtures.py says it
            return super()._build_base_config(*args, **{**kwargs, **overrides})

        def _adjust_mapping_for_shared_weights(self) -> None:
            # mbridge changes the class's mapping for a tied model; the next untied model must not inherit that
            self._DIRECT_MAPPING = dict(type(self)._DIRECT_MAPPING)
            super()._adjust_mapping_for_shared_weights()
            if self.hf_config.tie_word_embeddings:  # which mbridge leaves out for mixtures
                self._DIRECT_MAPPING["output_layer.weight"] = self._DIRECT_MAPPING["embedding.word_embeddings.weight"]

        def _get_gptmodel_args(self) -> dict[str, Any]:
            config = self.hf_config
            return {
                "vocab_size": config.vocab_size,
                "max_sequence_length": config.max_position_embeddings,
                "position_embedding_type": "rope",
                "rotary_base": config.rope_theta,
                "rotary_percent": config.partial_rotary_factor,
            }

        def _get_actual_hf_path(self, weight_path: str) -> str:
            return weight_path  # a directory already

        def _get_safetensor_io(self, weights_path: str) -> Any:
            from mbridge.core.safetensor_io import SafeTensorIO

            return SafeTensorIO(weights_path)  # of DeepSeek mbridge takes it to be quantized

        def _get_transformer_layer_spec(self, vp_stage: int | None = None) -> Any:
            if not local:
                block = super()._get_transformer_layer_spec(vp_stage)
                return _with_router(block) if of_mixture else block
            self.has_vp_stage = True
            # local layers know of nothing that a TransformerConfig can say besides, and of one type
            if layout.splits_model or settings or of_mixture or not plain:
                from miles_async.train.split_layers import split_block_spec as block_spec
            else:
                from miles_async.train.local_layers import local_block_spec as block_spec
            return block_spec(self.config, vp_stage)

    return Bridge


def _with_router(block: Any) -> Any:
    from miles_async.train.router import with_router  # Megatron can be imported only where it is needed

    return with_router(block)


_FILES = {"qwen3_moe": "qwen3moe", "glm4_moe": "glm4moe"}  # where it is not called as the model_type is


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
        if model_type == "glm4_moe":  # which takes these from the package
            for name, file in {"Qwen2Bridge": "qwen2", "Qwen2MoEBridge": "qwen2moe"}.items():
                setattr(
                    sys.modules["mbridge.models"],
                    name,
                    getattr(importlib.import_module(f"mbridge.models.{file}"), name),
                )
        importlib.import_module(f"mbridge.models.{_FILES.get(model_type, model_type)}")
    from mbridge.core.bridge import _MODEL_REGISTRY

    return _MODEL_REGISTRY[model_type]
