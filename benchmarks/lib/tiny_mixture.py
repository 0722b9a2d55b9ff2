"""The quickstart's model as a mixture of experts (Qwen3-MoE): ``builtin:digits`` with four experts in the place of each MLP."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from miles_async.models.builtin import MODELS, make_model

EXPERTS, CHOSEN, INTERMEDIATE = 4, 2, 64


def make_mixture(directory: Path, seed: int) -> Path:
    """Write a checkpoint with weights drawn from ``seed``, like :func:`make_model`."""
    from safetensors.numpy import load_file, save_file

    make_model("builtin:digits", directory, seed)
    arch, generator = MODELS["builtin:digits"], np.random.Generator(np.random.PCG64(seed))
    file = directory / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if ".mlp." not in name}

    def matrix(rows: int, columns: int) -> np.ndarray:
        return generator.standard_normal((rows, columns), dtype=np.float32) * np.float32(arch.init_std)

    for layer in range(arch.layers):
        mlp = f"model.layers.{layer}.mlp"
        tensors[f"{mlp}.gate.weight"] = matrix(EXPERTS, arch.hidden)
        for expert in range(EXPERTS):
            tensors[f"{mlp}.experts.{expert}.gate_proj.weight"] = matrix(INTERMEDIATE, arch.hidden)
            tensors[f"{mlp}.experts.{expert}.up_proj.weight"] = matrix(INTERMEDIATE, arch.hidden)
            tensors[f"{mlp}.experts.{expert}.down_proj.weight"] = matrix(arch.hidden, INTERMEDIATE)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "moe_intermediate_size": INTERMEDIATE,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return directory
