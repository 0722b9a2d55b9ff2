"""Activations that are computed again: the same gradients, bit for bit, with fewer of them kept."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import assert_equal, make_checkpoint, make_groups, trainers

SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {"recompute_granularity": "full"},
    "in twos": {"recompute_granularity": "full", "recompute_num_layers": 2},
    "block": {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
    "attention": {"recompute_granularity": "selective"},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
}


class Kept:
    """What autograd keeps for a backward pass; ``most``: elements of it at one time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> Any:
        holder = _Holder(tensor)
        self.now += tensor.numel()
        self.most = max(self.most, self.now)
        weakref.finalize(holder, self._forget, tensor.numel())
        return holder

    def _forget(self, count: int) -> None:
        self.now -= count


class _Holder:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def trained(build: Any, path: Path, settings: dict[str, Any]) -> tuple[dict[str, float], dict[str, torch.Tensor], int]:
    """Metrics and weights after a step, and how many elements were kept at one time."""
    trainer = build(path, learner={"max_tokens_per_micro_batch": 40, **settings}, algorithm={"entropy_coef": 0.01})
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda holder: holder.tensor):
        metrics = trainer.step(make_groups(4, 4))
    return metrics, trainer.export(), kept.most


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_with_recomputed_activations_has_the_same_bits_and_keeps_less(tmp_path: Path, name: str) -> None:
    make_checkpoint(tmp_path / "model", num_hidden_layers=4)
    with trainers(tmp_path) as build:
        # of nothing: Megatron's own layers as they are
        plain = trained(build, tmp_path / "model", {"recompute_granularity": "selective", "recompute_modules": []})
        again = trained(build, tmp_path / "model", SETTINGS[name])
    assert again[0] == plain[0]
    assert_equal(again[1], plain[1])
    assert again[2] < plain[2]


def test_recomputed_activations_train_as_those_of_the_local_layers(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", num_hidden_layers=4)
    with trainers(tmp_path) as build:
        plain = trained(build, tmp_path / "model", {})
        again = trained(build, tmp_path / "model", SETTINGS["uniform"])
    assert again[0] == pytest.approx(plain[0], rel=1e-5)
    for name, tensor in again[1].items():
        torch.testing.assert_close(tensor, plain[1][name], atol=1e-5, rtol=0)
