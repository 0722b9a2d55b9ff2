"""The Megatron learner on one rank: what a step reports, and what leaves the weights alone."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from train_support import Build, assert_equal, hf_log_probs, make_groups

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from miles_async.rl.terms import LossTerms, Metrics
from miles_async.train.batch import BatchError
from miles_async.train.steps import NonFiniteGradient
from miles_async.train.trainer import LagExceeded


def test_metrics_are_those_of_the_batch(build: Build, qwen3_and_model):
    path, model = qwen3_and_model
    trainer = build(path, learner={"lr": 1e-3, "lr_warmup_steps": 4})
    groups = make_groups(3, 4, policy=model)
    metrics = trainer.step(groups)
    samples = [sample for group in groups for sample in group.samples]
    masks = np.concatenate([unpack(sample.loss_mask, MASK) for sample in samples]).astype(bool)
    behaviour = np.concatenate([unpack(sample.logprobs, LOGPROBS) for sample in samples])
    current = np.concatenate(
        [
            hf_log_probs(model, np.concatenate([unpack(g.prompt_tokens, TOKENS), unpack(s.tokens, TOKENS)]))[
                len(g.prompt_tokens) // 4 - 1 :
            ]
            for g in groups
            for s in g.samples
        ]
    )
    gap = (current - behaviour)[masks]
    assert metrics["n_tokens"] == masks.sum() and metrics["n_samples"] == 12
    assert metrics["raw_reward"] == pytest.approx(np.mean([sample.reward for sample in samples]))
    assert metrics["response_lengths"] == pytest.approx(len(masks) / 12)
    assert metrics["ppo_kl"] == pytest.approx(-gap.mean(), abs=1e-5)
    assert metrics["train_rollout_logprob_abs_diff"] == pytest.approx(np.abs(gap).mean(), abs=1e-5)
    assert metrics["train_rollout_kl"] == pytest.approx((np.exp(gap) - 1 - gap).mean(), abs=1e-5)
    assert metrics["lr"] == pytest.approx(1e-3 / 4)
    assert metrics["grad_norm"] > 0 and metrics["entropy_loss"] > 0
    assert "tis" not in metrics


def test_the_learners_own_log_prob_of_each_token_is_that_of_the_pass_that_trains_it(build: Build, qwen3_and_model):
    path, model = qwen3_and_model
    several = {"max_tokens_per_micro_batch": 30, "num_steps_per_rollout": 2, "ppo_epochs": 2, "lr": 0.5}
    trainer = build(path, learner=several, record={"learner_log_probs": True})
    groups = make_groups(4, 3, policy=model)
    trainer.step(groups)
    found = trainer.token_log_probs()
    samples = [(group, sample) for group in groups for sample in group.samples]
    mask = np.concatenate([unpack(s.loss_mask, MASK) for _, s in samples]).astype(bool)
    pairs = [(unpack(g.prompt_tokens, TOKENS), unpack(s.tokens, TOKENS)) for g, s in samples]
    first = np.concatenate([hf_log_probs(model, np.concatenate(pair))[len(pair[0]) - 1 :] for pair in pairs])
    assert len(found) == len(mask) and (np.isfinite(found) == mask).all()
    # those of the first two groups are of the weights from before the batch, the others of those that the first step made
    half = sum(len(s.loss_mask) for group in groups[:2] for s in group.samples)
    np.testing.assert_allclose(found[:half][mask[:half]], first[:half][mask[:half]], atol=1e-4)
    assert np.abs(found[half:][mask[half:]] - first[half:][mask[half:]]).max() > 0.01
    trainer.step(groups[:1])
    assert len(trainer.token_log_probs()) == sum(len(s.loss_mask) for s in groups[0].samples)
    without = build(path)
    without.step(groups)
    assert without.token_log_probs() is None


@pytest.mark.parametrize("aggregation", ["token", "sample"])
def test_the_split_into_micro_batches_changes_nothing(build: Build, qwen3_and_model, aggregation: str):
    path, model = qwen3_and_model
    groups = make_groups(4, 4, policy=model)
    results = []
    for max_tokens in (8192, 30, 1):
        algorithm = {"loss_aggregation": aggregation, "entropy_coef": 0.01}
        trainer = build(path, learner={"max_tokens_per_micro_batch": max_tokens}, algorithm=algorithm)
        trainer.step(groups)
        results.append((trainer.step(groups), trainer.export()))
    for metrics, weights in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-5, abs=1e-6)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, results[0][1][name], atol=1e-6, rtol=0)


def test_a_token_past_the_bound_stops_the_step_before_anything_changes(build: Build, qwen3_and_model):
    path, _ = qwen3_and_model
    trainer = build(path, staleness={"max_lag": 1})
    fresh = make_groups(2, 2)
    trainer.step(fresh)
    trainer.step(fresh)
    before = trainer.export()
    too_old = make_groups(2, 2, version=2)
    sample = too_old[1].samples[0]
    n = len(sample.loss_mask)
    late = msgspec.structs.replace(
        sample,
        versions=pack([2] * (n - 1) + [0], VERSIONS),  # one token of a response that went through an update
        loss_mask=pack([1] * n, MASK),
    )
    too_old[1] = msgspec.structs.replace(too_old[1], samples=(late, *too_old[1].samples[1:]))
    with pytest.raises(LagExceeded, match=r"lag 2, above staleness.max_lag = 1"):
        trainer.step(too_old)
    assert trainer.version == 2
    assert_equal(trainer.export(), before)
    late = msgspec.structs.replace(late, loss_mask=pack([1] * (n - 1) + [0], MASK))  # masked out, it does no harm
    too_old[1] = msgspec.structs.replace(too_old[1], samples=(late, *too_old[1].samples[1:]))
    assert trainer.step(too_old)["max_token_lag"] <= 1


def test_malformed_groups_and_broken_gradients_leave_the_weights_alone(build: Build, qwen3_and_model, monkeypatch):
    path, _ = qwen3_and_model
    trainer = build(path, learner={"max_skipped_steps": 0})
    groups = make_groups(1, 4)
    before = trainer.export()
    with pytest.raises(BatchError, match="sample 0"):
        broken = msgspec.structs.replace(groups[0].samples[0], versions=b"")
        trainer.step([msgspec.structs.replace(groups[0], samples=(broken,))])
    with monkeypatch.context() as patch:
        patch.setattr(trainer._objective, "_policy_loss", _poisoned_loss)
        with pytest.raises(NonFiniteGradient, match="nan"):
            trainer.step(groups)
    assert trainer.version == 0
    assert_equal(trainer.export(), before)
    trainer.step(groups)  # and the next step is none the worse
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trainer.export().values())


def _poisoned_loss(terms: LossTerms, algorithm: Any) -> tuple[torch.Tensor, Metrics]:
    return terms.logprobs * math.nan, {"pg_clipfrac": terms.old, "ppo_kl": terms.old}


def test_a_batch_without_a_trained_token_is_a_step_of_zero_gradient(build: Build, qwen3_and_model):
    path, _ = qwen3_and_model
    trainer = build(path)
    before = trainer.export()
    metrics = trainer.step(make_groups(2, 2, mask_share=1.1))
    assert (metrics["loss"], metrics["grad_norm"], metrics["n_tokens"], trainer.version) == (0.0, 0.0, 0.0, 1)
    assert_equal(trainer.export(), before)


def test_it_lives_in_a_thread_that_is_not_the_main_one(build: Build, qwen3_and_model, tmp_path: Path):
    path, _ = qwen3_and_model
    expected = build(path).step(make_groups())

    def life() -> dict[str, float]:
        trainer = build(path)
        metrics = trainer.step(make_groups())
        trainer.load_checkpoint(trainer.save_checkpoint(tmp_path / "checkpoints", {}))
        return metrics

    with ThreadPoolExecutor(max_workers=1) as pool:
        assert pool.submit(life).result(timeout=120) == expected


def test_bfloat16_keeps_small_updates_in_float32(build: Build, qwen3_and_model):
    path, _ = qwen3_and_model
    trainer = build(path, model={"dtype": "bfloat16"}, learner={"lr": 1e-4, "adam_eps": 1e-8})
    before = trainer.export()
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    for _ in range(60):  # each far below a bfloat16 step of a weight near 1
        trainer.step(make_groups(2, 4))
    after = trainer.export()
    big = "model.norm.weight"
    assert not torch.equal(after[big], before[big])
