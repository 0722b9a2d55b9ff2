"""The learning rate at each step."""

import pytest

from miles_async.train.schedule import learning_rate


def test_the_warm_up_rises_linearly_and_ends_at_the_full_rate():
    rates = [learning_rate(step, lr=1.0, warmup_steps=4) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_decay_reaches_the_floor_at_decay_steps_and_stays():
    rates = [learning_rate(step, lr=1.0, min_lr=0.2, decay_steps=4) for step in (0, 1, 2, 4, 100)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2])


def test_cosine_decay_is_halfway_down_in_the_middle():
    rate = learning_rate(6, lr=1.0, min_lr=0.2, warmup_steps=2, decay_steps=10, decay_style="cosine")
    assert rate == pytest.approx(0.6)


def test_decay_starts_where_the_warm_up_ends():
    assert learning_rate(2, lr=1.0, warmup_steps=2, decay_steps=10) == 1.0
    assert learning_rate(6, lr=1.0, warmup_steps=2, decay_steps=10) == pytest.approx(0.5)


def test_a_decay_shorter_than_the_warm_up_goes_straight_to_the_floor():
    assert learning_rate(5, lr=1.0, min_lr=0.1, warmup_steps=5, decay_steps=3) == 0.1
