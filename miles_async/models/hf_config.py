"""A model's ``config.json`` with what transformers takes for a key that is not there, without importing transformers, which
takes longer than torch.

Promises: for the models of ``support.LEARNER`` every value that a computation depends on is that of transformers' own
configuration class (tests/models/test_hf_config.py).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "num_key_value_heads": 32,
}
_OF_GROUPS = {"num_experts_per_tok": 8, "n_shared_experts": 1, "norm_topk_prob": True}
_OF_TYPE: dict[str, dict[str, Any]] = {  # by model_type
    "qwen3": {"head_dim": 128, "attention_bias": False},
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "attention_bias": False, "mlp_bias": False},
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "attention_bias": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "router_aux_loss_coef": 0.001,
    },
    "mixtral": {
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
    },
    "glm4_moe": {
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "attention_bias": False,
        "use_qk_norm": False,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **_OF_GROUPS,
    },
    "deepseek_v3": {
        "max_position_embeddings": 4096,
        "num_key_value_heads": 128,
        "attention_bias": False,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_interleave": True,
        **_OF_GROUPS,
    },
}
_ROPE_THETA = {"mixtral": 1e6}  # by model_type
_USUAL_ROPE_THETA = 10000.0
_ROTARY_SHARE = {"glm4_moe": 0.5}  # by model_type
_NULL_IS_SAID = ("q_lora_rank",)  # null is no default of theirs
# names that transformers has besides for a key, and writes itself
_ALIASES: dict[str, dict[str, str]] = {"qwen3_moe": {"num_local_experts": "num_experts"}}


def rope(raw: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes ``rope_parameters``, transformers 4 wrote ``rope_theta`` and ``rope_scaling``."""
    return {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}


def rope_theta(raw: dict[str, Any]) -> float:
    """The base of its rotary frequencies."""
    usual = _ROPE_THETA.get(raw.get("model_type", ""), _USUAL_ROPE_THETA)
    return float(rope(raw).get("rope_theta") or raw.get("rope_theta") or usual)


def rotary_share(raw: dict[str, Any]) -> float:
    """The share of a head's dimensions that is rotated."""
    usual = raw.get("partial_rotary_factor", _ROTARY_SHARE.get(raw.get("model_type", ""), 1.0))
    return rope(raw).get("partial_rotary_factor", usual)


def named(raw: dict[str, Any]) -> dict[str, Any]:
    """``raw`` with one name for what architectures have two names for."""
    aliases = _ALIASES.get(raw.get("model_type", ""), {})
    return {**{name: raw[alias] for alias, name in aliases.items() if alias in raw}, **raw}


def defaults(model_type: str) -> dict[str, Any]:
    """What a key that is not there has. None: as many as there are heads."""
    return _DEFAULTS | _OF_TYPE.get(model_type, {})


def completed(raw: dict[str, Any]) -> dict[str, Any]:
    """``raw``, of a model that support.py has no objection to, and what its keys have that are not there, or null."""
    raw = named(raw)
    usual, said = defaults(raw["model_type"]), [name for name in _NULL_IS_SAID if name in raw]
    found = raw | {name: value for name, value in usual.items() if raw.get(name) is None and name not in said}
    heads = raw["num_attention_heads"]
    if found["num_key_value_heads"] is None or raw.get("num_key_value_heads", heads) is None:
        found["num_key_value_heads"] = heads
    found["head_dim"] = found.get("head_dim") or found.get("qk_rope_head_dim") or raw["hidden_size"] // heads
    return found


class HfConfig(SimpleNamespace):
    """The keys as attributes, ``rope_theta`` and ``partial_rotary_factor`` among them, wherever they were written."""

    def __init__(self, raw: dict[str, Any]) -> None:
        said = {"rope_theta": rope_theta(raw), "partial_rotary_factor": rotary_share(raw)}
        super().__init__(**completed(raw) | said)

    def __contains__(self, name: object) -> bool:
        return name in vars(self)
