"""A layout that the model, the learner or this machine cannot have is one clear line of a launch, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from train_support import SHAPE
from typer.testing import CliRunner

from miles_async.cli.app import app
from miles_async.cli.load import parse
from miles_async.config.schema import ConfigError

DENSE = {"model_type": "qwen3", **SHAPE, "num_hidden_layers": 4}
MIXTURE = {**DENSE, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GROUPS = {**MIXTURE, "model_type": "glm4_moe", "n_routed_experts": 4, "n_shared_experts": 1}
GROUPS |= {"n_group": 1, "topk_group": 1}

# config.json, [learner], further sections, and what is said
REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "ranks that are no whole replicas": (
        DENSE,
        "num_ranks = 6\ntensor_parallel_size = 2\npipeline_parallel_size = 2",
        "",
        r"learner\.num_ranks = 6 must be a multiple of learner\.tensor_parallel_size \* pipeline_parallel_size \* "
        r"context_parallel_size = 2 \* 2 \* 1 = 4",
    ),
    "a batch that replicas cannot share": (
        DENSE,
        "num_ranks = 3",
        "[rollout]\nrollout_batch_size = 8",
        r"rollout\.rollout_batch_size = 8",
    ),
    "heads by tensor parallelism": (
        DENSE,
        "num_ranks = 3\ntensor_parallel_size = 3",
        "[rollout]\nrollout_batch_size = 8",
        r"learner\.tensor_parallel_size = 3 must divide the 4 attention heads, which .* has",
    ),
    "a vocabulary by tensor parallelism": (
        {**DENSE, "vocab_size": 25},
        "num_ranks = 2\ntensor_parallel_size = 2",
        "",
        r"learner\.tensor_parallel_size = 2 must divide the vocabulary of 25 tokens, which .* has",
    ),
    "layers by stages": (
        DENSE,
        "num_ranks = 3\npipeline_parallel_size = 3",
        "",
        r"learner\.pipeline_parallel_size \* virtual_pipeline_size = 3 \* 1 = 3 must divide the 4 layers",
    ),
    "layers by stages that take turns": (
        {**DENSE, "num_hidden_layers": 6},
        "num_ranks = 2\npipeline_parallel_size = 2\nvirtual_pipeline_size = 2",
        "",
        r"learner\.pipeline_parallel_size \* virtual_pipeline_size = 2 \* 2 = 4 must divide the 6 layers",
    ),
    "turns without stages": (
        DENSE,
        "virtual_pipeline_size = 2",
        "",
        r"learner\.virtual_pipeline_size = 2 needs learner\.pipeline_parallel_size above 1",
    ),
    "experts by expert parallelism": (
        MIXTURE,
        "num_ranks = 3\nexpert_parallel_size = 3",
        "[rollout]\nrollout_batch_size = 9",
        r"learner\.expert_parallel_size = 3 must divide the 4 experts, which .* has",
    ),
    "experts of a dense model": (
        DENSE,
        "num_ranks = 2\nexpert_parallel_size = 2",
        "",
        r"learner\.expert_parallel_size = 2 needs a mixture of experts, unlike the dense model",
    ),
    "a mixture whose ranks share no sequence": (
        MIXTURE,
        "num_ranks = 2\ntensor_parallel_size = 2\nexpert_tensor_parallel_size = 1\nsequence_parallel = false",
        "",
        r"learner\.sequence_parallel = false with learner\.tensor_parallel_size = 2: not for a mixture of experts",
    ),
    "parts of sequences with a bridge of the user's": (
        DENSE,
        "num_ranks = 2\ncontext_parallel_size = 2",
        'model_provider = "of.mine"',
        r"model\.model_provider gives a bridge that builds whole models: .*context_parallel_size and "
        r"expert_parallel_size must be 1",
    ),
    "parts of sequences with transformers' model": (
        DENSE,
        'num_ranks = 2\ncontext_parallel_size = 2\ntrain_backend = "fsdp"',
        "",
        r"learner\.context_parallel_size",
    ),
    "eight bits on a CPU": (
        DENSE,
        'megatron_args = { fp8 = "hybrid" }',
        "",
        r'learner\.megatron_args\.fp8 = "hybrid" needs a CUDA device, and torch sees none',
    ),
    "an optimizer's state in the CPU's memory on a CPU": (
        DENSE,
        "optimizer_cpu_offload = true\noptimizer_offload_fraction = 0.5",
        "",
        r"learner\.optimizer_cpu_offload = true has an effect on a CUDA device only",
    ),
    "a share of what is not offloaded": (
        DENSE,
        "optimizer_offload_fraction = 0.5",
        "",
        r"learner\.optimizer_offload_fraction = 0\.5 has no effect: it needs learner\.optimizer_cpu_offload = true",
    ),
    "float32 weights among float32 weights": (
        DENSE,
        'fp32_parameters = ["lm_head.weight"]',
        "",
        r"learner\.fp32_parameters = \['lm_head\.weight'\] has no effect: it needs model\.dtype = \"bfloat16\"",
    ),
    "adapters of experts": (
        MIXTURE,
        "lora_rank = 4",
        "",
        r'learner\.lora_targets = \["linear_qkv", .*: experts, which .* has, get no adapters; '
        r"allowed here: linear_proj, linear_qkv$",
    ),
    "a router that would move beside adapters": (
        MIXTURE,
        'lora_rank = 4\nlora_targets = ["linear_qkv"]\nfreeze_moe_router = true',
        "",
        r"learner\.freeze_moe_router = true with learner\.lora_rank: routers are frozen beside adapters",
    ),
    "an optimizer that needs a package": (
        DENSE,
        'optimizer = "muon"',
        "",
        r'learner\.optimizer = "muon": Megatron\'s needs the package emerging_optimizers',
    ),
    "Adam's keys without Adam": (
        DENSE,
        'optimizer = "sgd"\nadam_beta1 = 0.5',
        "",
        r'learner\.adam_beta1 = 0\.5 has no effect: it needs learner\.optimizer = "adam"',
    ),
    "parts of log-probs with transformers' model": (
        DENSE,
        'log_probs_chunk_size = 64\ntrain_backend = "fsdp"',
        "",
        r'learner\.log_probs_chunk_size = 64 has no effect: it needs learner\.train_backend = "megatron"',
    ),
    "an unknown field": (
        DENSE,
        "megatron_args = { memory_efficient_layer_nrom = true }",
        "",
        r"learner\.megatron_args\.memory_efficient_layer_nrom: no field of Megatron's .*"
        r'did you mean "memory_efficient_layer_norm"',
    ),
    "a field of another type": (
        DENSE,
        'megatron_args = { memory_efficient_layer_norm = "yes" }',
        "",
        r'learner\.megatron_args\.memory_efficient_layer_norm = "yes": expected `bool`, got `str`',
    ),
    "a field that a key of ours says": (
        DENSE,
        "megatron_args = { context_parallel_size = 2 }",
        "",
        r"learner\.megatron_args\.context_parallel_size is said by learner\.context_parallel_size",
    ),
}


def text(model: Path, shape: dict[str, Any], learner: str, more: str) -> str:
    model.mkdir()
    (model / "config.json").write_text(json.dumps(shape))
    (model / "model.safetensors").touch()
    of_model, sections = (more, "") if more.startswith("model_provider") else ("", more)
    return (
        f'[model]\nhf_checkpoint = "{model}"\n{of_model}\n[data]\nprompt_data = "builtin:repeat"\n'
        '[algorithm]\ncorrection = "behaviour"\n[engine]\nkind = "external"\nurls = ["http://127.0.0.1:1"]\n'
        f"[learner]\n{learner}\n{sections}\n"
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_cannot_be_is_one_line(name: str, tmp_path: Path) -> None:
    *given, said = REFUSED[name]
    with pytest.raises(ConfigError, match=said) as refused:
        parse(text(tmp_path / "model", *given))
    assert "\n" not in str(refused.value)


def test_the_command_line_says_it_and_starts_nothing(tmp_path: Path) -> None:
    *given, said = REFUSED["layers by stages"]
    (tmp_path / "run.toml").write_text(text(tmp_path / "model", *given))
    done = CliRunner().invoke(app, ["launch", str(tmp_path / "run.toml"), "--run-dir", str(tmp_path / "run")])
    assert done.exit_code == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "must divide the 4 layers" in line and said
    assert not (tmp_path / "run").exists()
