"""A mixture of experts in one process: what it computes, its gradient and its export are transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_support import Build, assert_equal, make_checkpoint, make_groups

from miles_async.train.bridge import ModelBridge
from miles_async.train.lone_model import lone_model
from miles_async.train.parameter_names import EXPERTS
from miles_async.train.parity import compare

EXPERTS_OF = {"num_experts_per_tok": 2, "num_hidden_layers": 2}
SHARED = {"n_routed_experts": 4, "moe_intermediate_size": 24, "n_shared_experts": 2, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"num_key_value_heads": 4, "first_k_dense_replace": 1}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7}
GROUPS = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
GROUPS |= {"rope_parameters": YARN | {"mscale_all_dim": 0.5}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True}),
    "not normalized": ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": False}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "glm4_moe": ("glm4_moe", {**SHARED, "head_dim": 16, "use_qk_norm": True, "attention_bias": True}),
    "glm4_moe, no norms": (
        "glm4_moe",
        {**SHARED, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
    ),
    "deepseek_v3": ("deepseek_v3", {**SHARED, **LATENT}),
    "deepseek_v3, groups and yarn": ("deepseek_v3", {**SHARED, **LATENT, **GROUPS, "q_lora_rank": None}),
}
TOKENS = torch.randint(0, 24, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_a_mixture_computes_learns_and_exports_what_transformers_does(tmp_path: Path, name: str) -> None:
    model_type, settings = MODELS[name]
    theirs = make_checkpoint(tmp_path / "model", model_type, tied=False, **EXPERTS_OF | settings)
    found = compare(tmp_path / "model")
    assert found.same and found.difference < 1e-5
    _backward(theirs(input_ids=TOKENS).logits)
    with lone_model(ModelBridge, str(tmp_path / "model"), torch.float32) as (bridge, module):
        exported = {tensor_name: tensor.clone() for tensor_name, tensor in bridge.hf_tensors(module)}
        assert_equal(exported, load_file(tmp_path / "model" / "model.safetensors"))
        _backward(module(TOKENS, torch.arange(TOKENS.shape[1]).expand_as(TOKENS), None))
        gradients = {
            n: grad for n, p in bridge.view(module).named_parameters() for n, grad in _named(bridge, n, p.grad)
        }
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    alike = gradients.keys() & expected.keys()  # transformers has the experts of a layer in one tensor
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight"} <= alike
    for tensor in alike:
        torch.testing.assert_close(gradients[tensor], expected[tensor], atol=1e-6, rtol=1e-4)
    squares = [sum(float((grad**2).sum()) for grad in of.values()) for of in (gradients, expected)]
    assert squares[0] == pytest.approx(squares[1], rel=1e-4)


def _backward(logits: torch.Tensor) -> None:
    logits[:, :-1].log_softmax(-1).gather(-1, TOKENS[:, 1:, None]).mean().backward()


def _named(bridge: Any, name: str, gradient: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    return [*zip(*bridge.mbridge._weight_to_hf_format(name, gradient), strict=True)]


def test_a_mixture_trains_and_goes_on_from_its_checkpoint(tmp_path: Path, build: Build) -> None:
    make_checkpoint(tmp_path / "model", "qwen3_moe", tied=False, **EXPERTS_OF, **MODELS["qwen3_moe"][1])
    trainer = build(tmp_path / "model", model={"dtype": "bfloat16"})
    before = trainer.export()
    first = trainer.step(make_groups(4, 4, seed=0))
    assert first["grad_norm"] > 0
    after = trainer.export()
    experts = [name for name in after if EXPERTS in name]
    assert len(experts) == 2 * 4 * 3
    assert all(not torch.equal(before[name], after[name]) for name in experts)
    assert all(not torch.equal(before[name], after[name]) for name in after if name.endswith("mlp.gate.weight"))
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    second = trainer.step(make_groups(4, 4, seed=1))
    trainer.load_checkpoint(tmp_path / "checkpoints")
    assert trainer.step(make_groups(4, 4, seed=1)) == second
