"""``miles-async doctor MODEL`` and a launch: each model is computed as transformers does, or refused with one line.

Most of those that are refused Megatron would build and train, and compute something else without a word.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from train_support import make_checkpoint, make_config

from miles_async.cli.doctor import check_model
from miles_async.config.schema import ConfigError
from miles_async.models.support import check_models

PARITY = 1e-4
SPARSE = {"num_experts_per_tok": 2, "num_hidden_layers": 2}
QWEN3 = {**SPARSE, "num_experts": 4, "moe_intermediate_size": 24}
GLM4 = {**SPARSE, "n_routed_experts": 4, "moe_intermediate_size": 24, "n_shared_experts": 2}
GLM4 |= {"n_group": 1, "topk_group": 1, "head_dim": 16}
DEEPSEEK = {**GLM4, "q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
DEEPSEEK |= {"v_head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 1, "head_dim": 4}
GROUPS = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
SCALES = {"mscale": 0.7, "mscale_all_dim": 0.5}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
FULL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}

RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen2": ("qwen2", {}),
    "llama": ("llama", {}),
    "llama with the RoPE of Llama 3.1": ("llama", {"rope_parameters": LLAMA3}),
    "qwen3 with linear RoPE": ("qwen3", {"rope_parameters": LINEAR}),
    "qwen3_moe with the RoPE of Llama 3.1": ("qwen3_moe", {**QWEN3, "rope_parameters": LLAMA3}),
    "qwen3_moe": ("qwen3_moe", {**QWEN3, "norm_topk_prob": True}),
    "qwen3_moe whose weights do not add up to 1": ("qwen3_moe", {**QWEN3, "norm_topk_prob": False}),
    "mixtral without a head_dim": ("mixtral", {**SPARSE, "num_local_experts": 4}),
    "glm4_moe with half of a head rotated": ("glm4_moe", {**GLM4, "use_qk_norm": True, "attention_bias": True}),
    "glm4_moe with all of it": ("glm4_moe", {**GLM4, "rope_parameters": FULL}),
    "glm4_moe with groups of experts": ("glm4_moe", {**GLM4, **GROUPS}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK),
    "deepseek_v3 without a latent query": ("deepseek_v3", {**DEEPSEEK, "q_lora_rank": None}),
    "deepseek_v3 with groups of experts": ("deepseek_v3", {**DEEPSEEK, **GROUPS}),
    "deepseek_v3 with YaRN": ("deepseek_v3", {**DEEPSEEK, "rope_parameters": YARN}),
    "deepseek_v3 with YaRN and both scales": ("deepseek_v3", {**DEEPSEEK, "rope_parameters": {**YARN, **SCALES}}),
    "deepseek_v3 with YaRN and one of them": (
        "deepseek_v3",
        {**DEEPSEEK, "rope_parameters": {**YARN, "mscale_all_dim": 0.5}},
    ),
    "deepseek_v3 with YaRN and a factor of attention": (
        "deepseek_v3",
        {**DEEPSEEK, "rope_parameters": {**YARN, **SCALES, "attention_factor": 1.3}},
    ),
}
NORMALIZES = r"norm_topk_prob false \(supported: true\)"
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "linear of latent attention": (
        "deepseek_v3",
        {**DEEPSEEK, "rope_parameters": LINEAR},
        r"rope_type 'linear' \(supported: default, yarn\)",
    ),
    "yarn": ("qwen3", {"rope_parameters": YARN}, r"rope_type 'yarn' \(supported: default, linear, llama3\)"),
    "yarn of a mixture": (
        "qwen3_moe",
        {**QWEN3, "rope_parameters": YARN},
        r"rope_type 'yarn' \(supported: default, linear, llama3\)",
    ),
    "sliding windows": ("qwen3", SLIDING, r"sliding-window attention \(supported: full attention\)"),
    "sliding windows of a mixture": (
        "mixtral",
        {**SPARSE, "num_local_experts": 4, "sliding_window": 4},
        r"sliding-window attention \(supported: full attention\)",
    ),
    "a shared expert behind a gate": (
        "qwen2_moe",
        {**QWEN3, "shared_expert_intermediate_size": 24},
        "model_type 'qwen2_moe'",
    ),
    "layers without experts": ("qwen3_moe", {**QWEN3, "mlp_only_layers": [0]}, "layers without experts"),
    "every second layer without": ("qwen3_moe", {**QWEN3, "decoder_sparse_step": 2}, "layers without experts"),
    "sigmoids that do not add up to 1": ("glm4_moe", {**GLM4, "norm_topk_prob": False}, NORMALIZES),
    "sigmoids of latent attention": ("deepseek_v3", {**DEEPSEEK, "norm_topk_prob": False}, NORMALIZES),
    "groups rated by more than two experts": (
        "deepseek_v3",
        {**DEEPSEEK, **GROUPS, "topk_group": 1},
        r"n_group above 1 whose experts are not num_experts_per_tok = 2 \* topk_group",
    ),
    "YaRN whose range is not rounded": (
        "deepseek_v3",
        {**DEEPSEEK, "rope_parameters": {**YARN, "truncate": False}},
        r"rope_type 'yarn' with truncate false \(supported: true\)",
    ),
    "biases": ("llama", {"attention_bias": True}, "attention_bias or mlp_bias = true"),
    "part of a head rotated": (
        "llama",
        {"rope_parameters": {**FULL, "partial_rotary_factor": 0.5}},
        "a partial_rotary_factor other than 1",
    ),
    "another activation": ("qwen3", {"hidden_act": "gelu"}, r"hidden_act 'gelu' \(supported: silu\)"),
    "another architecture": ("gpt2", {"n_inner": 48}, r"model_type 'gpt2' \(supported: "),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_model_that_the_learner_knows_is_computed_as_transformers_does(name: str, tmp_path: Path) -> None:
    model_type, settings = RIGHT[name]
    make_checkpoint(tmp_path, model_type, tied=False, **settings)
    found = check_model(tmp_path)
    measured = re.search(r"log-probs are transformers', to (\S+), the largest of", found.detail)
    assert found.state == "ok" and measured, found
    assert float(measured[1]) < PARITY
    check_models(make_config(tmp_path), None)


@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_would_be_computed_otherwise_is_refused_with_one_line(name: str, tmp_path: Path) -> None:
    model_type, settings, said = WRONG[name]
    make_checkpoint(tmp_path, model_type, tied=False, **settings)
    found = check_model(tmp_path)
    assert found.state == "fail" and "\n" not in found.detail
    assert re.search(said, found.detail), found.detail
    with pytest.raises(ConfigError, match=said) as refused:
        check_models(make_config(tmp_path), None)
    assert str(refused.value) == f"model.hf_checkpoint: {found.detail}"
