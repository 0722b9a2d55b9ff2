"""Advantages against closed forms, and against the recursions of the papers as plain loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from by_hand import INF, NAN, f64
from rl_step import on_ranks

from miles_async.rl import advantages
from miles_async.rl.advantages import distil, gae, grpo, reinforce_plus_plus, reinforce_plus_plus_baseline, rloo, whiten


def i64(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


ONE_GROUP = i64(0, 0, 0, 0)


def test_grpo_divides_the_centred_reward_by_the_unbiased_deviation_plus_1e_6():
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-6)  # squares 4 * 0.25, ddof = 1
    assert grpo(f64(1, 0, 0, 1), ONE_GROUP).tolist() == pytest.approx([expected, -expected, -expected, expected])


def test_a_group_is_normalised_by_its_own_rewards_wherever_its_samples_lie():
    rewards, groups = [2.0, 10.0, 4.0, 10.5, 3.0, 40.0], [0, 1, 0, 1, 0, 1]
    for group in (0, 1):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        expected = [(r - statistics.fmean(own)) / (statistics.stdev(own) + 1e-6) for r in own]
        found = grpo(f64(*rewards), i64(*groups))[i64(*groups) == group]
        assert found.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", [grpo, rloo])
def test_a_group_of_one_has_nobody_to_compare_with(estimator):
    assert estimator(f64(7, 3, 5), i64(0, 1, 1))[0].item() == 0
    assert estimator(f64(7), i64(0)).tolist() == [0]


def test_large_equal_rewards_give_no_advantage():
    assert grpo(torch.full((7,), 1e6 + 0.1, dtype=torch.float64), torch.zeros(7, dtype=torch.int64)).abs().max() < 1e-6


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1 / 3, 10.7])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_give_no_advantage_also_where_their_mean_rounds(reward: float, size: int):
    index = torch.zeros(size, dtype=torch.int64)
    rewards = torch.full((size,), reward, dtype=torch.float64)
    for found in (grpo(rewards, index), grpo(rewards, index, std_normalization=False), rloo(rewards, index)):
        assert found.abs().max().item() < 1e-6


def test_without_normalisation_only_the_mean_is_taken_off():
    assert grpo(f64(3, 1, 2, 6), ONE_GROUP, std_normalization=False).tolist() == [0, -2, -1, 3]


def test_rloo_takes_off_the_mean_of_the_others():
    expected = [3 - 9 / 3, 1 - 11 / 3, 2 - 10 / 3, 6 - 6 / 3]
    assert rloo(f64(3, 1, 2, 6), ONE_GROUP).tolist() == pytest.approx(expected)


def test_samples_of_one_rollout_count_once_and_get_the_same():
    alone_grpo, alone_rloo = grpo(f64(1, 0, 4), i64(0, 0, 0)), rloo(f64(1, 0, 4), i64(0, 0, 0))
    rewards, groups, rollouts = f64(1, 1, 0, 1, 4), i64(0, 0, 0, 0, 0), i64(0, 0, 1, 0, 2)
    assert grpo(rewards, groups, rollout_index=rollouts).tolist() == pytest.approx(alone_grpo[[0, 0, 1, 0, 2]].tolist())
    assert rloo(rewards, groups, rollout_index=rollouts).tolist() == pytest.approx(alone_rloo[[0, 0, 1, 0, 2]].tolist())
    # a group of two branches of one rollout is a group of one
    assert grpo(f64(5, 5), i64(0, 0), rollout_index=i64(0, 0)).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_reward_that_is_not_finite_is_refused(bad: float):
    with pytest.raises(ValueError, match="finite"):
        grpo(f64(bad, 1), i64(0, 0))


def test_branches_of_one_rollout_with_different_rewards_are_refused():
    with pytest.raises(ValueError, match="different rewards"):
        rloo(f64(1, 2), i64(0, 0), rollout_index=i64(0, 0))


def test_nothing_gives_nothing():
    none, empty = f64(), i64()
    for estimator in (grpo, rloo):
        assert estimator(none, empty).shape == (0,)
    assert reinforce_plus_plus(none, empty, empty).shape == (0,)
    assert reinforce_plus_plus_baseline(none, empty, empty, empty).shape == (0,)
    assert [found.shape for found in gae(none, none, empty, empty)] == [(0,), (0,)]
    assert [found.tolist() for found in gae(f64(1, 1), none, empty, empty)] == [[], []]  # two samples without a token
    assert reinforce_plus_plus(f64(1, 1), empty, empty).tolist() == []


# Three samples: masked tokens before, between and behind; one token; nothing but masked ones.
MASK = i64(0, 1, 0, 1, 1, 0, 1, 0, 0)
SAMPLE = i64(0, 0, 0, 0, 0, 0, 1, 2, 2)
REWARDS = f64(2.0, -1.0, 9.0)
KL = f64(NAN, 0.3, INF, -0.2, 0.5, NAN, 0.1, -INF, NAN)


def samples(*columns: torch.Tensor) -> list[list[tuple[float, ...]]]:
    """For each sample, the entries of ``columns`` at its tokens."""
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    return [[row for row, s in zip(rows, SAMPLE.tolist(), strict=True) if s == sample] for sample in range(3)]


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_reinforce_plus_plus_is_the_discounted_return_with_the_reward_at_the_last_unmasked_token(gamma: float):
    expected = []
    for reward, tokens in zip(REWARDS.tolist(), samples(MASK, KL), strict=True):
        last = max((t for t, (m, _) in enumerate(tokens) if m), default=None)
        # every token is a step, also a masked one, which has no reward
        gains = [(-0.5 * kl if m else 0.0) + (reward if t == last else 0.0) for t, (m, kl) in enumerate(tokens)]
        expected += [sum(gamma ** (u - t) * gains[u] for u in range(t, len(gains))) for t in range(len(gains))]
    found = reinforce_plus_plus(REWARDS, MASK, SAMPLE, kl=KL, kl_coef=0.5, gamma=gamma)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_reinforce_plus_plus_baseline_is_the_centred_reward_less_the_kl():
    found = reinforce_plus_plus_baseline(REWARDS, i64(0, 0, 1), MASK, SAMPLE, kl=KL, kl_coef=0.5)
    kl = [value if kept else 0.0 for value, kept in zip(KL.tolist(), MASK.tolist(), strict=True)]
    centred = [1.5] * 6 + [-1.5] + [0.0] * 2
    assert found.tolist() == pytest.approx([c - 0.5 * k for c, k in zip(centred, kl, strict=True)])
    without = reinforce_plus_plus_baseline(REWARDS, i64(0, 0, 1), MASK, SAMPLE, rollout_index=i64(0, 1, 2))
    assert without.tolist() == centred


@pytest.mark.parametrize(("gamma", "lambd"), [(1.0, 1.0), (0.9, 0.8), (0.9, 0.0), (0.0, 0.7), (1.0, 0.5)])
def test_gae_is_the_recursion_on_the_unmasked_tokens_alone(gamma: float, lambd: float):
    values = f64(NAN, 0.4, INF, -0.7, 1.1, NAN, 0.6, NAN, -INF)
    found, returns = gae(REWARDS, values, MASK, SAMPLE, kl=KL, kl_coef=0.25, gamma=gamma, lambd=lambd)
    expected, expected_returns = [], []
    for reward, tokens in zip(REWARDS.tolist(), samples(MASK, values, KL), strict=True):
        kept = [(v, kl) for m, v, kl in tokens if m]
        deltas = []
        for t, (v, kl) in enumerate(kept):
            last = t == len(kept) - 1
            deltas.append(-0.25 * kl + (reward if last else gamma * kept[t + 1][0]) - v)
        # the closed form of the recursion: a sum of discounted deltas
        sums = iter(
            sum((gamma * lambd) ** (u - t) * deltas[u] for u in range(t, len(deltas))) for t in range(len(deltas))
        )
        for m, v, _ in tokens:
            expected.append(next(sums) if m else 0.0)
            expected_returns.append(expected[-1] + v if m else 0.0)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert returns.tolist() == pytest.approx(expected_returns, abs=1e-12)


def test_gae_without_discount_is_the_reward_less_the_value():
    values, ones = f64(0.5, 0.25, 2.0), i64(1, 1, 1)
    found, returns = gae(f64(3.0, 1.0), values, ones, i64(0, 0, 1))
    assert found.tolist() == [2.5, 2.75, -1.0] and returns.tolist() == [3.0, 3.0, 1.0]


def test_gae_of_a_long_sample_is_that_of_the_loop():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(700, generator=generator, dtype=torch.float64)
    mask = (torch.rand(700, generator=generator) < 0.7).long()
    found, _ = gae(f64(1.5), values, mask, torch.zeros(700, dtype=torch.int64), gamma=0.99, lambd=0.95)
    carry, after, reward, expected = 0.0, 0.0, 1.5, torch.zeros(700, dtype=torch.float64)
    for t in reversed(range(700)):
        if mask[t]:
            carry = reward + 0.99 * after - values[t].item() + 0.99 * 0.95 * carry
            after, reward = values[t].item(), 0.0
            expected[t] = carry
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_distillation_takes_off_the_reverse_kl_at_the_sampled_token():
    found = distil(f64(1.0, 2.0), f64(-1.0, -3.0) - f64(-2.0, -1.0), coef=0.5)
    assert found.tolist() == [1.0 - 0.5 * 1.0, 2.0 + 0.5 * 2.0] and found.dtype == torch.float64


def test_whitening_is_that_of_the_unmasked_tokens():
    values, mask = [3.0, NAN, 1.0, 2.0, INF, 7.0], [1, 0, 1, 1, 0, 1]
    kept = [v for v, m in zip(values, mask, strict=True) if m]
    mean, variance = statistics.fmean(kept), statistics.variance(kept)
    expected = [(v - mean) / math.sqrt(variance + 1e-8) if m else 0.0 for v, m in zip(values, mask, strict=True)]
    assert whiten(f64(*values), i64(*mask)).tolist() == pytest.approx(expected, rel=1e-12)


def test_whitening_far_from_zero_does_not_cancel():
    found = whiten(f64(1e6 + 1, 1e6, 1e6 - 1), i64(1, 1, 1))
    assert found.tolist() == pytest.approx([1, 0, -1], abs=1e-7)


def test_one_token_or_equal_ones_whiten_to_zero_and_none_is_refused():
    assert whiten(f64(5.0, NAN), i64(1, 0)).tolist() == [0, 0]
    assert whiten(f64(0.25, 0.25, 0.25), i64(1, 1, 1)).tolist() == [0, 0, 0]
    for values, mask in ((f64(1, 2), i64(0, 0)), (f64(), i64())):
        with pytest.raises(ValueError, match="unmasked"):
            whiten(values, mask)


def test_whitening_over_ranks_is_that_of_all_tokens_also_with_a_rank_that_has_none():
    parts = [(f64(1.0, 4.0), i64(1, 1)), (f64(2.0, 8.0), i64(0, 1)), (f64(NAN), i64(0)), (f64(), i64())]
    found = on_ranks(4, lambda rank, all_sum, _: whiten(*parts[rank], all_sum=all_sum))
    whole = whiten(torch.cat([a for a, _ in parts]), torch.cat([m for _, m in parts]))
    torch.testing.assert_close(torch.cat(found), whole, atol=1e-12, rtol=0)


def test_every_result_is_float64_whatever_comes_in():
    ones, index = torch.ones(2, dtype=torch.bool), i64(0, 1)
    rewards, group = torch.tensor([1.0, 0.0]), i64(0, 0)
    found = [
        advantages.grpo(rewards, group),
        advantages.rloo(rewards, group),
        advantages.reinforce_plus_plus(rewards, ones, index),
        advantages.reinforce_plus_plus_baseline(rewards, group, ones, index),
        *advantages.gae(rewards, torch.zeros(2), ones, index),
        advantages.whiten(torch.tensor([1.0, 0.0]), ones),
    ]
    assert {result.dtype for result in found} == {torch.float64}


@pytest.mark.parametrize("estimator", ["grpo", "gspo", "reinforce_plus_plus_baseline"])
def test_without_normalization_the_advantage_is_the_reward_itself(estimator: str):
    from miles_async.config.schema import Algorithm
    from miles_async.rl.hooks import ESTIMATOR
    from miles_async.rl.terms import StepTerms

    terms = StepTerms(
        rewards=torch.tensor([2.0, 5.0, 5.0], dtype=torch.float64),
        group_index=torch.tensor([0, 0, 0]),
        rollout_index=torch.tensor([0, 1, 1]),  # the last two are branches of one rollout
        sample_index=torch.tensor([0, 0, 1, 2]),
        mask=torch.ones(4, dtype=torch.bool),
        behaviour=torch.zeros(4),
    )
    algorithm = Algorithm(advantage_estimator=estimator, disable_rewards_normalization=True)
    assert ESTIMATOR.load(estimator)(terms, algorithm).tolist() == [2.0, 2.0, 5.0, 5.0]
