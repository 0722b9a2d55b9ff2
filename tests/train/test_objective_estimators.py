"""The advantages that a configuration names, of a whole share, against loops over samples in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rl_estimators import ESTIMATORS, KL, WITH_KL, raw, token_advantages
from rl_reference import old, step_mean
from rl_step import Row, config, random_rows, step

from miles_async.config.schema import RunConfig, old_log_probs
from miles_async.rl.losses import value_loss
from miles_async.rl.terms import StepTerms
from miles_async.train.objective import Objective

ROWS = random_rows(3)


def found(cfg: RunConfig, rows: Sequence[Row] = ROWS) -> tuple[list[list[float]], list[list[float]] | None]:
    """Advantages and returns of every token, 0 where it is masked, as the objective computes them."""
    objective = Objective(cfg)

    def flat(name: str) -> torch.Tensor:
        return torch.tensor([v for row in rows for v in getattr(row, name)], dtype=torch.float32)

    mode = old_log_probs(cfg.algorithm)
    keys = {key: i for i, key in enumerate(dict.fromkeys((row.group, row.rollout) for row in rows))}
    lengths = [len(row) for row in rows]
    terms = StepTerms(
        rewards=torch.tensor([row.reward for row in rows], dtype=torch.float64),
        group_index=torch.tensor([row.group for row in rows]),
        rollout_index=torch.tensor([keys[row.group, row.rollout] for row in rows]),
        sample_index=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths)),
        mask=flat("mask").bool(),
        behaviour=flat("behaviour"),
        old=torch.tensor([v for row in rows for v in old(row, mode)], dtype=torch.float32),
        reference=flat("reference"),
        teacher=flat("teacher"),
        values=flat("values") if objective.needs_critic else None,
    )

    def unmasked(values: torch.Tensor) -> list[list[float]]:
        return [part.tolist() for part in torch.where(terms.mask, values, 0).split(lengths)]

    advantages, returns = objective.advantages(terms)
    assert advantages.dtype == torch.float32
    return unmasked(advantages), None if returns is None else unmasked(returns)


def check(**algorithm: Any) -> None:
    cfg = config(correction="tis", **algorithm)
    for ours, theirs in zip(found(cfg)[0], token_advantages(cfg, ROWS), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_is_the_loops(estimator: str):
    check(advantage_estimator=estimator, gamma=0.9, lambd=0.8)
    check(advantage_estimator=estimator, normalize_advantages=True)


@pytest.mark.parametrize("kind", KL)
@pytest.mark.parametrize("estimator", WITH_KL)
def test_kl_in_the_reward_is_that_of_the_denominator_to_the_reference(estimator: str, kind: str):
    check(advantage_estimator=estimator, kl_coef=0.3, kl_loss_type=kind, gamma=0.9, lambd=0.8)
    cfg = config(correction="behaviour", advantage_estimator=estimator, kl_coef=0.3)
    for ours, theirs in zip(found(cfg)[0], token_advantages(cfg, ROWS), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_grpo_without_its_deviation_is_dr_grpo():
    check(advantage_estimator="grpo", grpo_std_normalization=False)
    plain = config(correction="tis", advantage_estimator="dr_grpo")
    assert found(plain) == found(config(correction="tis", grpo_std_normalization=False))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("normalize", [None, True])
def test_the_teacher_is_heard_after_the_estimator_and_before_the_whitening(estimator: str, normalize: bool | None):
    check(advantage_estimator=estimator, use_opd=True, opd_kl_coef=0.7, normalize_advantages=normalize)


def test_the_reverse_kl_to_the_teacher_is_reported():
    cfg = config(correction="tis", use_opd=True)
    expected = step_mean(ROWS, cfg, lambda row, t: row.before[t] - row.teacher[t])
    assert step(cfg, ROWS).metrics["opd_reverse_kl"] == pytest.approx(expected, abs=1e-6)


def test_the_critic_learns_the_estimators_returns_also_where_advantages_are_whitened_or_taught():
    plain = config(correction="tis", advantage_estimator="ppo", gamma=0.9, lambd=0.8)
    other = config(
        correction="tis", advantage_estimator="ppo", gamma=0.9, lambd=0.8, normalize_advantages=True, use_opd=True
    )
    advantages, returns = raw(plain.algorithm, ROWS, "recompute"), found(plain)[1]
    assert returns is not None and returns == found(other)[1]
    for row, a, ours in zip(ROWS, advantages, returns, strict=True):
        expected = [x + v if m else 0.0 for x, v, m in zip(a, row.values, row.mask, strict=True)]
        assert ours == pytest.approx(expected, abs=1e-6)
    assert found(config(correction="tis"))[1] is None


def test_a_critic_that_knows_the_reward_leaves_no_advantage_and_no_loss():
    rows = [row for row in ROWS if any(row.mask)]
    knowing = [Row(**{**vars(row), "values": (row.reward,) * len(row)}) for row in rows]
    advantages, returns = found(config(correction="tis", advantage_estimator="ppo"), knowing)
    assert returns is not None and all(abs(a) < 1e-6 for per_token in advantages for a in per_token)
    for row, expected in zip(knowing, returns, strict=True):
        values, kept = torch.tensor(row.values), torch.tensor(row.mask)
        loss, clipped = value_loss(values, values, torch.tensor(expected), value_clip=0.2)
        assert loss[kept].abs().max() < 1e-9 and clipped.sum() == 0


def test_a_batch_without_a_token_to_train_has_advantages_and_cannot_be_whitened():
    rows = [Row(**{**vars(row), "mask": (False,) * len(row)}) for row in ROWS]
    assert all(set(a) == {0.0} for a in found(config(correction="tis"), rows)[0])
    with pytest.raises(ValueError, match="no token is unmasked"):
        found(config(correction="tis", normalize_advantages=True), rows)
