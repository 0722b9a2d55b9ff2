"""The policy loss, its correction and its means, against hand computations and float64 autograd."""

import math

import pytest
import torch

from miles_async.rl.losses import k3_kl, ppo_clip_loss, token_weights, truncated_importance_weights, weighted_sum


def _loss(ratio: float, advantage: float) -> tuple[float, float, float]:
    """Loss, clip indicator and d loss / d logprob of one token whose ratio is given; eps 0.2 below, 0.3 above."""
    logprob = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    loss, clipped, _ = ppo_clip_loss(
        logprob,
        torch.tensor([-1.0], dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        eps_clip=0.2,
        eps_clip_high=0.3,
    )
    loss.sum().backward()
    assert logprob.grad is not None
    return loss.item(), clipped.item(), logprob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (1.1, 2.0, -2.2, 0, -2.2),  # inside: -ratio A, and its derivative is itself
        (1.5, 2.0, -2.6, 1, 0.0),  # good token, ratio above 1.3: held
        (0.5, 2.0, -1.0, 0, -1.0),  # good token made less likely: not held
        (0.5, -2.0, 1.6, 1, 0.0),  # bad token already below 0.8: held
        (1.5, -2.0, 3.0, 0, 3.0),  # bad token made more likely: not held
    ],
)
def test_ppo_clip_by_hand(ratio: float, advantage: float, loss: float, clipped: float, gradient: float):
    assert _loss(ratio, advantage) == pytest.approx((loss, clipped, gradient))


def test_no_gradient_flows_into_the_denominator():
    logprobs = torch.randn(5, dtype=torch.float64, requires_grad=True)
    loss, _, kl = ppo_clip_loss(logprobs, logprobs, torch.ones(5, dtype=torch.float64), eps_clip=0.2, eps_clip_high=0.2)
    loss.sum().backward()
    assert torch.equal(loss, -torch.ones(5, dtype=torch.float64))
    assert logprobs.grad is not None and torch.equal(logprobs.grad, -torch.ones(5, dtype=torch.float64))
    assert not kl.requires_grad and torch.equal(kl, torch.zeros(5, dtype=torch.float64))


def test_a_broken_token_cannot_overflow_the_ratio():
    loss, _, _ = ppo_clip_loss(
        torch.tensor([0.0]), torch.tensor([-900.0]), torch.tensor([-1.0]), eps_clip=0.2, eps_clip_high=0.2
    )
    assert loss.item() == pytest.approx(math.exp(20.0))


def test_importance_weights_are_truncated_on_both_sides_and_carry_no_gradient():
    old = torch.tensor([0.0, math.log(5.0), math.log(0.1)], dtype=torch.float64, requires_grad=True)
    weights, ratio, truncated = truncated_importance_weights(
        old, torch.zeros(3, dtype=torch.float64), low=0.5, high=2.0
    )
    assert weights.tolist() == pytest.approx([1.0, 2.0, 0.5])
    assert ratio.tolist() == pytest.approx([1.0, 5.0, 0.1])
    assert truncated.tolist() == [0.0, 1.0, 1.0]
    assert not weights.requires_grad


def test_k3_is_exp_d_minus_1_minus_d():
    assert k3_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])).tolist() == pytest.approx([math.e - 2.0, 0.0])


MASK = torch.tensor([1, 1, 0, 1, 0, 0])
SAMPLE = torch.tensor([0, 0, 0, 1, 2, 2])


def test_token_mean_weighs_every_trained_token_alike():
    weights = token_weights(MASK, SAMPLE, aggregation="token", total_tokens=3, total_samples=3)
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3, 0, 0])


def test_sample_mean_weighs_every_sample_alike_and_counts_a_masked_one_as_zero():
    weights = token_weights(MASK, SAMPLE, aggregation="sample", total_tokens=3, total_samples=3)
    assert weights.tolist() == pytest.approx([1 / 6, 1 / 6, 0, 1 / 3, 0, 0])


@pytest.mark.parametrize("aggregation", ["token", "sample"])
def test_the_mean_does_not_depend_on_which_rank_holds_a_sample(aggregation):
    values = torch.arange(6, dtype=torch.float64)
    whole = weighted_sum(values, token_weights(MASK, SAMPLE, aggregation=aggregation, total_tokens=3, total_samples=3))
    parts = [
        weighted_sum(
            values[at],
            token_weights(MASK[at], SAMPLE[at] - first, aggregation=aggregation, total_tokens=3, total_samples=3),
        )
        for at, first in ((slice(0, 3), 0), (slice(3, 6), 1))
    ]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item())


def test_a_masked_token_changes_neither_value_nor_gradient_even_if_it_is_nan():
    values = torch.tensor([1.0, float("nan")], dtype=torch.float64, requires_grad=True)
    total = weighted_sum(values, torch.tensor([0.5, 0.0], dtype=torch.float64))
    total.backward()
    assert total.item() == 0.5
    assert values.grad is not None and values.grad.tolist() == [0.5, 0.0]


def test_nothing_to_train_weighs_nothing():
    empty = torch.zeros(0, dtype=torch.int64)
    assert token_weights(empty, empty, aggregation="sample", total_tokens=0, total_samples=0).shape == (0,)
