"""PEFT's adapters in the shards of the fsdp learner: only they are trained, kept in checkpoints and exported; merged they are
the model; two ranks train as one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_fsdp_lora import SECTIONS, two_ranks
from train_ranks import batches, spawn
from train_support import (
    Build,
    assert_close,
    assert_equal,
    hf_log_probs,
    make_checkpoint,
    make_config,
    make_groups,
    trainers,
)

from miles_async.config import toml
from miles_async.models.support import ModelError
from miles_async.train import convert
from miles_async.train.checkpoint import CheckpointError
from miles_async.train.checkpoint_contents import read_metadata

LORA = SECTIONS["learner"]
TOKENS = np.arange(2, 14)


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    from miles_async.train.fsdp_trainer import FsdpTrainer

    with trainers(tmp_path, FsdpTrainer) as make:
        yield make


def test_only_the_adapters_move_and_only_they_have_an_optimizer(build: Build, qwen3: Path) -> None:
    trainer = build(qwen3, learner=LORA | {"lora_targets": ["q_proj", "down_proj"], "weight_decay": 0.1})
    untrained = trainer.export()
    assert_equal(untrained, load_file(qwen3 / "model.safetensors"))
    for seed in range(2):
        trainer.step(make_groups(seed=seed))
    model = trainer._policy.model
    adapters = {name for name in model._all if ".lora_" in name}
    assert set(model._adam.moments()["exp_avg"]) == adapters and len(adapters) == 2 * 2 * 2  # layers, matrices, A and B
    changed = {name for name, tensor in trainer.export().items() if not torch.equal(tensor, untrained[name])}
    wanted = ("self_attn.q_proj", "mlp.down_proj")
    assert changed == {f"model.layers.{layer}.{matrix}.weight" for layer in (0, 1) for matrix in wanted}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # the matrices of gpt2 lie the other way round
def test_the_merged_export_and_the_adapters_in_peft_compute_what_the_learner_does(
    build: Build, tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_checkpoint(tmp_path / "model", kind, **({"n_inner": 48} if kind == "gpt2" else {}))
    trainer = build(tmp_path / "model", learner=LORA)
    [untrained] = trainer.log_probs([TOKENS], 1.0)
    for seed in range(2):
        trainer.step(make_groups(seed=seed))
    trainer.save_hf(tmp_path / "hf")
    trainer.save_adapters(tmp_path / "adapters")
    [ours] = trainer.log_probs([TOKENS], 1.0)
    assert np.abs(ours - untrained).max() > 0.01
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    for model in (merged, adapted):
        assert np.abs(ours - hf_log_probs(model, TOKENS)).max() < 1e-5


def test_two_ranks_begin_with_the_adapters_of_one_and_train_them_alike(
    build: Build, qwen3: Path, tmp_path: Path
) -> None:
    assert spawn(two_ranks, str(qwen3), str(tmp_path)) == [0, 0]
    first, second = (torch.load(tmp_path / f"lora-rank-{rank}.pt", weights_only=False) for rank in (0, 1))
    trainer = build(qwen3, **SECTIONS)
    metrics = [trainer.step(groups) for groups in batches()]
    assert metrics[0]["kl_loss"] == pytest.approx(0.0, abs=1e-6)  # the reference is what the adapters began as
    assert metrics[-1]["kl_loss"] > 1e-4
    assert first["metrics"] == second["metrics"] and second["weights"] == {}
    for ours, theirs in zip(metrics, first["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert_close(trainer.export(), first["weights"], atol=1e-5)
    # the checkpoint of two goes on in one, with their adapters
    trainer.load_checkpoint(tmp_path / "two" / "checkpoints")
    assert_equal(trainer.export(), first["weights"])
    trainer.save_adapters(tmp_path / "adapters-of-one")
    theirs, ours = (load_file(tmp_path / f"adapters-of-{who}" / "adapter_model.safetensors") for who in ("two", "one"))
    assert_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_holds_the_adapters_alone_and_goes_on_bit_for_bit(
    build: Build, qwen3: Path, tmp_path: Path, dtype: str
) -> None:
    sections = {"model": {"dtype": dtype}, "learner": LORA}
    trainer = build(qwen3, **sections)
    trainer.step(make_groups(seed=0))
    path = trainer.save_checkpoint(tmp_path / "run" / "checkpoints", {})
    expected, weights = trainer.step(make_groups(seed=1)), trainer.export()
    names = read_metadata(path / ".metadata").state_dict_metadata
    assert [name for name in names if ".lora_" not in name and name != "steps" and not name.startswith("rng")] == []

    trainer = build(qwen3, **sections)
    trainer.load_checkpoint(path)
    at_save = trainer.export()
    trainer.save_adapters(tmp_path / "adapters")
    assert trainer.step(make_groups(seed=1)) == expected
    assert_equal(trainer.export(), weights)
    with pytest.raises(CheckpointError, match=r"holds lora_rank = 3, .*all-linear, this run trains no adapters"):
        build(qwen3, model={"dtype": dtype}).load_checkpoint(path)
    # the commands that work without a run
    (tmp_path / "run" / "config.toml").write_text(toml.dump(make_config(qwen3, **sections)))
    convert.convert(convert.find(tmp_path / "run"), tmp_path / "converted")
    assert_equal(load_file(tmp_path / "converted" / "model.safetensors"), at_save)
    convert.convert(convert.find(tmp_path / "run"), tmp_path / "converted-adapters", adapters=True)
    ours, theirs = (
        load_file(tmp_path / place / "adapter_model.safetensors") for place in ("converted-adapters", "adapters")
    )
    assert_equal(ours, theirs)


@pytest.mark.parametrize("target", ["linear_qkv", "lm_head", "q"])
def test_a_matrix_that_the_model_has_not_is_refused_with_those_that_it_has(
    build: Build, qwen3: Path, target: str
) -> None:
    learner: dict[str, Any] = LORA | {"lora_targets": [target, "q_proj"]}
    with pytest.raises(
        ModelError, match=rf"has no linear layer {target} .*down_proj, gate_proj, k_proj, o_proj"
    ) as found:
        build(qwen3, learner=learner)
    assert "\n" not in str(found.value)
