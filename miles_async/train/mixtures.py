"""Megatron's settings of a mixture of experts: fields of its TransformerConfig, derived from the model's ``config.json``.

Promises: with them Megatron routes as transformers does, which mbridge's own settings do not for every model
(tests/train/test_mixtures.py); the router computes in float32; nothing moves an expert bias, and no loss is added, but where
the configuration says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from miles_async.models.hf_config import HfConfig, rope
from miles_async.models.mixtures import normalizes

_COMMON: dict[str, Any] = {
    "moe_router_dtype": "fp32",
    "moe_router_load_balancing_type": "none",
    "moe_aux_loss_coeff": 0.0,
    "moe_router_bias_update_rate": 0.0,
    "moe_shared_expert_overlap": False,
}


def mixture_settings(config: HfConfig, *, local: bool) -> dict[str, Any]:
    """Empty for a dense model. local: without TransformerEngine, whose kernels compute several experts at once."""
    of_model = _OF_MODEL.get(config.model_type)
    if of_model is None:
        return {}
    return _COMMON | ({"moe_grouped_gemm": False} if local else {}) | of_model(config)


def _softmax(config: HfConfig) -> dict[str, Any]:
    # a softmax of the chosen experts' logits is that of all, made to add up to 1
    return {"moe_router_pre_softmax": not normalizes(vars(config))}


def _sigmoid(config: HfConfig) -> dict[str, Any]:
    groups = {"moe_router_num_groups": config.n_group, "moe_router_group_topk": config.topk_group}
    return {
        "moe_router_enable_expert_bias": True,
        "moe_shared_expert_intermediate_size": config.moe_intermediate_size * config.n_shared_experts,
        **(groups if config.n_group > 1 else {}),
    }


def _glm4(config: HfConfig) -> dict[str, Any]:
    return _sigmoid(config) | {"add_qkv_bias": config.attention_bias}


def _deepseek(config: HfConfig) -> dict[str, Any]:
    scaling = rope(vars(config))
    yarn = (scaling.get("rope_type") or scaling.get("type")) == "yarn"
    return _sigmoid(config) | {
        "attention_backend": "auto",  # as of any other model: Megatron says it in the environment, once for a process
        "mtp_num_layers": None,  # layers that predict further tokens; nothing here asks for them
        "rope_type": "yarn" if yarn else "rope",
        "rotary_scaling_factor": scaling.get("factor", 1.0),
        "original_max_position_embeddings": scaling.get("original_max_position_embeddings")
        or config.max_position_embeddings,
        "mscale": _mscale(scaling) if yarn else 1.0,
        "mscale_all_dim": scaling.get("mscale_all_dim") or 0.0,
        "beta_fast": scaling.get("beta_fast") or 32.0,
        "beta_slow": scaling.get("beta_slow") or 1.0,
    }


def _mscale(scaling: dict[str, Any]) -> float:
    """With which Megatron makes rotated parts as large as transformers (modeling_rope_utils.py, _compute_yarn_parameters).

    Megatron: (1 + slope * mscale) / (1 + slope * mscale_all_dim), whatever is missing of the two; transformers: the same where
    both are given, else attention_factor, or 1 + slope."""
    mscale, of_all, wanted = scaling.get("mscale"), scaling.get("mscale_all_dim"), scaling.get("attention_factor")
    slope = 0.1 * math.log(max(scaling["factor"], 1.0))
    if slope == 0.0 or (wanted is None and mscale and of_all):
        return mscale or 1.0
    return ((1 + slope if wanted is None else wanted) * (1 + slope * (of_all or 0.0)) - 1) / slope


_OF_MODEL: dict[str, Callable[[HfConfig], dict[str, Any]]] = {
    "qwen3_moe": _softmax,
    "mixtral": _softmax,
    "glm4_moe": _glm4,
    "deepseek_v3": _deepseek,
}
