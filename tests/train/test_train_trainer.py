"""The Megatron learner on one rank: transformers' numbers, plain PyTorch's steps, exact restarts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_support import Build, hf_log_probs, make_checkpoint, make_groups, trainers

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Group
from miles_async.rl.terms import LossTerms, Metrics
from miles_async.train.batch import BatchError
from miles_async.train.bridge import ModelError
from miles_async.train.steps import NonFiniteGradient
from miles_async.train.trainer import LagExceeded


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with trainers(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("qwen3")
    return path, make_checkpoint(path)


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(
    ("model_type", "tied"), [("qwen3", True), ("qwen3", False), ("qwen2", False), ("qwen2", True), ("llama", False)]
)
def test_log_probs_and_export_are_those_of_transformers(build: Build, tmp_path: Path, model_type: str, tied: bool):
    path = tmp_path / "model"
    model = make_checkpoint(path, model_type, tied=tied, rope_theta=500.0)
    trainer = build(path)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 24, n) for n in (7, 2, 20, 1, 12)]
    for temperature in (1.0, 0.7):
        for ours, tokens in zip(trainer.log_probs(sequences, temperature), sequences, strict=True):
            assert np.abs(ours - hf_log_probs(model, tokens, temperature)).max(initial=0.0) < 1e-5
    assert_equal(trainer.export(), load_file(path / "model.safetensors"))


def reference_step(
    model: Any, optimizer: torch.optim.Optimizer, groups: list[Group], algorithm: Any
) -> tuple[float, float]:
    """GRPO on a transformers model in plain PyTorch, one sequence at a time. Returns the loss and the gradient's norm."""
    n_samples = sum(len(group.samples) for group in groups)
    # as in Miles, a sample without a trained token counts as one in the denominator
    n_tokens = sum(max(int(unpack(s.loss_mask, MASK).sum()), 1) for group in groups for s in group.samples)
    high = algorithm.eps_clip_high or algorithm.eps_clip
    total = torch.zeros(())
    for group in groups:
        rewards = torch.tensor([sample.reward for sample in group.samples], dtype=torch.float64)
        deviation = rewards.std()
        centred = rewards - rewards.mean()
        advantages = centred / (deviation + 1e-6) if deviation > 0 else centred
        for sample, advantage in zip(group.samples, advantages.float(), strict=True):
            prompt, response = unpack(group.prompt_tokens, TOKENS), unpack(sample.tokens, TOKENS)
            ids = torch.tensor([*prompt, *response], dtype=torch.int64)[None]
            logp = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            entropy = -(logp.exp() * logp).sum(-1)
            logp = logp.gather(-1, ids[0, len(prompt) :, None])[:, 0]
            behaviour = torch.from_numpy(unpack(sample.logprobs, LOGPROBS).copy())
            if algorithm.correction is None:
                ratio, correction = (logp - behaviour).exp(), torch.ones(())
            else:
                ratio = (logp - logp.detach()).exp()
                correction = (logp.detach() - behaviour).exp().clamp(algorithm.tis_clip_low, algorithm.tis_clip)
            clipped = ratio.clamp(1 - algorithm.eps_clip, 1 + high)
            loss = torch.maximum(-ratio * advantage, -clipped * advantage) * correction
            loss = loss - algorithm.entropy_coef * entropy
            mask = torch.from_numpy(unpack(sample.loss_mask, MASK).astype(np.float32))
            if algorithm.loss_aggregation == "token":
                total = total + (loss * mask).sum() / n_tokens
            else:
                total = total + (loss * mask).sum() / mask.sum().clamp_min(1) / n_samples
    optimizer.zero_grad()
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total.item(), norm.item()


@pytest.mark.parametrize(
    "algorithm",
    [
        {"entropy_coef": 0.01, "eps_clip_high": 0.28},
        {"loss_aggregation": "sample"},
        {"correction": "tis", "tis_clip": 1.1, "tis_clip_low": 0.8},
    ],
)
def test_steps_equal_those_of_plain_pytorch_and_adamw(build: Build, tmp_path: Path, algorithm: dict[str, Any]):
    model = make_checkpoint(tmp_path / "model")
    learner = {"weight_decay": 0.1, "lr_warmup_steps": 2, "max_tokens_per_micro_batch": 40}
    trainer = build(tmp_path / "model", algorithm=algorithm, learner=learner)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-4,
    )
    for step in range(3):
        groups = make_groups(4, 4, seed=step, policy=model)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 2)
        expected = reference_step(model, optimizer, groups, trainer.config.algorithm)
        metrics = trainer.step(groups)
        assert (metrics["loss"], metrics["grad_norm"]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert trainer.version == 3
    state = model.state_dict()
    for name, tensor in trainer.export().items():
        torch.testing.assert_close(
            tensor, state[name], atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_metrics_are_those_of_the_batch(build: Build, qwen3):
    path, model = qwen3
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


@pytest.mark.parametrize("aggregation", ["token", "sample"])
def test_the_split_into_micro_batches_changes_nothing(build: Build, qwen3, aggregation: str):
    path, model = qwen3
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


def test_a_token_past_the_bound_stops_the_step_before_anything_changes(build: Build, qwen3):
    path, _ = qwen3
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


def test_malformed_groups_and_broken_gradients_leave_the_weights_alone(build: Build, qwen3, monkeypatch):
    path, _ = qwen3
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


def test_a_batch_without_a_trained_token_is_a_step_of_zero_gradient(build: Build, qwen3):
    path, _ = qwen3
    trainer = build(path)
    before = trainer.export()
    metrics = trainer.step(make_groups(2, 2, mask_share=1.1))
    assert (metrics["loss"], metrics["grad_norm"], metrics["n_tokens"], trainer.version) == (0.0, 0.0, 0.0, 1)
    assert_equal(trainer.export(), before)


def test_it_lives_in_a_thread_that_is_not_the_main_one(build: Build, qwen3, tmp_path: Path):
    path, _ = qwen3
    expected = build(path).step(make_groups())

    def life() -> dict[str, float]:
        trainer = build(path)
        metrics = trainer.step(make_groups())
        trainer.load_checkpoint(trainer.save_checkpoint(tmp_path / "checkpoints", {}))
        return metrics

    with ThreadPoolExecutor(max_workers=1) as pool:
        assert pool.submit(life).result(timeout=120) == expected


def test_an_exported_tensor_is_a_snapshot(build: Build, qwen3):
    path, _ = qwen3
    trainer = build(path)
    snapshot = trainer.export()
    kept = {name: tensor.clone() for name, tensor in snapshot.items()}
    trainer.step(make_groups())
    assert_equal(snapshot, kept)
    assert any(not torch.equal(tensor, kept[name]) for name, tensor in trainer.export().items())
    assert all(tensor.is_contiguous() for tensor in snapshot.values())


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"learner": {"use_distributed_optimizer": True}},
        {"model": {"dtype": "bfloat16"}},
        {"model": {"dtype": "bfloat16"}, "learner": {"use_distributed_optimizer": True}},
    ],
    ids=["float32", "float32-sharded", "bfloat16", "bfloat16-sharded"],
)
def test_a_restored_checkpoint_continues_bit_for_bit(build: Build, qwen3, tmp_path: Path, sections: dict[str, Any]):
    path, _ = qwen3
    batches = [make_groups(3, 4, seed=seed) for seed in range(4)]
    trainer = build(path, **sections)
    for groups in batches[:2]:
        trainer.step(groups)
    extra = {"ledger": {"position": 17, "epoch": 2}, "ids": ["0-1-0"]}
    trainer.save_checkpoint(tmp_path / "checkpoints", extra)
    expected = [trainer.step(groups) for groups in batches[2:]]
    weights = trainer.export()

    trainer = build(path, **sections)
    trainer.step(batches[3])  # any other state, to be overwritten
    assert trainer.load_checkpoint(tmp_path / "checkpoints") == extra
    assert trainer.version == 2
    assert [trainer.step(groups) for groups in batches[2:]] == expected
    assert_equal(trainer.export(), weights)


def test_a_checkpoint_of_version_0_is_like_any_other(build: Build, qwen3, tmp_path: Path):
    path, _ = qwen3
    trainer = build(path)
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    expected = trainer.step(make_groups())
    trainer = build(path)
    trainer.load_checkpoint(tmp_path / "checkpoints")
    assert (trainer.version, trainer.step(make_groups())) == (0, expected)


def test_bfloat16_keeps_small_updates_in_float32(build: Build, qwen3):
    path, _ = qwen3
    trainer = build(path, model={"dtype": "bfloat16"}, learner={"lr": 1e-4, "adam_eps": 1e-8})
    before = trainer.export()
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    for _ in range(60):  # each far below a bfloat16 step of a weight near 1
        trainer.step(make_groups(2, 4))
    after = trainer.export()
    big = "model.norm.weight"
    assert not torch.equal(after[big], before[big])


def test_the_export_directory_is_a_model_for_transformers(build: Build, qwen3, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    path, _ = qwen3
    (path / "tokenizer_config.json").write_text("{}")
    trainer = build(path)
    trainer.step(make_groups())
    for _ in range(2):  # the second replaces the first
        trainer.save_hf(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    tokens = np.arange(2, 14)
    assert np.abs(trainer.log_probs([tokens], 1.0)[0] - hf_log_probs(model, tokens)).max() < 1e-5
    assert (tmp_path / "exported" / "tokenizer_config.json").is_file()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".writing")] == []


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}, "rope_type 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
def test_a_model_it_would_compute_differently_is_refused(build: Build, tmp_path: Path, extra, problem: str):
    import json

    make_checkpoint(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **extra}))
    with pytest.raises(ModelError, match=problem):
        build(tmp_path / "model")
    with pytest.raises(ModelError, match=r"no config\.json"):
        build(tmp_path)
