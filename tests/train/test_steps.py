"""Several optimizer steps in one batch, steps that are skipped, and steps with nothing to learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import Build, assert_equal, make_checkpoint, make_groups

from bus.codec import LOGPROBS, MASK, TOKENS, unpack
from bus.messages import Group
from miles_async.rl.hooks import ESTIMATOR
from miles_async.train.idle_steps import warnings
from miles_async.train.steps import NonFiniteGradient

SEVERAL = {"num_steps_per_rollout": 2, "ppo_epochs": 2}
RECOMPUTE = {"correction": "tis", "eps_clip": 0.02}


class PlainGrpo:
    """PPO's clip on a transformers model in plain PyTorch: mini-batches of whole groups, several times over."""

    def __init__(self, model: Any, config: Any) -> None:
        self.model, self.algorithm, self.learner = model, config.algorithm, config.learner
        self.optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), eps=1e-4, weight_decay=0.0)
        self.steps = 0

    def logprobs(self, group: Group, sample: Any) -> torch.Tensor:
        prompt, response = unpack(group.prompt_tokens, TOKENS), unpack(sample.tokens, TOKENS)
        ids = torch.tensor([*prompt, *response], dtype=torch.int64)[None]
        logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]

    def batch(self, groups: list[Group]) -> dict[str, float]:
        """The means over its optimizer steps."""
        with torch.no_grad():
            before = [[self.logprobs(group, sample) for sample in group.samples] for group in groups]
        size = len(groups) // self.learner.num_steps_per_rollout
        found = [
            self.step(groups[start : start + size], before[start : start + size])
            for _ in range(self.learner.ppo_epochs)
            for start in range(0, len(groups), size)
        ]
        return {name: sum(step[name] for step in found) / len(found) for name in found[0]}

    def step(self, groups: list[Group], before: list[list[torch.Tensor]]) -> dict[str, float]:
        tokens = sum(max(int(unpack(s.loss_mask, MASK).sum()), 1) for group in groups for s in group.samples)
        loss, clipped = torch.zeros(()), 0.0
        for group, olds in zip(groups, before, strict=True):
            rewards = torch.tensor([sample.reward for sample in group.samples], dtype=torch.float64)
            deviation = rewards.std()
            advantages = (rewards - rewards.mean()) / (deviation + 1e-6 if deviation > 0 else 1.0)
            for sample, old, a in zip(group.samples, olds, advantages.float(), strict=True):
                ratio = (self.logprobs(group, sample) - old).exp()
                held = ratio.clamp(1 - self.algorithm.eps_clip, 1 + self.algorithm.eps_clip)
                mask = torch.from_numpy(unpack(sample.loss_mask, MASK).astype("float32"))
                behaviour = torch.from_numpy(unpack(sample.logprobs, LOGPROBS).copy())
                weight = mask * (old - behaviour).exp().clamp(0, self.algorithm.tis_clip)
                loss = loss + (torch.maximum(-ratio * a, -held * a) * weight).sum() / tokens
                clipped += float(((-held * a > -ratio * a) * mask).sum()) / tokens
        self.optimizer.param_groups[0]["lr"] = rate = self.learner.lr * min(1.0, (self.steps + 1) / 6)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        return {"loss": loss.item(), "pg_clipfrac": clipped, "grad_norm": norm.item(), "lr": rate}


def test_several_steps_in_a_batch_equal_those_of_plain_pytorch_and_the_clip_acts(build: Build, tmp_path: Path):
    """The denominators are those from before the batch; the schedule counts optimizer steps: the warm-up ends in batch 2."""
    model = make_checkpoint(tmp_path / "model")
    trainer = build(tmp_path / "model", learner=SEVERAL | {"lr_warmup_steps": 6}, algorithm=RECOMPUTE)
    plain = PlainGrpo(model, trainer.config)
    for batch in range(2):
        groups = make_groups(4, 4, seed=batch, policy=model)
        expected, metrics = plain.batch(groups), trainer.step(groups)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert metrics["pg_clipfrac"] > 0.02
        assert (metrics["optimizer_steps"], trainer.version) == (4, batch + 1)
    state = model.state_dict()
    for name, tensor in trainer.export().items():
        torch.testing.assert_close(tensor, state[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("aggregation", ["token", "sample", "constant"])
def test_a_steps_loss_is_the_mean_over_its_own_mini_batch(build: Build, qwen3: Path, aggregation: str):
    """The first optimizer step of a batch of two is the whole of a batch that ends there."""
    groups = make_groups(4, 4)
    algorithm = {"loss_aggregation": aggregation, "entropy_coef": 0.01}
    trainer = build(qwen3, learner={"num_steps_per_rollout": 2}, algorithm=algorithm)
    seen: list[dict[str, float]] = []
    model = trainer._policy.model
    apply = model.apply_gradients
    model.apply_gradients = lambda: seen.append(apply()) or seen[-1]
    whole = trainer.step(groups)
    alone = build(qwen3, algorithm=algorithm)
    halves = [alone.step(groups[:2]), alone.step(groups[2:])]
    assert [step["grad_norm"] for step in seen] == pytest.approx([half["grad_norm"] for half in halves], rel=1e-5)
    for name in ("loss", "pg_loss", "entropy_loss", "grad_norm"):
        assert whole[name] == pytest.approx((halves[0][name] + halves[1][name]) / 2, rel=1e-5), name


def test_a_mini_batch_is_the_groups_that_are_left_of_it(build: Build, qwen3: Path):
    groups = make_groups(3, 4)
    trainer = build(qwen3, learner={"num_steps_per_rollout": 2})
    whole = trainer.step(groups, sizes=[1, 2])
    alone = build(qwen3)
    halves = [alone.step(groups[:1]), alone.step(groups[1:])]
    assert whole["loss"] == pytest.approx((halves[0]["loss"] + halves[1]["loss"]) / 2, rel=1e-5)
    metrics = trainer.step(groups[:2], sizes=[0, 2])
    assert (metrics["empty_steps"], metrics["optimizer_steps"]) == (1, 1)


def test_the_critic_is_clipped_around_its_values_from_before_the_batch(build: Build, qwen3: Path):
    algorithm = {"advantage_estimator": "ppo", "correction": "tis", "lambd": 0.9}
    critic = {"value_clip": 0.01, "critic_lr": 1e-2, "num_critic_only_steps": 1}
    trainer = build(qwen3, learner=SEVERAL, algorithm=algorithm, critic=critic)
    before = trainer.export()
    first = trainer.step(make_groups(4, 4))
    assert first["critic-value_clipfrac"] > 0.1 and (first["lr"], first["critic-lr"]) == (0.0, 1e-2)
    assert_equal(trainer.export(), before)  # a batch in which the critic alone learns, all its steps long
    assert trainer._policy.model.steps == 0 and trainer._critic.model.steps == 4
    assert trainer.step(make_groups(4, 4))["lr"] > 0


@pytest.mark.parametrize(
    "sections",
    [{}, {"learner": {"use_distributed_optimizer": True}, "algorithm": RECOMPUTE | {"advantage_estimator": "ppo"}}],
    ids=["grpo", "ppo-sharded"],
)
def test_what_was_killed_in_the_middle_of_a_batch_is_replayed_bit_for_bit(
    build: Build, qwen3: Path, tmp_path: Path, sections: dict[str, Any]
):
    sections = {"algorithm": RECOMPUTE, **sections, "learner": SEVERAL | sections.get("learner", {})}
    batches = [make_groups(4, 4, seed=seed) for seed in range(3)]
    trainer = build(qwen3, **sections)
    expected = [trainer.step(groups) for groups in batches]
    weights = trainer.export()
    trainer = build(qwen3, **sections)
    trainer.step(batches[0])
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    apply, left = trainer._policy.model.apply_gradients, [2]

    def die() -> dict[str, float]:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return apply()

    trainer._policy.model.apply_gradients = die
    with pytest.raises(KeyboardInterrupt):
        trainer.step(batches[1])
    trainer = build(qwen3, **sections)
    trainer.load_checkpoint(tmp_path / "checkpoints")
    assert [trainer.step(groups) for groups in batches[1:]] == expected[1:]
    assert_equal(trainer.export(), weights)


def poison(trainer: Any, attempts: set[int], value: float = math.nan) -> None:
    """The losses of these optimizer steps, counted from 0, are not finite."""
    policy = trainer._policy
    loss, zero_grad, count = policy._loss, policy.model.zero_grad, [-1]

    def begin() -> None:
        count[0] += 1
        zero_grad()

    def broken(*args: Any) -> Any:
        logprobs, value_of, sums = loss(*args)
        factor = value if count[0] in attempts else 1.0
        return logprobs, value_of * factor, {name: part * factor for name, part in sums.items()}

    policy._loss, policy.model.zero_grad = broken, begin


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_skipped_and_the_version_ticks(build: Build, qwen3: Path, value: float):
    """Nothing of Adam or of the schedule moves: the next batch is trained as if there had been none before it."""
    learner = {"lr_warmup_steps": 3}
    expected = build(qwen3, learner=learner).step(make_groups(seed=1))
    trainer = build(qwen3, learner=learner)
    before = trainer.export()
    poison(trainer, {0}, value)
    metrics = trainer.step(make_groups())
    assert (trainer.version, metrics["skipped_steps"], metrics["optimizer_steps"]) == (1, 1, 0)
    assert "loss" not in metrics and all(map(math.isfinite, metrics.values()))
    assert_equal(trainer.export(), before)
    assert trainer.step(make_groups(seed=1, version=1)) == expected


def test_of_several_steps_the_broken_one_is_skipped_and_not_the_batch(build: Build, qwen3: Path):
    trainer = build(qwen3, learner=SEVERAL, algorithm=RECOMPUTE)
    before = trainer.export()
    poison(trainer, {0, 2})
    metrics = trainer.step(make_groups(4, 4))
    assert (metrics["optimizer_steps"], metrics["skipped_steps"]) == (2, 2)
    assert math.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.export().items())
    (kind, text), *others = warnings(metrics, trainer.config)
    assert kind == "steps_skipped" and "2 of 4 optimizer steps" in text and "\n" not in text and not others


def test_too_many_skipped_in_a_row_end_the_run_also_across_a_restart(build: Build, qwen3: Path, tmp_path: Path):
    """A ValueError is what no restart is tried for (actors.runtime.context.FATAL)."""
    learner = SEVERAL | {"max_skipped_steps": 5}
    trainer = build(qwen3, learner=learner)
    poison(trainer, {0, 1, 2, 4, 5, 6, 7})  # the fourth is good: the row begins again
    trainer.step(make_groups(4, 4))
    trainer.step(make_groups(4, 4))
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    for _ in range(2):  # a replay comes to the same end
        trainer = build(qwen3, learner=learner)
        trainer.load_checkpoint(tmp_path / "checkpoints")
        poison(trainer, {0, 1})
        with pytest.raises(NonFiniteGradient, match=r"step 3: .* nan, in a row of 6 .*max_skipped_steps = 5") as ended:
            trainer.step(make_groups(4, 4))
        assert isinstance(ended.value, ValueError) and "\n" not in str(ended.value)


def test_a_loss_of_the_users_that_is_not_finite_is_a_skipped_step_that_names_it(
    build: Build, qwen3: Path, tmp_path: Path
):
    (tmp_path / "mine.py").write_text("def loss(terms, algorithm):\n    return terms.logprobs * float('nan'), {}\n")
    name = f"{tmp_path / 'mine.py'}:loss"
    trainer = build(qwen3, learner={"max_skipped_steps": 1}, algorithm={"policy_loss": name})
    ((kind, text),) = warnings(trainer.step(make_groups()), trainer.config)
    look = f'; nobody holds algorithm.policy_loss = "{name}" to finite numbers: look there first'
    assert kind == "steps_skipped" and text.endswith(look)
    with pytest.raises(NonFiniteGradient) as ended:
        trainer.step(make_groups(version=1))
    assert str(ended.value).endswith(look)


@pytest.mark.parametrize("estimator", sorted(ESTIMATOR.built_in))
def test_a_batch_with_nothing_to_learn_is_a_zero_step_for_every_estimator(build: Build, qwen3: Path, estimator: str):
    """Weights, Adam's moments, the schedule: all as if there had been no such batch."""
    sections = {"learner": {"lr_warmup_steps": 3}, "algorithm": {"advantage_estimator": estimator, "entropy_coef": 0.1}}
    trainer = build(qwen3, **sections)
    trainer.step(make_groups())
    weights = trainer.export()
    metrics = trainer.step(make_groups(mask_share=1.1))
    assert (metrics["loss"], metrics["grad_norm"], metrics["empty_steps"], trainer.version) == (0.0, 0.0, 1.0, 2)
    assert_equal(trainer.export(), weights)
    after = trainer.step(make_groups(seed=1, version=2))
    (kind, text), *others = warnings(metrics, trainer.config)
    assert kind == "nothing_to_learn" and "1 of 1" in text and "\n" not in text and not others
    if estimator == "grpo":
        trainer = build(qwen3, **sections)
        trainer.step(make_groups())
        expected = trainer.step(make_groups(seed=1, version=1))
        assert after == expected and not list(warnings(after, trainer.config))


def test_a_mini_batch_with_nothing_to_learn_is_left_out_of_the_means(build: Build, qwen3: Path):
    trainer = build(qwen3, learner={"num_steps_per_rollout": 2}, algorithm={"advantage_estimator": "ppo"})
    groups = make_groups(2, 4)
    metrics = trainer.step([*groups, *make_groups(2, 4, mask_share=1.1)])
    assert (metrics["optimizer_steps"], metrics["empty_steps"]) == (1, 1)
    alone = build(qwen3, algorithm={"advantage_estimator": "ppo"}).step(groups)
    for name in ("loss", "returns", "values", "grad_norm", "critic-value_loss"):
        assert metrics[name] == pytest.approx(alone[name], rel=1e-5), name
