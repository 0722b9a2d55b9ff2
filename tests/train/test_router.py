"""The losses and the counts of a mixture's routers: by their formulas, of real tokens, whatever is computed together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from train_support import Build, make_checkpoint, make_groups

from miles_async.train.bridge import ModelBridge
from miles_async.train.lone_model import lone_model

EXPERTS, CHOSEN = 4, 2
SHAPE = {"num_experts_per_tok": CHOSEN, "num_experts": EXPERTS, "moe_intermediate_size": 24}
BIASED = {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
}
LENGTHS = (7, 3, 5)  # of sequences side by side


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture")
    make_checkpoint(path, "qwen3_moe", tied=False, **SHAPE)
    return path


def test_the_losses_of_a_router_are_their_formulas_and_padding_is_nothing(mixture: Path) -> None:
    hidden = torch.randn(max(LENGTHS), len(LENGTHS), 32, generator=torch.Generator().manual_seed(0))
    padding = torch.arange(max(LENGTHS))[:, None] >= torch.tensor(LENGTHS)[None]
    with lone_model(ModelBridge, str(mixture), torch.float32) as (_, module):
        router = module.decoder.layers[0].mlp.router
        router.balance_weight, router.z_weight = 0.3, 0.05
        probs, _ = router(hidden, padding)
        (probs * 0).sum().backward()
        found, weight = router.weight.grad, router.weight.detach().clone().requires_grad_()
    balance, z, counts = torch.zeros(()), torch.zeros(()), np.zeros(EXPERTS)
    for row, length in enumerate(LENGTHS):
        logits = hidden[:length, row] @ weight.T
        scores, picked = logits.softmax(-1), logits.topk(CHOSEN).indices
        share = torch.bincount(picked.flatten(), minlength=EXPERTS) / (length * CHOSEN)
        balance = balance + EXPERTS * (share * scores.mean(0)).sum()
        z = z + logits.exp().sum(-1).log().square().sum()
        counts += np.bincount(picked.flatten(), minlength=EXPERTS)
    (0.3 * balance + 0.05 * z).backward()
    torch.testing.assert_close(found, weight.grad, atol=1e-6, rtol=1e-4)
    assert router.counts.tolist() == counts.tolist()
    assert float(router.balance) == pytest.approx(0.3 * balance.item(), rel=1e-5)
    assert float(router.z) == pytest.approx(0.05 * z.item(), rel=1e-5)


def test_neither_micro_batches_nor_recomputing_change_what_routers_lose(mixture: Path, build: Build) -> None:
    def metrics(**learner: Any) -> dict[str, float]:
        given = {"moe_aux_loss_coeff": 0.2, "moe_z_loss_coeff": 0.02, **learner}
        return build(mixture, learner=given).step(make_groups(4, 4, seed=0))

    whole = metrics()
    assert 1 <= whole["moe_max_load"] <= EXPERTS / CHOSEN and whole["moe_aux_loss"] > 0 and whole["moe_z_loss"] > 0
    recomputed = (
        {"recompute_granularity": "full"},
        {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
    )
    for other in ({"max_tokens_per_micro_batch": 20}, *recomputed):
        assert metrics(**other) == pytest.approx(whole, rel=1e-5)
    without = metrics(moe_aux_loss_coeff=0.0, moe_z_loss_coeff=0.0)
    assert without["moe_max_load"] == whole["moe_max_load"] and without["grad_norm"] != pytest.approx(
        whole["grad_norm"]
    )
    assert not {"moe_aux_loss", "moe_z_loss"} & without.keys()


def test_a_frozen_router_stays_and_what_it_chooses_from_learns(mixture: Path, build: Build) -> None:
    trainer = build(mixture, learner={"freeze_moe_router": True})
    before = trainer.export()
    trainer.step(make_groups(4, 4, seed=0))
    moved = {name for name, tensor in trainer.export().items() if not torch.equal(tensor, before[name])}
    assert before.keys() - moved == {name for name in before if name.endswith("mlp.gate.weight")}


def test_a_reference_chooses_experts_by_its_own_biases(tmp_path: Path, build: Build) -> None:
    make_checkpoint(tmp_path / "model", "glm4_moe", tied=False, **BIASED)
    shutil.copytree(tmp_path / "model", tmp_path / "reference")
    weights = load_file(tmp_path / "reference" / "model.safetensors")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    save_file(
        {**weights, name: weights[name].flip(0) + 3 * torch.arange(EXPERTS)},
        tmp_path / "reference" / "model.safetensors",
    )
    for ref, differs in (("model", False), ("reference", True)):
        algorithm = {"use_kl_loss": True, "kl_loss_coef": 0.1, "ref_load": str(tmp_path / ref)}
        trainer = build(tmp_path / "model", algorithm=algorithm)
        metrics = trainer.step(make_groups(4, 4, seed=0))
        assert (abs(metrics["kl_loss"]) > 1e-4) == differs
        assert torch.equal(trainer.export()[name], weights[name])


def test_a_bias_moves_towards_balance_by_the_tokens_of_a_step_and_stays_by_itself(tmp_path: Path, build: Build) -> None:
    make_checkpoint(tmp_path / "model", "glm4_moe", tied=False, **BIASED)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    for rate in (0.0, 0.125):
        trainer = build(tmp_path / "model", learner={"moe_router_bias_update_rate": rate, "lr": 1e-30})
        before = trainer.export()[name]
        trainer.step(make_groups(4, 4, seed=0))
        steps = (trainer.export()[name] - before) / 0.125
        assert steps.round().equal(steps) and set(steps.tolist()) <= {-1.0, 0.0, 1.0}
        assert bool(steps.any()) == bool(rate)
