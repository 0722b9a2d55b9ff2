"""Adapters beside a frozen model: only they are trained, kept in checkpoints and exported, and merged they are the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_support import Build, assert_equal, hf_log_probs, make_checkpoint, make_config, make_groups

from miles_async.config import toml
from miles_async.config.lora import TARGETS, USUAL
from miles_async.train import convert
from miles_async.train.checkpoint import CheckpointError
from miles_async.train.checkpoint_contents import read_metadata
from miles_async.train.lora import first_seed

LORA: dict[str, Any] = {"lora_rank": 3, "lora_alpha": 6.0, "lr": 1e-2}
ALL = ("q", "k", "v", "o", "gate", "up", "down")
TOKENS = np.arange(2, 14)


def test_only_the_adapters_move_and_only_they_have_an_optimizer(build: Build, qwen3: Path) -> None:
    learner = LORA | {"lora_targets": ["linear_qkv", "linear_fc2"], "weight_decay": 0.1}
    trainer = build(qwen3, learner=learner)
    module = trainer._policy.model.modules[0]
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    untrained = trainer.export()
    assert_equal(untrained, load_file(qwen3 / "model.safetensors"))
    for seed in range(2):
        trainer.step(make_groups(seed=seed))
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = {name for name in before if "_lora." in name}
    assert moved == adapters and len(adapters) == 2 * 2 * 2  # layers, matrices, A and B
    kept = [entry["exp_avg"].numel() for entry in trainer._policy.model._optimizer.megatron.optimizer.state.values()]
    assert sum(kept) == sum(before[name].numel() for name in adapters)
    changed = {name for name, tensor in trainer.export().items() if not torch.equal(tensor, untrained[name])}
    matrices = {f"self_attn.{part}_proj" for part in "qkv"} | {"mlp.down_proj"}
    assert changed == {f"model.layers.{layer}.{matrix}.weight" for layer in (0, 1) for matrix in matrices}


def test_each_matrix_begins_with_a_seed_of_its_own_which_for_the_first_four_is_what_it_always_was() -> None:
    seeds = [first_seed(7, layer, number) for layer in range(1, 100) for number in range(len(TARGETS))]
    assert len(set(seeds)) == len(seeds)
    assert seeds[: len(USUAL)] == [(7 << 20) + 4 + number for number in range(4)]
    assert all(7 << 20 <= seed < 8 << 20 for seed in seeds)


@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_export_is_a_model_for_transformers_that_computes_the_same(
    build: Build, tmp_path: Path, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    make_checkpoint(tmp_path / "model", "qwen2", tied=tied)
    trainer = build(tmp_path / "model", learner=LORA)
    [untrained] = trainer.log_probs([TOKENS], 1.0)
    for seed in range(2):
        trainer.step(make_groups(seed=seed))
    trainer.save_hf(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    [ours] = trainer.log_probs([TOKENS], 1.0)
    assert np.abs(ours - hf_log_probs(model, TOKENS)).max() < 1e-5
    assert np.abs(ours - untrained).max() > 0.01


def test_the_adapters_are_written_as_peft_names_them_and_their_products_are_what_the_merged_model_has_more(
    build: Build, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "model")
    trainer = build(tmp_path / "model", learner=LORA)
    trainer.step(make_groups())
    for _ in range(2):  # the second replaces the first
        trainer.save_adapters(tmp_path / "adapters")
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6)
    assert config["target_modules"] == sorted(f"{name}_proj" for name in ALL)
    found = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    base, merged = load_file(tmp_path / "model" / "model.safetensors"), trainer.export()
    matrices = [name.removesuffix(".weight") for name in base if name.endswith("_proj.weight")]
    assert set(found) == {f"base_model.model.{name}.lora_{side}.weight" for name in matrices for side in "AB"}
    for name in matrices:
        a, b = (found[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        weight = base[f"{name}.weight"]
        assert (a.shape, b.shape) == ((3, weight.shape[1]), (weight.shape[0], 3))
        torch.testing.assert_close(weight + b @ a * 2, merged[f"{name}.weight"], atol=1e-6, rtol=0)
    assert list(tmp_path.glob(".writing*")) == []


@pytest.mark.parametrize(("dtype", "sharded"), [("float32", False), ("bfloat16", True)])
def test_a_checkpoint_holds_the_adapters_alone_and_goes_on_bit_for_bit(
    build: Build, qwen3: Path, tmp_path: Path, dtype: str, sharded: bool
) -> None:

    sections = {"model": {"dtype": dtype}, "learner": LORA | {"use_distributed_optimizer": sharded}}
    trainer = build(qwen3, **sections)
    trainer.step(make_groups(seed=0))
    path = trainer.save_checkpoint(tmp_path / "run" / "checkpoints", {})
    expected, weights, at_save = trainer.step(make_groups(seed=1)), trainer.export(), None

    names = read_metadata(path / ".metadata").state_dict_metadata
    assert [name for name in names if "_lora" not in name and not name.startswith("rng")] == []
    trainer = build(qwen3, **sections)
    trainer.load_checkpoint(path)
    at_save = trainer.export()
    trainer.save_adapters(tmp_path / "adapters")
    assert trainer.step(make_groups(seed=1)) == expected
    assert_equal(trainer.export(), weights)
    trainer.close()
    # the commands that work without a run
    (tmp_path / "run" / "config.toml").write_text(toml.dump(make_config(qwen3, **sections)))
    convert.convert(convert.find(tmp_path / "run"), tmp_path / "converted")
    assert_equal(load_file(tmp_path / "converted" / "model.safetensors"), at_save)
    convert.convert(convert.find(tmp_path / "run"), tmp_path / "converted-adapters", adapters=True)
    ours, theirs = (
        load_file(tmp_path / place / "adapter_model.safetensors") for place in ("converted-adapters", "adapters")
    )
    assert_equal(ours, theirs)


def test_a_checkpoint_with_other_adapters_or_none_is_refused_with_one_line(
    build: Build, qwen3: Path, tmp_path: Path
) -> None:
    build(qwen3, learner=LORA).save_checkpoint(tmp_path / "adapted", {})
    held = r"holds lora_rank = 3, lora_alpha = 6, lora_targets = linear_qkv, linear_proj, linear_fc1, linear_fc2, this run "
    others = [
        (LORA | {"lora_rank": 4}, "trains lora_rank = 4, lora_alpha = 6"),
        (LORA | {"lora_targets": ["linear_qkv"]}, "trains lora_rank = 3, lora_alpha = 6, lora_targets = linear_qkv:"),
        (LORA | {"lora_alpha": 3.0}, "trains lora_rank = 3, lora_alpha = 3,"),
    ]
    for learner, ours in others:
        trainer = build(qwen3, learner=learner)
        with pytest.raises(CheckpointError, match=held + ours) as refused:
            trainer.load_checkpoint(tmp_path / "adapted")
        assert "\n" not in str(refused.value)
    trainer = build(qwen3)
    with pytest.raises(CheckpointError, match=held + r"trains no adapters \(lora_rank = 0\)"):
        trainer.load_checkpoint(tmp_path / "adapted")


def test_the_reference_is_the_frozen_model_and_costs_the_memory_of_the_adapters(
    build: Build, qwen3_and_model: Any, tmp_path: Path
) -> None:
    path, model = qwen3_and_model
    algorithm = {"use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "k2"}
    trainer = build(path, algorithm=algorithm, learner=LORA)
    apart = [trainer.step(make_groups(seed=seed))["kl_loss"] for seed in range(3)]
    assert apart[0] == pytest.approx(0, abs=1e-9) and apart[2] > 1e-5
    [trained] = trainer.log_probs([TOKENS], 1.0)
    with trainer._kept.reference_in_place():
        [reference] = trainer.log_probs([TOKENS], 1.0)
    np.testing.assert_allclose(reference, hf_log_probs(model, TOKENS), atol=1e-5)
    np.testing.assert_array_equal(trainer.log_probs([TOKENS], 1.0)[0], trained)
    parameters = trainer._policy.model.modules[0].parameters()
    assert sum(t.numel() for t in trainer._kept._reference) == sum(p.numel() for p in parameters if p.requires_grad)

    other = make_checkpoint(tmp_path / "other", num_hidden_layers=2, rope_theta=500.0, tied=True)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    trainer = build(path, algorithm=algorithm | {"ref_load": str(tmp_path / "other")}, learner=LORA)
    trainer.step(make_groups())
    with trainer._kept.reference_in_place():
        assert np.abs(trainer.log_probs([TOKENS], 1.0)[0] - reference).max() > 0.01


def test_activations_that_are_computed_again_give_every_adapter_its_gradient(build: Build, qwen3: Path) -> None:
    """Through Megatron's own forward pass, whose numbers are then those of the one over packed tokens."""

    def trained(**learner: Any) -> list[dict[str, float]]:
        trainer = build(qwen3, learner=LORA | learner)
        return [trainer.step(make_groups(seed=seed)) for seed in range(3)]

    packed = trained()
    for recomputed in (
        trained(recompute_granularity="full"),
        trained(recompute_granularity="selective", recompute_modules=["mlp"]),
    ):
        for ours, theirs in zip(recomputed, packed, strict=True):
            for metric, value in theirs.items():
                assert ours[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), metric


def test_a_critic_beside_adapters_is_trained_as_a_whole(build: Build, qwen3: Path) -> None:
    trainer = build(qwen3, algorithm={"advantage_estimator": "ppo"}, learner=LORA)
    critic = trainer._critic.model.modules[0]
    before = [parameter.detach().clone() for parameter in critic.parameters()]
    for seed in range(2):
        trainer.step(make_groups(seed=seed))
    assert all(not torch.equal(p, old) for p, old in zip(critic.parameters(), before, strict=True))
