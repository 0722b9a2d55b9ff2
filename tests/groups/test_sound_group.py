"""What passes the one check before training can be trained.

The property: 10,000 groups, mutated field by field and byte by byte. Each is refused with a reason, or goes with the others
that pass through the learner's intake, share and objective, under every estimator: no exception, and a loss, metrics and a
gradient that are finite, the gradient also when it is squared in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import rl_step
import torch
from group_mutations import mutated
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sound_groups import LIMITS, MAX_LAG, VERSION, filled, replace, sound
from train_support import VOCAB, make_groups

from bus.codec import VERSIONS
from bus.messages import Group
from miles_async.groups.sound import MAX_REWARD, UnsoundGroup, check_group, received
from miles_async.rl.losses import value_loss
from miles_async.rl.terms import LossTerms
from miles_async.train.batch import flatten, micro_batches
from miles_async.train.intake import Admitted, admit
from miles_async.train.objective import Objective
from miles_async.train.share import make_share, micro_share

GROUPS, OF_EXAMPLE, TRAINED_AT_ONCE = 10_000, 50, 800
ESTIMATORS: dict[str, dict[str, Any]] = {
    "grpo": {"policy_loss": "cispo", "correction": ["tis", "m2po"]},
    "gspo": {"correction": ["mis", "opsm"]},
    "dr_grpo": {"policy_loss": "dppo", "correction": "icepop", "loss_aggregation": "constant"},
    "rloo": {"correction": ["rs", "veto"], "eps_clip_c": 3.0, "entropy_coef": 0.1},
    "reinforce_plus_plus": {"correction": "behaviour", "kl_coef": 0.1, "kl_loss_type": "k3"},
    "reinforce_plus_plus_baseline": {"correction": "uncorrected", "use_kl_loss": True, "kl_loss_coef": 0.1},
    "ppo": {"correction": "span_tis", "kl_coef": 0.1, "kl_loss_type": "k2", "loss_aggregation": "sample"},
}


@lru_cache
def objective(estimator: str, taught: bool) -> Objective:
    opd = {"use_opd": True, "opd_kl_coef": 0.5} if taught else {}
    return Objective(rl_step.config(max_lag=MAX_LAG, advantage_estimator=estimator, **ESTIMATORS[estimator], **opd))


class OneRank:
    def gather(self, values: list[float]) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)


def train(estimator: str, admitted: Admitted, rng: np.random.Generator) -> None:
    """What the learner does with a batch, around a model whose log-probs are one number for each token."""
    if not admitted.metrics["n_tokens"]:
        return
    asked = objective(estimator, admitted.taught)
    n = len(admitted.batch.behaviour)

    def model() -> torch.Tensor:
        return torch.from_numpy(-rng.exponential(3.0, n).astype(np.float32))

    current, values = model(), torch.from_numpy(rng.normal(size=n).astype(np.float32))
    share = make_share(
        admitted,
        asked,
        VERSION,
        current=current,
        reference=model() if asked.needs_reference else None,
        values=values if asked.needs_critic else None,
    )
    logprobs = (current + 0.1 * torch.randn(n)).clamp_max(0).requires_grad_(True)
    learnt = values.clone().requires_grad_(True)
    for micro in micro_batches(admitted.batch.sequences, 4096):
        part = micro_share(share, micro, torch.device("cpu"))
        index = torch.from_numpy(micro.token_index)
        terms = LossTerms(
            logprobs=logprobs[index],
            old=asked.old(part.current, part.behaviour, part.versions, VERSION),  # type: ignore[arg-type]
            behaviour=part.behaviour,
            advantages=part.advantages,
            sample_index=part.sample_index,
            versions=part.versions,
            version=VERSION,
            mask=torch.ones_like(part.behaviour),
        )
        loss, metrics = asked.loss(
            terms,
            part.weights,
            pg_weights=part.pg_weights,
            entropy=-logprobs[index],
            reference=part.reference,
            batch_correction=part.correction,
        )
        if part.returns is not None and part.values is not None:
            of_value, _ = value_loss(learnt[index], part.values, part.returns, value_clip=0.2)
            loss = loss + (of_value * part.weights).sum()
        loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(value) for value in metrics.values()), (estimator, metrics)
    for leaf in (logprobs, learnt):
        if leaf.grad is not None:
            assert torch.isfinite(leaf.grad.square().sum()), estimator


def train_all(groups: Sequence[Group], seed: int) -> None:
    """Under every estimator: all of them, and those that have a teacher's log-probs with distillation."""
    torch.manual_seed(seed)
    taught = [group for group in groups if all(sample.teacher_logprobs for sample in group.samples)]
    for batch, estimators in ((groups, ESTIMATORS), (taught, ("grpo", "ppo"))):
        admitted = admit(batch, OneRank(), version=VERSION, max_lag=MAX_LAG, vocab_size=VOCAB)  # type: ignore[arg-type]
        for estimator in estimators:
            train(estimator, admitted, np.random.default_rng(seed))


def test_whatever_passes_is_trained_under_every_estimator_and_the_rest_has_a_reason() -> None:
    seen, passed = Counter[str](), list[Group]()

    # a failing example names all of its groups: to shrink them would take minutes
    @settings(
        max_examples=GROUPS // OF_EXAMPLE,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(st.lists(st.integers(0, 2**32 - 1), min_size=OF_EXAMPLE, max_size=OF_EXAMPLE))
    def check(seeds: list[int]) -> None:
        for number, seed in enumerate(seeds):
            try:
                group, _ = received(mutated(seed, number))
                check_group(group, LIMITS)
                passed.append(group)
                seen["passed"] += 1
            except UnsoundGroup as error:
                seen[error.reason] += 1
        if len(passed) >= TRAINED_AT_ONCE:
            train_all([passed.pop() for _ in range(TRAINED_AT_ONCE)], seeds[0])

    check()
    train_all(passed, 0)
    assert seen.total() >= GROUPS and seen["passed"] > GROUPS / 5, seen
    reasons = {f"invalid_{name}" for name in ("tokens", "logprobs", "versions", "reward", "length", "prompt", "text")}
    assert reasons | {"stale", "invalid_message", "invalid_samples", "invalid_teacher"} <= seen.keys(), seen


def test_one_group_of_the_largest_rewards_and_ratios_has_a_finite_gradient_under_every_estimator() -> None:
    rewards = [MAX_REWARD, -MAX_REWARD, 1.0, 1.0]
    samples = [replace(sample, reward=r) for sample, r in zip(make_groups(1, 4)[0].samples, rewards, strict=True)]
    fields = [{"logprobs": filled(s, -1e5), "versions": filled(s, VERSION, VERSIONS)} for s in samples]
    wild = replace(sound(), samples=tuple(replace(s, **f) for s, f in zip(samples, fields, strict=True)))
    assert flatten([wild], VOCAB).behaviour.min() == -1e5
    train_all([wild, sound(1)], 0)
