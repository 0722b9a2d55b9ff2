"""``learner.optimizer``: gradient descent moves weights by its momentum, and goes on from its checkpoint as it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from as_if_cuda import as_if_cuda
from train_support import Build, assert_close, assert_equal, make_checkpoint, make_config, make_groups

from miles_async.config.schema import ConfigError
from miles_async.train.megatron_args import check

DESCENT = {"optimizer": "sgd", "lr": 0.05, "clip_grad": 0.0}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def test_a_step_of_gradient_descent_is_the_gradient_and_what_is_left_of_the_last_step(
    build: Build, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "model", tied=False)
    trainer = build(tmp_path / "model", learner=DESCENT)
    weights = [trainer.export()]
    for step in range(2):
        trainer.step(make_groups(4, 4, seed=step))
        weights.append(trainer.export())
        trainer.save_hf(tmp_path / f"after-{step}")
    anew = build(tmp_path / "after-0", learner=DESCENT)  # without what is left of the first step
    anew.step(make_groups(4, 4, seed=1))
    alone = anew.export()
    expected = {
        name: alone[name] - 0.9 * (weights[0][name] - weights[1][name]) for name in alone
    }  # Megatron's sgd_momentum
    assert_close(weights[2], expected, atol=1e-6)
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in alone) > 1e-3


@pytest.mark.parametrize(
    ("kind", "dtype", "momentum"),
    [("qwen3", "float32", 0.9), ("qwen3", "bfloat16", 0.9), ("qwen3_moe", "bfloat16", 0.9), ("qwen3", "float32", 0.0)],
)
def test_gradient_descent_goes_on_from_its_checkpoint(
    build: Build, tmp_path: Path, kind: str, dtype: str, momentum: float
) -> None:
    make_checkpoint(tmp_path / "model", kind, tied=False, **(MIXTURE if kind == "qwen3_moe" else {}))
    learner = {**DESCENT, "megatron_args": {"sgd_momentum": momentum}}
    trainer = build(tmp_path / "model", learner=learner, model={"dtype": dtype})
    trainer.save_checkpoint(tmp_path / "untrained", {})
    first = [trainer.step(make_groups(4, 4, seed=step)) for step in range(2)]
    trainer.save_checkpoint(tmp_path / "trained", {})
    third, weights = trainer.step(make_groups(4, 4, seed=2)), trainer.export()
    other = build(tmp_path / "model", learner=learner, model={"dtype": dtype})
    other.load_checkpoint(tmp_path / "trained")
    assert other.step(make_groups(4, 4, seed=2)) == third
    assert_equal(other.export(), weights)
    other.load_checkpoint(tmp_path / "untrained")
    assert [other.step(make_groups(4, 4, seed=step)) for step in range(2)] == first


@pytest.mark.parametrize(
    ("learner", "words"),
    [
        ({"optimizer": "muon"}, r'learner\.optimizer = "muon": .* emerging_optimizers.*; allowed: "adam", "sgd"'),
        (
            {"optimizer": "sgd", "use_distributed_optimizer": True},
            r'learner\.optimizer = "sgd" with learner\.use_distributed_optimizer = true',
        ),
        ({"megatron_args": {"optimizer": "sgd"}}, r"megatron_args\.optimizer is said by learner\.optimizer"),
        (
            {"megatron_args": {"optimizer_cpu_offload": True}},
            r"megatron_args\.optimizer_cpu_offload is said by learner\.optimizer_cpu_offload",
        ),
        (
            {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 0.5},
            r"learner\.optimizer_cpu_offload = true has an effect on a CUDA device only",
        ),
    ],
)
def test_an_optimizer_that_is_not_to_be_had_is_one_line(learner: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        check(make_config("builtin:digits", learner=learner))
    assert "\n" not in str(refused.value)
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_an_offloaded_optimizer_steps_as_one_that_is_not_and_goes_on_from_its_checkpoint(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    make_checkpoint(tmp_path / "model", tied=False)
    plain = {"use_distributed_optimizer": True, "weight_decay": 0.1, "clip_grad": 0.05}
    model = {"dtype": "bfloat16"}
    trainer = build(tmp_path / "model", model=model, learner=plain)
    expected = [trainer.step(make_groups(4, 4, seed=step)) for step in range(3)]
    weights = trainer.export()
    assert all(metrics["grad_norm"] > plain["clip_grad"] for metrics in expected)
    learner = {**plain, "optimizer_cpu_offload": True, "optimizer_offload_fraction": share}
    with as_if_cuda(monkeypatch):
        trainer = build(tmp_path / "model", model=model, learner=learner)
        [part] = trainer._policy.model._optimizer._offloaded
        assert bool(part.optimizer.cpu_optimizers) and (part.optimizer.gpu_optimizer is None) == (share == 1.0)
        trainer.save_checkpoint(tmp_path / "untrained", {})
        found = [trainer.step(make_groups(4, 4, seed=step)) for step in range(2)]
        trainer.save_checkpoint(tmp_path / "trained", {})
        found.append(trainer.step(make_groups(4, 4, seed=2)))
        assert found == expected
        assert_equal(trainer.export(), weights)
        other = build(tmp_path / "model", model=model, learner=learner)
        other.load_checkpoint(tmp_path / "trained")
        assert other.step(make_groups(4, 4, seed=2)) == expected[2]
        assert_equal(other.export(), weights)
        other.load_checkpoint(tmp_path / "untrained")
        assert [other.step(make_groups(4, 4, seed=step)) for step in range(2)] == expected[:2]
    back = build(tmp_path / "model", model=model, learner=plain)  # a run may change its mind
    back.load_checkpoint(tmp_path / "trained")
    assert back.step(make_groups(4, 4, seed=2)) == expected[2]
    back.save_checkpoint(tmp_path / "back", {})
    fourth = back.step(make_groups(4, 4, seed=3))
    with as_if_cuda(monkeypatch):
        again = build(tmp_path / "model", model=model, learner=learner)
        again.load_checkpoint(tmp_path / "back")
        assert again.step(make_groups(4, 4, seed=3)) == fourth
