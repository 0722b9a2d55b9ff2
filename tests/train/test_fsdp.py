"""``learner.train_backend = "fsdp"``: losses, gradient norms and weights are those of the Megatron learner, on any number of
ranks; checkpoints go on bit for bit, and on another number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_fsdp import CASES, SEQUENCES, seen_by_all
from train_support import assert_close, assert_equal, hf_log_probs, make_checkpoint

from miles_async.train.value_head import value_head


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 32}
OTHERS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},  # its logits are capped
    "llama": {"rope_parameters": LLAMA3 | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "phi": {},  # its output layer has a bias
    "gpt2": {"n_inner": 48},  # its weights lie the other way round
}


@pytest.fixture(scope="module")
def others(root: Path) -> dict[str, Any]:
    """Models that the Megatron learner refuses, in transformers."""
    return {name: make_checkpoint(root / name, name, **shape) for name, shape in OTHERS.items()}


@pytest.fixture(scope="module")
def seen(root: Path, others: dict[str, Any]) -> dict[str, Any]:
    make_checkpoint(root / "model")
    return seen_by_all(root, root / "model", {name: str(root / name) for name in others})


def same(ours: Any, theirs: Any) -> None:
    """Metrics, weights and log-probs of one case, to rounding."""
    for mine, metrics in zip(ours["metrics"], theirs["metrics"], strict=True):
        assert mine == pytest.approx(metrics, rel=1e-5, abs=1e-5)
    assert ours["weights"].keys() == theirs["weights"].keys()
    assert_close(ours["weights"], theirs["weights"], atol=1e-5)
    for mine, log_probs in zip(ours["log_probs"], theirs["log_probs"], strict=True):
        np.testing.assert_allclose(mine, log_probs, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_fsdp_trains_as_megatron_does(seen: dict[str, Any], root: Path, case: str) -> None:
    same(seen["fsdp"][case], seen["megatron"][case])
    ours, theirs = value_head(root / "fsdp-critic"), value_head(root / "megatron-critic")
    assert ours is not None and theirs is not None
    assert_close(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_two_shards_train_as_one(seen: dict[str, Any], root: Path, case: str) -> None:
    first, second = (rank[case] for rank in seen["two"])
    assert first["metrics"] == second["metrics"] and second["weights"] == {}
    same(first, seen["fsdp"][case])
    ours, theirs = (
        load_file(root / "two-critic" / "model.safetensors"),
        load_file(root / "fsdp-critic" / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert_close(ours, theirs, atol=1e-5)


def test_an_export_before_training_has_the_names_and_bits_of_the_checkpoint(seen: dict[str, Any], root: Path) -> None:
    expected = load_file(root / "model" / "model.safetensors")
    for untrained in (seen["fsdp"]["untrained"], seen["two"][0]["untrained"]):
        assert_equal(untrained, expected)
    assert seen["two"][1]["untrained"] == {}
    assert_equal(seen["bfloat16"]["untrained"], {name: tensor.bfloat16() for name, tensor in expected.items()})


@pytest.mark.parametrize("who", ["bfloat16", "two ranks"])
def test_a_restored_checkpoint_of_shards_continues_bit_for_bit(seen: dict[str, Any], who: str) -> None:
    for of_rank in [seen["bfloat16"]] if who == "bfloat16" else [rank["resumed"] for rank in seen["two"]]:
        (metrics, weights), (metrics_again, weights_again) = of_rank["first"], of_rank["again"]
        assert metrics == metrics_again
        assert_equal(weights, weights_again)


def test_a_checkpoint_of_two_shards_goes_on_in_one_process(seen: dict[str, Any]) -> None:
    extra, weights, metrics = seen["from two"]
    resumed = seen["two"][0]["resumed"]
    assert extra == {"position": 1}
    assert_equal(weights, resumed["saved"])
    assert metrics == pytest.approx(resumed["first"][0], rel=1e-5, abs=1e-5)


def test_a_gradient_that_is_not_finite_changes_no_shard(seen: dict[str, Any]) -> None:
    before, metrics, after = seen["not finite"]
    assert metrics["skipped_steps"] == 2 and metrics["optimizer_steps"] == 0
    assert_equal(after, before)


def test_a_rank_that_is_killed_in_a_pass_is_named(seen: dict[str, Any]) -> None:
    message = seen["two"][0]["peer killed"]
    assert message.startswith("RanksSilent: learner rank 0 waited for the shards of learner ranks 1"), message


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_mbridge_does_not_know_is_trained_as_transformers_computes_it(
    seen: dict[str, Any], others: dict[str, Any], root: Path, name: str
) -> None:
    found = seen["others"][name]
    for tokens, ours in zip(SEQUENCES, found["log_probs"], strict=True):
        np.testing.assert_allclose(ours, hf_log_probs(others[name], tokens), atol=1e-5)
    assert_equal(found["untrained"], load_file(root / name / "model.safetensors"))
    assert found["metrics"]["grad_norm"] > 0 and found["metrics"]["optimizer_steps"] == 1
    unmoved = [key for key, tensor in found["weights"].items() if torch.equal(tensor, found["untrained"][key])]
    assert [key for key in unmoved if "bias" not in key] == []


def test_each_kind_of_learner_refuses_the_checkpoint_of_the_other_in_one_line(seen: dict[str, Any]) -> None:
    megatrons, fsdps = seen["refused"]
    said = 'was written with learner.train_backend = "{}", this run has "{}"'
    assert megatrons.startswith("CheckpointError: ") and said.format("fsdp", "megatron") in megatrons
    assert fsdps.startswith("CheckpointError: ") and said.format("megatron", "fsdp") in fsdps
    assert "\n" not in megatrons + fsdps
