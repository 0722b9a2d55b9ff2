"""A tiny mixture of experts that a run can begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from miles_async.models import builtin

LAYERS, EXPERTS, TOP_K = 2, 8, 2


def make_mixture(directory: Path, *, seed: int = 0, **options: Any) -> Path:
    """Write a random float32 Qwen3-MoE with the tokenizer and the sizes of ``builtin:digits``."""
    builtin.make_model("builtin:digits", directory, seed)
    dense = builtin.shape_of("builtin:digits")
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    more = ("max_position_embeddings", "initializer_range", "rope_parameters", "eos_token_id", "pad_token_id")
    config = Qwen3MoeConfig(
        **{name: dense[name] for name in (*kept, *more)},
        bos_token_id=None,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3MoeForCausalLM(config).float().save_pretrained(directory)
    return directory


def make_undecided_mixture(directory: Path) -> Path:
    """One whose router weighs all experts nearly alike: rounding decides which of them a token goes to."""
    file = make_mixture(directory, seed=5) / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("mlp.gate.weight"):
            tensors[name] = 0.01 * tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return directory
