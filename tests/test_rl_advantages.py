"""GRPO advantages against numbers computed by hand."""

import pytest
import torch

from miles_async.rl.advantages import grpo_advantages


def test_grpo_divides_the_centred_reward_by_the_unbiased_deviation_plus_1e_6():
    advantages = grpo_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.int64))
    expected = 0.5 / ((1.0 / 3.0) ** 0.5 + 1e-6)  # squares 4 * 0.25, ddof = 1
    assert torch.allclose(advantages, torch.tensor([1, -1, -1, 1], dtype=torch.float64) * expected, atol=1e-12)


def test_a_group_is_normalised_by_its_own_rewards_wherever_its_samples_lie():
    rewards = torch.tensor([2.0, 10.0, 4.0, 10.0, 3.0, 40.0])
    groups = torch.tensor([0, 1, 0, 1, 0, 1])
    advantages = grpo_advantages(rewards, groups)
    assert torch.allclose(advantages[groups == 0], grpo_advantages(rewards[::2], torch.zeros(3, dtype=torch.int64)))
    assert torch.allclose(advantages[[0, 2, 4]] * (1 + 1e-6), torch.tensor([-1.0, 1.0, 0.0]).double(), atol=1e-12)


def test_equal_rewards_and_lonely_samples_give_no_advantage():
    assert grpo_advantages(torch.tensor([0.5, 0.5, 7.0]), torch.tensor([0, 0, 1])).tolist() == [0.0, 0.0, 0.0]


def test_without_normalisation_only_the_mean_is_taken_off():
    advantages = grpo_advantages(torch.tensor([3.0, 1.0]), torch.zeros(2, dtype=torch.int64), std_normalization=False)
    assert advantages.tolist() == [1.0, -1.0]


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        grpo_advantages(torch.tensor([float("nan"), 1.0]), torch.zeros(2, dtype=torch.int64))
