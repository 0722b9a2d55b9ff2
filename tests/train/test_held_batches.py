"""Weights that are held over several batches: one optimizer step, with the mean of their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_held import SECTIONS, halves, hold_on_two_ranks
from train_ranks import spawn
from train_support import Build, assert_close, assert_equal, make_groups

from miles_async.train.held_batches import of_all_parts

CRITIC = {
    "algorithm": {"loss_aggregation": "sample", "advantage_estimator": "ppo", "lambd": 0.95},
    "critic": {"critic_lr": 1e-3},
}


def at_once(build: Build, model: Path, sections: dict[str, Any]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """A step on both batches as one."""
    trainer = build(model, **sections)
    first, second = halves()
    return trainer.step([*first, *second]), trainer.export()


@pytest.mark.parametrize("sections", [SECTIONS["megatron"], CRITIC], ids=["grpo", "critic"])
def test_two_batches_are_one_step_with_the_mean_of_their_gradients(
    build: Build, qwen3: Path, sections: dict[str, Any]
) -> None:
    metrics, weights = at_once(build, qwen3, sections)
    trainer = build(qwen3, **sections)
    before = trainer.export()
    held = trainer.step(halves()[0], ticks=False)
    assert trainer.version == 0 and held["grad_norm"] == 0.0 and held["optimizer_steps"] == 0.0
    assert_equal(trainer.export(), before)
    last = trainer.step(halves()[1])
    assert trainer.version == 1 and last["optimizer_steps"] == 1.0
    assert_close(trainer.export(), weights, atol=1e-6)
    found = of_all_parts([held, last])
    assert found["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-5)
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-4, abs=1e-7)
    assert (found["n_samples"], found["n_tokens"]) == (metrics["n_samples"], metrics["n_tokens"])
    assert found["batches"] == 2.0


def test_a_batch_without_a_token_to_train_ends_what_is_held_and_adds_nothing(build: Build, qwen3: Path) -> None:
    sections, nothing = SECTIONS["megatron"], make_groups(4, 4, seed=5, mask_share=1.1)
    trainer = build(qwen3, **sections)
    alone = trainer.step(halves()[0])
    weights = trainer.export()
    trainer = build(qwen3, **sections)
    trainer.step(nothing, ticks=False)
    trainer.step(halves()[0], ticks=False)
    last = trainer.step(nothing)
    assert last["grad_norm"] == alone["grad_norm"] and last["optimizer_steps"] == 1.0
    assert_equal(trainer.export(), weights)
    assert trainer.step(nothing)["optimizer_steps"] == 0.0  # nothing is held any more


@pytest.mark.parametrize("backend", SECTIONS)
def test_ranks_hold_what_one_process_would(held: dict[str, Any], build: Build, qwen3: Path, backend: str) -> None:
    metrics, weights = at_once(build, qwen3, SECTIONS["megatron"])
    assert held[backend]["version"] == 1
    assert_close(held[backend]["weights"], weights, atol=1e-5)
    assert held[backend]["metrics"][1]["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-4)


@pytest.fixture(scope="module")
def held(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("held")
    assert spawn(hold_on_two_ranks, str(qwen3), str(root)) == [0, 0]
    return torch.load(root / "held.pt", weights_only=False)


def test_counts_are_added_up_and_means_are_over_the_samples_of_all() -> None:
    parts = [
        {"n_samples": 1.0, "raw_reward": 1.0, "max_token_lag": 2.0, "reward_min": 0.0, "grad_norm": 0.0, "lr": 0.0},
        {"n_samples": 3.0, "raw_reward": 0.0, "max_token_lag": 1.0, "reward_min": -1.0, "grad_norm": 5.0, "lr": 0.1},
    ]
    assert of_all_parts(parts) == {
        **{"n_samples": 4.0, "raw_reward": 0.25, "max_token_lag": 2.0, "reward_min": -1.0},
        **{"grad_norm": 5.0, "lr": 0.1, "batches": 2.0},
    }
    assert of_all_parts(parts[:1]) == parts[0]
