"""PPO's critic: plain PyTorch's steps, an own optimizer, no influence of masked tokens, no trace of it where there is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from critics import PPO, PlainPpo, critic_weights
from train_support import Build, assert_close, assert_equal, make_checkpoint, make_config, make_groups

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from miles_async.config.schema import ConfigError, Run
from miles_async.rl import rules
from miles_async.train import critic as critic_module
from miles_async.train.batch import micro_batches
from miles_async.train.intake import admit
from miles_async.train.share import micro_share
from miles_async.train.steps import NonFiniteGradient


@pytest.mark.parametrize(
    ("tied", "algorithm"),
    [(True, {"gamma": 0.9, "lambd": 0.8}), (False, {"normalize_advantages": True, "lambd": 0.95})],
    ids=["tied", "untied-whitened"],
)
def test_steps_of_policy_and_critic_equal_those_of_plain_pytorch(
    build: Build, tmp_path: Path, tied: bool, algorithm: dict[str, Any]
) -> None:
    path = tmp_path / "model"
    model = make_checkpoint(path, tied=tied)
    body = make_checkpoint(path, tied=tied)
    learner = {"weight_decay": 0.1, "max_tokens_per_micro_batch": 40}
    trainer = build(path, algorithm=PPO | algorithm, learner=learner, critic={"critic_lr": 4e-3})
    plain = PlainPpo(model, body, trainer.config)
    for step in range(3):
        groups = make_groups(4, 4, seed=step, policy=model)
        expected = plain.step(groups)
        metrics = trainer.step(groups)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=2e-6)
        assert (metrics["lr"], metrics["critic-lr"]) == (2e-3, 4e-3)
    state = body.state_dict() | {f"head.{name}": tensor for name, tensor in plain.head.state_dict().items()}
    assert_close(critic_weights(trainer), state, 1e-5)
    assert_close(trainer.export(), model.state_dict(), 1e-5)


def test_a_value_that_left_its_interval_is_held_there(build: Build, qwen3: Path) -> None:
    """Old values of -1 where the value is 0: held at -1 + 0.3, further from the returns 2 than the value itself is."""
    trainer = build(qwen3, algorithm=PPO, critic={"value_clip": 0.3})
    critic = trainer._critic
    assert critic is not None
    vocab = trainer._bridge.hf_config.vocab_size
    admitted = admit(make_groups(2), trainer._groups, version=0, max_lag=1000, vocab_size=vocab)
    parts = trainer._share(admitted)
    moved = dataclasses.replace(
        parts, values=torch.full_like(parts.advantages, -1.0), returns=torch.full_like(parts.advantages, 2.0)
    )
    (micro,) = micro_batches(admitted.batch.sequences, 8192)
    sums: dict[str, torch.Tensor] = {}
    critic.train_pass([(micro, micro_share(moved, micro, torch.device("cpu")))], sums.update)
    total = float(parts.weights.sum())
    assert float(sums["critic-value_loss"]) == pytest.approx(total * 2.7**2)
    assert float(sums["critic-value_clipfrac"]) == pytest.approx(total)


def test_the_policy_rests_while_the_critic_alone_learns(build: Build, qwen3: Path) -> None:
    learner = {"lr": 1e-3, "lr_warmup_steps": 2}
    critic = {"num_critic_only_steps": 2, "critic_lr": 8e-3, "critic_lr_warmup_steps": 4}
    trainer = build(qwen3, algorithm=PPO, learner=learner, critic=critic)
    policy, before = trainer.export(), critic_weights(trainer)
    for step in range(2):
        metrics = trainer.step(make_groups(seed=step))
        assert (metrics["lr"], metrics["grad_norm"]) == (0.0, 0.0)
        assert metrics["critic-lr"] == pytest.approx(8e-3 * (step + 1) / 4)
        assert metrics["pg_loss"] != 0
    assert trainer.version == 2
    assert_equal(trainer.export(), policy)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in critic_weights(trainer).items())
    # the policy's own warm-up begins where it does
    assert trainer.step(make_groups(seed=2))["lr"] == pytest.approx(1e-3 / 2)
    assert any(not torch.equal(tensor, policy[name]) for name, tensor in trainer.export().items())


def test_the_critic_learns(build: Build, qwen3: Path) -> None:
    """The first token decides the reward, so that only the value before it cannot know."""
    groups = [
        msgspec.structs.replace(
            group, samples=tuple(msgspec.structs.replace(s, reward=float(s.tokens[0] < 12)) for s in group.samples)
        )
        for group in make_groups(4, 4)
    ]
    trainer = build(qwen3, algorithm=PPO, critic={"critic_lr": 5e-3, "num_critic_only_steps": 50})
    losses = [trainer.step(groups)["critic-value_loss"] for _ in range(50)]
    assert losses[-1] < losses[0] / 5


def test_masked_tokens_have_no_influence(build: Build, qwen3: Path) -> None:
    """Neither by what they say of themselves, nor, behind the last trained token, by being there."""
    rng = np.random.default_rng(3)

    def disturbed(sample: Any) -> Any:
        mask = unpack(sample.loss_mask, MASK) != 0
        tail = int(rng.integers(0, 4))
        logprobs = np.where(mask, unpack(sample.logprobs, LOGPROBS), np.nan)
        versions = np.where(mask, unpack(sample.versions, VERSIONS), -999)
        return msgspec.structs.replace(
            sample,
            tokens=sample.tokens + pack(rng.integers(0, 24, tail), TOKENS),
            logprobs=pack(np.append(logprobs, np.full(tail, np.nan)), LOGPROBS),
            loss_mask=sample.loss_mask + pack(np.zeros(tail), MASK),
            versions=pack(np.append(versions, np.full(tail, -999)), VERSIONS),
        )

    original = [make_groups(seed=seed) for seed in range(2)]
    noisy = [[msgspec.structs.replace(g, samples=tuple(map(disturbed, g.samples))) for g in b] for b in original]
    seen = []
    for groups in (original, noisy):
        trainer = build(qwen3, algorithm=PPO | {"lambd": 0.9, "normalize_advantages": True})
        seen.append(([trainer.step(batch) for batch in groups], trainer.export(), critic_weights(trainer)))
    for clean, disturbed_metrics in zip(seen[0][0], seen[1][0], strict=True):
        clean.pop("response_lengths")
        assert {name: disturbed_metrics[name] for name in clean} == pytest.approx(clean, rel=1e-5, abs=1e-6)
    assert_close(seen[0][1], seen[1][1], 1e-6)
    assert_close(seen[0][2], seen[1][2], 1e-6)


def test_a_broken_gradient_of_the_critic_leaves_both_models_alone(
    build: Build, qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(qwen3, algorithm=PPO, learner={"max_skipped_steps": 0})
    policy, critic = trainer.export(), critic_weights(trainer)
    with monkeypatch.context() as patch:
        patch.setattr(critic_module, "value_loss", lambda v, *_, **__: (v * float("nan"), torch.zeros_like(v)))
        with pytest.raises(NonFiniteGradient, match="nan"):
            trainer.step(make_groups())
    assert trainer.version == 0
    assert_equal(trainer.export(), policy)
    assert_equal(critic_weights(trainer), critic)


def test_a_batch_without_a_trained_token_is_a_step_of_zero_gradient(build: Build, qwen3: Path) -> None:
    trainer = build(qwen3, algorithm=PPO)
    before = critic_weights(trainer)
    metrics = trainer.step(make_groups(2, 2, mask_share=1.1))
    assert (metrics["critic-value_loss"], metrics["critic-grad_norm"], metrics["returns"]) == (0.0, 0.0, 0.0)
    assert_equal(critic_weights(trainer), before)


def test_an_estimator_of_the_users_may_have_a_critic(build: Build, qwen3: Path, tmp_path: Path) -> None:
    """One step ahead only: the advantage is the next value less this one, the return the next value."""
    (tmp_path / "mine.py").write_text(
        "from miles_async.rl.advantages import gae\n"
        "from miles_async.rl.terms import with_critic\n\n"
        "@with_critic\n"
        "def one_step(terms, algorithm):\n"
        "    return gae(terms.rewards, terms.values, terms.mask, terms.sample_index, lambd=0.0)[0]\n"
    )
    groups = make_groups()
    mine = build(qwen3, algorithm={"advantage_estimator": f"{tmp_path / 'mine.py'}:one_step"})
    mine.step(groups)
    expected = mine.step(groups)
    ours = build(qwen3, algorithm=PPO | {"lambd": 0.0})
    ours.step(groups)
    assert ours.step(groups) == expected


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"critic": {"value_clip": 0.1}}, r'^critic\.value_clip = 0\.1 has no effect: .*"grpo" has no critic'),
        (
            {"critic": {"num_critic_only_steps": 1}, "algorithm": PPO | {"loss_type": "sft_loss"}}
            | {"rollout": {"rollout_function": "sft"}},
            r"^critic\.num_critic_only_steps = 1 has no effect: .*sft_loss",
        ),
        (
            {"critic": {"num_critic_only_steps": 7}, "algorithm": PPO},
            r"^critic\.num_critic_only_steps = 7 leaves the policy none of run\.num_steps = 7",
        ),
    ],
)
def test_a_critic_that_would_do_nothing_is_refused(sections: dict[str, Any], problem: str) -> None:
    sections = {"staleness": {"max_lag": 0}, **sections}
    config = msgspec.structs.replace(make_config("model", **sections), run=Run(num_steps=7))
    with pytest.raises(ConfigError, match=problem):
        rules.check(config)


def test_without_a_critic_nothing_is_built_or_reported(build: Build, qwen3: Path) -> None:
    trainer = build(qwen3)
    metrics = trainer.step(make_groups())
    assert trainer._critic is None
    assert not {"values", "returns"} & metrics.keys() and not [name for name in metrics if "critic" in name]
