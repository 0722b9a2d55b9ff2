"""However many processes hold a model with adapters, and in whatever way, these are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_layouts import (
    LAYOUTS,
    LAYOUTS_OF_LATENT,
    LAYOUTS_OF_MIXTURE,
    LORA,
    LORA_OF_LATENT,
    LORA_OF_MIXTURE,
    TOKENS,
    adapters_in,
    batch,
    gone_on,
    seen_of,
)
from safetensors.torch import load_file
from train_layouts import LATENT, MIXTURE, MODEL
from train_support import Build, assert_close, assert_equal, hf_log_probs, make_checkpoint, trainers

from miles_async.train.ranks import alone


def compared_to_one(root: Path, model_type: str, shape: dict[str, Any], lora: dict[str, Any], names: Any) -> Any:
    """Where all lies, what one process saw after its checkpoint, and what each layout saw that went on from there."""
    model = root / "model"
    make_checkpoint(model, model_type, tied=False, **shape)
    one = alone("")
    with trainers(root) as build:
        trainer = build(model, learner=lora)
        trainer.save_adapters(root / "one-untrained")
        for step in range(2):
            trainer.step(batch(step, one))
        trainer.save_checkpoint(root / "one", {})
        seen = seen_of(trainer, one, root / "one-adapters")
    return root, seen, gone_on(root, model, names, lora)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compared_to_one(tmp_path_factory.mktemp("lora"), "qwen3", MODEL, LORA, LAYOUTS)


@pytest.fixture(scope="module")
def compared_mixture(tmp_path_factory: pytest.TempPathFactory) -> Any:
    shape = MIXTURE | {"moe_intermediate_size": 24}
    root = tmp_path_factory.mktemp("lora-of-mixture")
    return compared_to_one(root, "qwen3_moe", shape, LORA_OF_MIXTURE, LAYOUTS_OF_MIXTURE)


@pytest.fixture(scope="module")
def compared_latent(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("lora-of-latent")
    return compared_to_one(root, "deepseek_v3", LATENT, LORA_OF_LATENT, LAYOUTS_OF_LATENT)


@pytest.mark.parametrize("name", LAYOUTS)
def test_adapters_of_a_split_model_train_as_those_of_a_whole_one(compared: Any, build: Build, name: str) -> None:
    assert_alike(compared, build, name, LORA)


@pytest.mark.parametrize("name", LAYOUTS_OF_MIXTURE)
def test_adapters_of_a_mixtures_attention_train_as_those_of_one_process(
    compared_mixture: Any, build: Build, name: str
) -> None:
    assert_alike(compared_mixture, build, name, LORA_OF_MIXTURE)
    root, expected, _ = compared_mixture
    base = load_file(root / "model" / "model.safetensors")
    moved = {tensor for tensor, value in expected["weights"].items() if not torch.equal(value, base[tensor])}
    assert moved == {tensor for tensor in base if tensor.endswith("_proj.weight") and "self_attn" in tensor}


@pytest.mark.parametrize("name", LAYOUTS_OF_LATENT)
def test_adapters_of_latent_attention_train_as_those_of_one_process(
    compared_latent: Any, build: Build, name: str
) -> None:
    assert_alike(compared_latent, build, name, LORA_OF_LATENT)


def test_adapters_of_latent_attention_in_peft_are_what_the_merged_model_has_more(compared_latent: Any) -> None:
    root, expected, _ = compared_latent
    base, found = load_file(root / "model" / "model.safetensors"), adapters_in(root / "one-adapters")
    names = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    matrices = {f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in names}
    assert set(found) == {f"base_model.model.{name}.lora_{side}.weight" for name in matrices for side in "AB"}
    assert {n for n, tensor in expected["weights"].items() if not torch.equal(tensor, base[n])} == {
        f"{name}.weight" for name in matrices
    }
    for name in matrices:
        a, b = (found[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        merged = base[f"{name}.weight"] + b @ a * (LORA["lora_alpha"] / LORA["lora_rank"])
        torch.testing.assert_close(merged, expected["weights"][f"{name}.weight"], atol=1e-6, rtol=0)


def test_peft_computes_with_adapters_of_latent_attention_what_the_learner_does(compared_latent: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    root, expected, _ = compared_latent
    model = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(root / "one-adapters")).eval()
    for tokens, theirs in zip(TOKENS, expected["log_probs"], strict=True):
        np.testing.assert_allclose(hf_log_probs(adapted, tokens), theirs, atol=2e-5)


def assert_alike(compared: Any, build: Build, name: str, lora: dict[str, Any]) -> None:
    root, expected, layouts = compared
    found, plain = layouts[name], name.replace(" ", "-")
    assert_equal(adapters_in(root / f"{plain}-untrained"), adapters_in(root / "one-untrained"))
    for ours, theirs in zip(found["metrics"], expected["metrics"], strict=True):
        for metric, value in theirs.items():
            assert ours[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), metric
    for ours, theirs in zip(found["log_probs"], expected["log_probs"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert_close(found["weights"], expected["weights"], atol=2e-4)
    ours, theirs = adapters_in(root / f"{plain}-adapters"), adapters_in(root / "one-adapters")
    assert ours.keys() == theirs.keys()
    assert_close(ours, theirs, atol=2e-4)
    trainer = build(root / "model", learner=lora)  # one process takes them over
    trainer.load_checkpoint(root / f"{plain}-checkpoint")
    assert_close(trainer.export(), found["weights"], atol=1e-6)


def test_the_sizes_of_the_comparison_mean_something(compared: Any) -> None:
    """The adapters moved by far more than the layouts may differ."""
    root, expected, _ = compared
    before, after = adapters_in(root / "one-untrained"), adapters_in(root / "one-adapters")
    assert all(float((after[name] - before[name]).abs().max()) > 5e-3 for name in after)
    assert torch.isfinite(torch.tensor([m["grad_norm"] for m in expected["metrics"]])).all()
