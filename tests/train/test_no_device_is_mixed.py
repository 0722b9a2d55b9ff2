"""A learner's passes on another device than the CPU: no operation mixes the two, and none asks for a number, for which the
process would wait for the device. The device is torch's ``meta``, whose tensors have no data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import Build, make_checkpoint, make_groups

from miles_async.train.trainer import MegatronTrainer

META = torch.device("meta")
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "grpo, entropy": {"algorithm": {"entropy_coef": 0.01}},
    "decoupled, tis": {"algorithm": {"correction": "tis", "old_log_probs": "recompute"}},
    "gspo": {"algorithm": {"advantage_estimator": "gspo"}},
    "kl": {"algorithm": {"use_kl_loss": True, "kl_loss_coef": 0.1, "old_log_probs": "recompute"}},
    "critic": {"algorithm": {"advantage_estimator": "ppo"}},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "megatron's own layers": {"learner": {"megatron_args": {"apply_rope_fusion": False}}},
}


@pytest.fixture
def rotary_positions_are_not_kept() -> Iterator[None]:
    """Megatron keeps them by their number alone, whatever the device."""
    yield
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    RotaryEmbedding.forward.cache_clear()


def moved(trainer: MegatronTrainer) -> None:
    """The trainer, with models of which only shapes and types are left."""
    trainer._device = trainer._groups.device = trainer._policy._device = META
    models = [trainer._policy.model, *([trainer._critic.model] if trainer._critic else [])]
    for model in (module for one in models for module in one.modules):
        model.rotary_pos_emb.inv_freq = model.rotary_pos_emb.inv_freq.to(META)
        model.rotary_pos_emb.forward.cache_clear()
        for module in model.modules():
            for name, parameter in [*module._parameters.items()]:
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.detach().to(META))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("rotary_positions_are_not_kept")
def test_a_step_mixes_no_devices_and_waits_for_no_number(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    make_checkpoint(tmp_path / "model")
    trainer = build(tmp_path / "model", **CASES[case])
    taken: list[Any] = []
    backward = trainer._backward
    monkeypatch.setattr(trainer, "_backward", lambda *args, **more: taken.append(args) or backward(*args, **more))
    trainer.step(make_groups(6))
    moved(trainer)
    sums = backward(*taken[0], unmoved=False, learning=True)
    assert sums.device == META
    for module in trainer._policy.model.modules:
        assert all(weight.grad is not None and weight.grad.device == META for weight in module.parameters())


def test_a_number_that_is_asked_for_and_a_device_that_is_mixed_would_be_found() -> None:
    there = torch.ones(3, device=META)
    with pytest.raises(RuntimeError, match="meta"):
        there.sum().item()
    with pytest.raises(RuntimeError, match="device"):
        there.mul(torch.ones(3))
