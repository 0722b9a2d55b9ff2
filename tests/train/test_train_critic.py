"""PPO's critic: plain PyTorch's steps, an own optimizer, exact restarts, and no trace of it where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from train_ranks import batches, share, spawn
from train_support import Build, make_checkpoint, make_config, make_groups, trainers

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Group
from miles_async.config.schema import ConfigError, Run
from miles_async.rl import rules
from miles_async.train import critic as critic_module
from miles_async.train.batch import micro_batches
from miles_async.train.bridge import ModelError
from miles_async.train.checkpoint import CheckpointError
from miles_async.train.intake import admit
from miles_async.train.ranks import Ranks
from miles_async.train.share import micro_share
from miles_async.train.steps import NonFiniteGradient
from miles_async.train.trainer import MegatronTrainer

PPO = {"advantage_estimator": "ppo"}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_checkpoint(path)
    return path


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with trainers(tmp_path) as make:
        yield make


def critic_weights(trainer: MegatronTrainer) -> dict[str, torch.Tensor]:
    """By their Hugging Face names, as copies; the value head as "head.weight" and "head.bias"."""
    assert trainer._critic is not None
    module = trainer._critic.model.module
    head = module.output_layer
    module.output_layer = torch.nn.Identity()  # the bridge has no name for it
    found = {name: tensor.clone() for name, tensor in trainer._bridge.hf_tensors(module)}
    module.output_layer = head
    return found | {f"head.{name}": tensor.detach().clone() for name, tensor in head.named_parameters()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_close(ours: dict[str, torch.Tensor], expected: Any, atol: float) -> None:
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0, msg=lambda t, name=name: f"{name}: {t}")


class PlainPpo:
    """A transformers policy and a critic of a transformers body and a linear head, one sequence at a time."""

    def __init__(self, policy: Any, body: Any, config: Any) -> None:
        self.policy, self.body, self.config = policy, body, config
        self.head = torch.nn.Linear(body.config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        critic_lr = config.critic.critic_lr or config.learner.lr
        self.optimizers = [self.adam([policy], config.learner.lr), self.adam([body.model, self.head], critic_lr)]

    def adam(self, modules: list[Any], lr: float) -> torch.optim.Optimizer:
        learner = self.config.learner
        parameters = [p for module in modules for p in module.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": learner.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=learner.adam_eps)

    def tokens(self, group: Group, sample: Any) -> tuple[torch.Tensor, slice]:
        """Prompt and response, and where the hidden states lie that predict the response."""
        prompt, response = unpack(group.prompt_tokens, TOKENS), unpack(sample.tokens, TOKENS)
        ids = torch.tensor([*prompt, *response], dtype=torch.int64)[None]
        return ids, slice(len(prompt) - 1, ids.shape[1] - 1)

    def values(self, group: Group, sample: Any) -> torch.Tensor:
        ids, where = self.tokens(group, sample)
        return self.head(self.body.model(input_ids=ids).last_hidden_state)[0, where, 0]

    def advantages(self, values: torch.Tensor, mask: np.ndarray, reward: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Generalized advantage estimation by the book, over the places where ``mask`` is set; and the returns."""
        gamma, lambd = self.config.algorithm.gamma, self.config.algorithm.lambd
        kept = np.flatnonzero(mask)
        found, carry = torch.zeros(len(mask)), 0.0
        for i in reversed(range(len(kept))):
            last = i == len(kept) - 1
            following = 0.0 if last else values[kept[i + 1]].item()
            delta = (reward if last else 0.0) + gamma * following - values[kept[i]].item()
            carry = delta + gamma * lambd * carry
            found[kept[i]] = carry
        return found, found + values.detach()

    def step(self, groups: list[Group]) -> dict[str, float]:
        samples = [(group, sample) for group in groups for sample in group.samples]
        masks = [unpack(sample.loss_mask, MASK) != 0 for _, sample in samples]
        n_tokens = sum(max(int(mask.sum()), 1) for mask in masks)
        values = [self.values(*pair) for pair in samples]
        judged = [self.advantages(v, m, s.reward) for v, m, (_, s) in zip(values, masks, samples, strict=True)]
        advantages = [advantage for advantage, _ in judged]
        if self.config.algorithm.normalize_advantages:
            flat = torch.cat([a[torch.from_numpy(m)] for a, m in zip(advantages, masks, strict=True)])
            advantages = [(a - flat.mean()) / (flat.var() + 1e-8).sqrt() for a in advantages]
        policy_loss, value_loss, mean_value, mean_return = (torch.zeros(()) for _ in range(4))
        for (group, sample), v, (_, returns), advantage, m in zip(
            samples, values, judged, advantages, masks, strict=True
        ):
            mask = torch.from_numpy(m.astype(np.float32))
            ids, where = self.tokens(group, sample)
            logp = self.policy(input_ids=ids).logits[0, where].log_softmax(-1)
            logp = logp.gather(-1, ids[0, where.start + 1 :, None])[:, 0]
            ratio = (logp - torch.from_numpy(unpack(sample.logprobs, LOGPROBS).copy())).exp()
            surrogate = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage)
            policy_loss = policy_loss + (surrogate * mask).sum() / n_tokens
            value_loss = value_loss + ((v - returns).square() * mask).sum() / n_tokens
            mean_value = mean_value + (v.detach() * mask).sum() / n_tokens
            mean_return = mean_return + (returns * mask).sum() / n_tokens
        metrics = {"pg_loss": policy_loss, "critic-value_loss": value_loss}
        metrics |= {"values": mean_value, "returns": mean_return, "critic-value_clipfrac": torch.zeros(())}
        for name, optimizer, loss in zip(
            ("grad_norm", "critic-grad_norm"), self.optimizers, (policy_loss, value_loss), strict=True
        ):
            optimizer.zero_grad()
            loss.backward()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            metrics[name] = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return {name: value.item() for name, value in metrics.items()}


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
    sums = critic.backward(micro, micro_share(moved, micro, torch.device("cpu")))
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
def test_a_restored_checkpoint_continues_bit_for_bit(
    build: Build, qwen3: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    """With a policy that is an update behind its critic: each has a step count of its own."""
    sections = {**sections, "algorithm": PPO, "critic": {"num_critic_only_steps": 1, "critic_lr": 3e-3}}
    groups = [make_groups(2, 4, seed=seed) for seed in range(4)]
    trainer = build(qwen3, **sections)
    for batch in groups[:2]:
        trainer.step(batch)
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    expected = [trainer.step(batch) for batch in groups[2:]]
    weights, values = trainer.export(), critic_weights(trainer)
    trainer = build(qwen3, **sections)
    trainer.step(groups[3])  # any other state, to be overwritten
    trainer.load_checkpoint(tmp_path / "checkpoints")
    assert [trainer.step(batch) for batch in groups[2:]] == expected
    assert_equal(trainer.export(), weights)
    assert_equal(critic_weights(trainer), values)


def test_a_checkpoint_belongs_to_a_run_with_a_critic_or_to_one_without(
    build: Build, qwen3: Path, tmp_path: Path
) -> None:
    for theirs, ours, problem in (
        (PPO, {}, r"by a run with a critic, this run has none: algorithm\.advantage_estimator"),
        ({}, PPO, r"by a run without a critic, this run has one: algorithm\.advantage_estimator"),
    ):
        build(qwen3, algorithm=theirs).save_checkpoint(tmp_path / "checkpoints", {})
        trainer = build(qwen3, algorithm=ours)
        before = trainer.export()
        with pytest.raises(CheckpointError, match=problem):
            trainer.load_checkpoint(tmp_path / "checkpoints")
        assert_equal(trainer.export(), before)


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


def test_the_critic_begins_with_the_weights_of_critic_load(build: Build, qwen3: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", num_hidden_layers=1)
    trainer = build(qwen3, algorithm=PPO, critic={"critic_load": str(tmp_path / "other")})
    state = other.state_dict()
    ours = critic_weights(trainer)
    assert {name: bool(tensor.any()) for name, tensor in ours.items() if "head" in name} == {
        "head.weight": False,
        "head.bias": False,
    }
    assert_equal({n: t for n, t in ours.items() if "head" not in n}, {n: state[n] for n in ours if "head" not in n})
    make_checkpoint(tmp_path / "small", vocab_size=20)
    with pytest.raises(ModelError, match=r"vocabulary of 20 tokens, the policy one of 24: critic\.critic_load"):
        build(qwen3, algorithm=PPO, critic={"critic_load": str(tmp_path / "small")})


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


def rank_sections(sharded: bool) -> dict[str, Any]:
    return {
        "algorithm": PPO | {"lambd": 0.9, "normalize_advantages": True},
        "critic": {"num_critic_only_steps": 1, "critic_lr": 3e-3},
        "learner": {"use_distributed_optimizer": sharded, "max_tokens_per_micro_batch": 40},
    }


def on_two_ranks(rank: int, model: str, root: str) -> None:
    """What a spawned rank does, and writes down in ``rank-N.pt``."""
    seen: dict[bool, Any] = {}
    for sharded in (False, True):
        directory = Path(root) / f"sharded-{sharded}"
        config = make_config(model, **rank_sections(sharded))
        meeting = f"file://{root}/meeting-{sharded}"
        trainer = MegatronTrainer(config, model, Ranks(rank, 2, meeting))
        metrics = [trainer.step(share(groups, rank, 2)) for groups in batches()]
        trainer.save_checkpoint(directory, {})
        weights, critic = trainer.export(), critic_weights(trainer)
        after, critic_after = trainer.step(share(batches()[0], rank, 2)), critic_weights(trainer)
        trainer.load_checkpoint(directory)
        alike = trainer.step(share(batches()[0], rank, 2)) == after
        restored = critic_weights(trainer)
        alike &= all(torch.equal(tensor, restored[name]) for name, tensor in critic_after.items())
        seen[sharded] = {"metrics": metrics, "weights": weights, "critic": critic, "resumed_alike": alike}
        trainer.close()
    torch.save(seen, Path(root) / f"rank-{rank}.pt")


def test_two_ranks_train_as_one_and_go_on_bit_for_bit(build: Build, qwen3: Path, tmp_path: Path) -> None:
    assert spawn(on_two_ranks, str(qwen3), str(tmp_path)) == [0, 0]
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    one = build(qwen3, **rank_sections(False))
    expected = [one.step(groups) for groups in batches()]
    weights, critic = one.export(), critic_weights(one)
    for sharded in (False, True):
        assert first[sharded]["resumed_alike"] and second[sharded]["resumed_alike"]
        assert first[sharded]["metrics"] == second[sharded]["metrics"]
        assert_equal(first[sharded]["critic"], second[sharded]["critic"])
        for ours, theirs in zip(first[sharded]["metrics"], expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
        assert_close(first[sharded]["weights"], weights, 1e-6)
        assert_close(first[sharded]["critic"], critic, 1e-6)
        one = build(qwen3, **rank_sections(sharded))  # and one rank goes on with what two have written
        one.load_checkpoint(tmp_path / f"sharded-{sharded}")
        assert_equal(critic_weights(one), first[sharded]["critic"])


def test_without_a_critic_nothing_is_built_or_reported(build: Build, qwen3: Path) -> None:
    trainer = build(qwen3)
    metrics = trainer.step(make_groups())
    assert trainer._critic is None
    assert not {"values", "returns"} & metrics.keys() and not [name for name in metrics if "critic" in name]
