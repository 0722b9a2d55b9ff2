"""What holds for all inputs: identities on policy, independence of order, of the split, and of what is masked."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_reference import advantages, mean_weights, token_weights
from rl_step import VERSION, Row, close, config, on_policy, random_rows, step

from miles_async.config.schema import RunConfig
from miles_async.rl.advantages import grpo, rloo, whiten
from miles_async.rl.builtin.table import CORRECTIONS
from miles_async.rl.kl import KlType
from miles_async.rl.terms import LossTerms
from miles_async.train.objective import Objective

POLICY_LOSSES = ("ppo_clip", "gspo", "cispo", "truncated_reinforce", "dppo")
AGGREGATIONS = ("token", "sample", "constant")
seeds = st.integers(0, 2**20)
few = settings(max_examples=4)


def weighing(name: str) -> RunConfig:
    return config(correction=name, loss_aggregation="sample", mis_batch_normalize=True)


rewards = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12)


@given(rewards, seeds)
def test_the_advantages_of_a_group_sum_to_zero(values: list[float], seed: int):
    groups = torch.tensor([random.Random(seed + i).randrange(3) for i in range(len(values))])
    tensor = torch.tensor(values, dtype=torch.float64)
    for found in (grpo(tensor, groups), grpo(tensor, groups, std_normalization=False), rloo(tensor, groups)):
        sums = torch.zeros(3, dtype=torch.float64).index_add(0, groups, found)
        assert sums.abs().max().item() < 1e-6


@given(rewards, st.floats(-50, 50), st.floats(0.01, 100))
def test_grpo_neither_sees_where_rewards_lie_nor_their_scale(values: list[float], shift: float, scale: float):
    if max(values) - min(values) < 1.0:  # else std + 1e-6 is not std
        return
    tensor, group = torch.tensor(values, dtype=torch.float64), torch.zeros(len(values), dtype=torch.int64)
    torch.testing.assert_close(grpo(tensor * scale + shift, group), grpo(tensor, group), atol=1e-3, rtol=0)


@given(rewards, seeds)
def test_whitened_advantages_have_mean_0_and_variance_1(values: list[float], seed: int):
    mask = torch.tensor([random.Random(seed + i).random() < 0.7 for i in range(len(values))])
    if mask.sum() < 2:
        return
    found = whiten(torch.tensor(values, dtype=torch.float64), mask)[mask]
    assert abs(found.mean().item()) < 1e-6 and found.var().item() < 1 + 1e-6


@pytest.mark.parametrize("name", CORRECTIONS)
@given(seed=seeds)
@few
def test_on_policy_a_correction_is_the_identity(name: str, seed: int):
    """With behaviour = current, its weights are 1: loss and gradient are those of the plain policy gradient."""
    rows, cfg = on_policy(random_rows(seed)), weighing(name)
    found = step(cfg, rows)
    weights, a = token_weights(rows, cfg), advantages(rows, cfg.algorithm)
    assert found.loss == pytest.approx(-sum(w * x for ws, x in zip(weights, a, strict=True) for w in ws), abs=1e-6)
    for ws, x, gradient in zip(weights, a, found.gradient, strict=True):
        assert gradient == pytest.approx([-w * x for w in ws], abs=1e-6)
    for key, value in found.metrics.items():
        if key.endswith(("clipfrac", "_kl", "_abs", "_masked", "_low", "_high", "_fraction", "chi2_token", "chi2_seq")):
            assert abs(value) < 1e-6, key


@pytest.mark.parametrize("name", CORRECTIONS)
def test_on_policy_every_weight_is_exactly_1(name: str):
    cfg = weighing(name)
    rows = on_policy(random_rows(0))
    terms = flat(rows)
    objective = Objective(cfg)
    whole = objective.correct_batch(terms)
    each = objective._multiplied(objective._corrections, terms)
    for found in (each, each if whole is None else whole):
        assert found.weights.tolist() == [1.0] * len(terms.mask)
        assert found.keep is None or found.keep.tolist() == [1.0] * len(terms.mask)


@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
@given(seed=seeds)
@few
def test_on_policy_every_loss_has_the_gradient_of_the_plain_policy_gradient(policy_loss: str, seed: int):
    rows = on_policy(random_rows(seed))
    for aggregation, estimator in itertools.product(AGGREGATIONS, ("grpo", "dr_grpo")):
        cfg = config(
            correction="uncorrected",
            policy_loss=policy_loss,
            loss_aggregation=aggregation,
            advantage_estimator=estimator,
        )
        a = advantages(rows, config(correction="uncorrected", grpo_std_normalization=estimator == "grpo").algorithm)
        for row, ws, x, gradient in zip(rows, token_weights(rows, cfg), a, step(cfg, rows).gradient, strict=True):
            # of a sample's mean every token has its part: the same where its tokens weigh alike
            assert gradient == pytest.approx([-w * x for w in ws], abs=1e-6), row


@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
def test_policies_however_far_apart_give_a_finite_step_whose_gradient_has_a_float32_norm(policy_loss: str):
    """Log-ratios of 10 to 1e4 between every two of engine, learner before and now, and reference."""
    kinds: tuple[KlType, ...] = ("k1", "k2", "k3", "low_var_kl")
    for (seed, spread), kind in itertools.product(enumerate((30.0, 1e3)), kinds):
        cfg = config(
            correction=["mis", "tis"],
            policy_loss=policy_loss,
            use_kl_loss=True,
            kl_loss_coef=1.0,
            kl_loss_type=kind,
            use_unbiased_kl=True,
        )
        found = step(cfg, random_rows(seed, groups=4, spread=spread))
        gradient = torch.tensor([g for row in found.gradient for g in row], dtype=torch.float32)
        assert math.isfinite(float(1000 * gradient.square().sum())), (kind, spread)
        assert all(map(math.isfinite, found.metrics.values())), (kind, spread)


# every part of the objective at once; whitening, m2po and the normalised mis need the other ranks
ALL_AT_ONCE = {
    "kitchen-sink": {
        "correction": ["mis", "m2po", "opsm", "rs", "veto"],
        "rs_upper": 2.0,
        "m2po_threshold": 0.3,
        "mis_batch_normalize": True,
        "normalize_advantages": True,
        "entropy_coef": 0.1,
        "use_kl_loss": True,
        "kl_loss_coef": 0.2,
        "kl_loss_type": "k3",
        "use_unbiased_kl": True,
        "use_opd": True,
    },
    "by-sample": {"correction": ["mis", "span_tis"], "mis_level": "geometric", "mis_batch_normalize": True},
    "gspo": {"correction": ["tis"], "policy_loss": "gspo", "old_log_probs": "loglinear"},
    "reinforce++": {"correction": ["icepop"], "advantage_estimator": "reinforce_plus_plus", "kl_coef": 0.1},
    "baseline": {"correction": ["m2po"], "advantage_estimator": "reinforce_plus_plus_baseline", "kl_coef": 0.1},
    "ppo": {"correction": "tis", "advantage_estimator": "ppo", "kl_coef": 0.1, "lambd": 0.9, "use_opd": True},
    "rloo": {"correction": "behaviour", "advantage_estimator": "rloo", "policy_loss": "dppo"},
}


def configurations() -> list[RunConfig]:
    return [
        config(loss_aggregation=aggregation, **algorithm)
        for algorithm, aggregation in zip(ALL_AT_ONCE.values(), itertools.cycle(AGGREGATIONS), strict=False)
    ]


@pytest.mark.parametrize("cfg", configurations(), ids=list(ALL_AT_ONCE))
@given(seed=seeds)
@few
def test_neither_order_nor_micro_batches_nor_ranks_change_loss_gradient_or_metrics(cfg: RunConfig, seed: int):
    rows = random_rows(seed, groups=4)
    whole = step(cfg, rows)
    close(step(cfg, rows, max_tokens=6), whole)
    close(step(cfg, rows, ranks=3, max_tokens=12), whole)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    shuffled = step(cfg, [rows[i] for i in order], ranks=2)
    back = [shuffled.gradient[order.index(i)] for i in range(len(rows))]
    close(replace(shuffled, gradient=back), whole)


@given(seed=seeds)
@settings(max_examples=2)
def test_a_rank_without_a_token_to_train_takes_part(seed: int):
    rows = random_rows(seed, groups=2)
    empty = [replace(row, mask=(False,) * len(row)) if row.group == 1 else row for row in rows]
    for cfg in configurations():
        close(step(cfg, empty, ranks=2), step(cfg, empty))
        close(step(cfg, rows, ranks=3), step(cfg, rows))  # the third has no group at all


NUMBERS = (float("nan"), float("inf"), float("-inf"), 1e30, -1e4, 0.0)
FIELDS = ("behaviour", "before", "logprobs", "reference", "teacher", "values", "entropy")


def disturbed(rows: Sequence[Row], seed: int) -> list[Row]:
    """The same rows with anything at all at the masked tokens."""
    rng = random.Random(seed)

    def other(row: Row, name: str) -> tuple[float, ...]:
        return tuple(v if m else rng.choice(NUMBERS) for v, m in zip(getattr(row, name), row.mask, strict=True))

    versions = [
        tuple(v if m else rng.choice((-1, 0, 3, VERSION, 99)) for v, m in zip(row.versions, row.mask, strict=True))
        for row in rows
    ]
    return [
        replace(row, versions=own, **{name: other(row, name) for name in FIELDS})
        for row, own in zip(rows, versions, strict=True)
    ]


@pytest.mark.parametrize("cfg", configurations(), ids=list(ALL_AT_ONCE))
@given(seed=seeds)
@few
def test_what_stands_at_a_masked_token_has_no_influence_on_a_step(cfg: RunConfig, seed: int):
    rows = random_rows(seed)
    ours, theirs = step(cfg, disturbed(rows, seed)), step(cfg, rows)
    assert ours == theirs


def flat(rows: Sequence[Row], algorithm_advantages: Sequence[float] | None = None) -> LossTerms:
    """All tokens of the rows, masked ones among them, as one micro-batch."""

    def tensor(name: str) -> torch.Tensor:
        return torch.tensor([v for row in rows for v in getattr(row, name)], dtype=torch.float64)

    index = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
    a = torch.ones(len(rows)) if algorithm_advantages is None else torch.tensor(algorithm_advantages)
    return LossTerms(
        logprobs=tensor("logprobs").requires_grad_(True),
        old=tensor("before"),
        behaviour=tensor("behaviour"),
        advantages=a.double()[index],
        sample_index=index,
        versions=tensor("versions").long(),
        version=VERSION,
        mask=tensor("mask"),
    )


def whole(objective: Objective, rows: Sequence[Row], a: Sequence[float], *, wild: bool = False):
    """Gradient of the unmasked tokens, whether the masked ones' are 0, and all sums, of one call with all tokens."""
    terms = flat(rows, a)
    if wild:
        masked = terms.mask == 0
        terms = replace(terms, advantages=torch.where(masked, float("nan"), terms.advantages))
    weights, pg_weights = (
        torch.tensor([w for ws in of(rows, objective.config) for w in ws], dtype=torch.float64)
        for of in (mean_weights, token_weights)
    )
    other = {name: torch.tensor([v for row in rows for v in getattr(row, name)]) for name in ("entropy", "reference")}
    batch = objective.correct_batch(terms)
    loss, sums = objective.loss(terms, weights, pg_weights=pg_weights, batch_correction=batch, **other)
    gradient = torch.autograd.grad(loss, terms.logprobs)[0]
    kept, out = gradient[terms.mask != 0].tolist(), gradient[terms.mask == 0].abs()
    return kept, bool((out == 0).all()), {name: value.item() for name, value in sums.items()}


def without_masked(row: Row) -> Row:
    fields = (*FIELDS, "versions", "mask")
    return replace(
        row,
        **{name: tuple(v for v, m in zip(getattr(row, name), row.mask, strict=True) if m) for name in fields},
    )


@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
@pytest.mark.parametrize("name", ["tis", "span_tis", "m2po", "mis", "rs"])
def test_terms_with_masked_tokens_have_the_loss_of_those_without_whatever_stands_there(name: str, policy_loss: str):
    cfg = config(
        correction=[name, "opsm", "veto"],
        policy_loss=policy_loss,
        loss_aggregation="constant",
        entropy_coef=0.1,
        use_kl_loss=True,
        kl_loss_coef=0.1,
        kl_loss_type="k2",
        mis_batch_normalize=True,
    )
    objective, rows = Objective(cfg), random_rows(2)
    a = advantages(rows, cfg.algorithm)
    trained = [i for i, row in enumerate(rows) if any(row.mask)]
    stripped = [without_masked(rows[i]) for i in trained]
    # the weight of a token is that of the whole batch, as the number of rollouts is
    rollouts = len({(row.group, row.rollout) for row in rows}) / len({(row.group, row.rollout) for row in stripped})
    clean = whole(objective, stripped, [a[i] for i in trained])
    expected = {name: value / rollouts for name, value in clean[2].items()}
    for name in ("mismatch_sum", "mismatch_tokens"):
        expected[name] = clean[2][name]
    for variant, wild in ((rows, False), (disturbed(rows, 1), True), (disturbed(rows, 2), True)):
        gradient, nothing_else, sums = whole(objective, variant, a, wild=wild)
        assert gradient == pytest.approx([g / rollouts for g in clean[0]], abs=1e-6) and nothing_else
        assert sums == pytest.approx(expected, abs=1e-6)
