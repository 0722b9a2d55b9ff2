"""How tokens are averaged, and the sums over samples below it, by hand."""

from __future__ import annotations

import pytest
import torch
from by_hand import INF, NAN
from rl_step import config

from miles_async.config.schema import RunConfig
from miles_async.rl.builtin import reducers
from miles_async.rl.reduce import Totals, constant, sample_mean, token_mean, weighted_sum
from miles_async.rl.segments import Compressed, masked_mean, masked_sum, n_segments, segment_sum

# Four samples of three rollouts: the first two are branches of one; the last is masked out.
MASK = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0, 0])
SAMPLE = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
ROLLOUT = torch.tensor([0, 0, 1, 2])
TOTALS = Totals(tokens=2.0 + 1 + 3 + 1, rollouts=3.0)
VALUES = torch.tensor([1.0, 2.0, NAN, 6.0, INF, 10.0, 20.0, 60.0, -INF, NAN], dtype=torch.float64)


def test_token_mean_weighs_every_trained_token_alike_and_counts_an_empty_sample_as_one_token():
    weights = token_mean(MASK, SAMPLE, ROLLOUT, TOTALS)
    assert weights.tolist() == pytest.approx([m / 7 for m in MASK.tolist()])
    assert weighted_sum(VALUES, weights).item() == pytest.approx((1 + 2 + 6 + 10 + 20 + 60) / 7)


def test_sample_mean_is_the_mean_of_the_rollouts_means_and_an_empty_one_is_zero():
    found = weighted_sum(VALUES, sample_mean(MASK, SAMPLE, ROLLOUT, TOTALS)).item()
    assert found == pytest.approx(((1 + 2 + 6) / 3 + (10 + 20 + 60) / 3 + 0) / 3)
    # each sample a rollout of its own: (1 + 2) / 2, 6 / 1, 30, 0
    found = weighted_sum(VALUES, sample_mean(MASK, SAMPLE, torch.arange(4), Totals(7.0, 4.0))).item()
    assert found == pytest.approx((1.5 + 6 + 30 + 0) / 4)


def test_constant_divides_a_rollouts_sum_by_the_same_length_for_all():
    found = weighted_sum(VALUES, constant(MASK, SAMPLE, ROLLOUT, TOTALS, length=50.0)).item()
    assert found == pytest.approx((1 + 2 + 6 + 10 + 20 + 60) / 50 / 3)


@pytest.mark.parametrize("reduce", [sample_mean, token_mean, lambda *a: constant(*a, length=7.0)])
def test_the_mean_does_not_depend_on_which_rank_holds_a_rollout(reduce):
    whole = weighted_sum(VALUES, reduce(MASK, SAMPLE, ROLLOUT, TOTALS))
    parts = [
        weighted_sum(VALUES[tokens], reduce(MASK[tokens], SAMPLE[tokens] - first, rollouts, TOTALS))
        for tokens, first, rollouts in (
            (slice(0, 5), 0, torch.tensor([0, 0])),
            (slice(5, 8), 2, torch.tensor([0])),
            (slice(8, 10), 3, torch.tensor([0])),
            (slice(10, 10), 4, torch.zeros(0, dtype=torch.int64)),
        )
    ]
    assert torch.stack(parts).sum().item() == pytest.approx(whole.item())


def test_a_bool_mask_and_an_integer_mask_weigh_alike_in_float64():
    for reduce in (sample_mean, token_mean):
        ours = reduce(MASK.bool(), SAMPLE, ROLLOUT, TOTALS)
        assert ours.dtype == torch.float64 and ours.tolist() == reduce(MASK, SAMPLE, ROLLOUT, TOTALS).tolist()


def test_nothing_to_train_weighs_nothing():
    empty, nothing = torch.zeros(0, dtype=torch.int64), Totals(0.0, 0.0)
    for reduce in (sample_mean, token_mean):
        assert reduce(empty, empty, empty, nothing).shape == (0,)
        masked = reduce(torch.zeros(2), torch.tensor([0, 1]), torch.tensor([0, 1]), nothing)
        assert masked.tolist() == [0, 0]
    assert constant(empty, empty, empty, nothing, length=1.0).shape == (0,)
    assert weighted_sum(torch.zeros(0), torch.zeros(0, dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_a_token_of_weight_zero_changes_neither_value_nor_gradient(broken: float):
    values = torch.tensor([1.0, broken], dtype=torch.float64, requires_grad=True)
    total = weighted_sum(values, torch.tensor([0.5, 0.0], dtype=torch.float64))
    total.backward()
    assert total.item() == 0.5
    assert values.grad is not None and values.grad.tolist() == [0.5, 0.0]


def test_the_built_in_reducers_are_these_and_the_constant_is_the_configurations():
    def weights(cfg: RunConfig, name: str) -> list[float]:
        return getattr(reducers, name)(MASK, SAMPLE, ROLLOUT, TOTALS, cfg).tolist()

    plain = config(max_lag=0)  # rollout_max_response_len is 16 there
    assert weights(plain, "token") == token_mean(MASK, SAMPLE, ROLLOUT, TOTALS).tolist()
    assert weights(plain, "sample") == sample_mean(MASK, SAMPLE, ROLLOUT, TOTALS).tolist()
    assert weights(plain, "constant") == pytest.approx([m / 48 for m in MASK.tolist()])
    assert weights(config(max_lag=0, loss_constant=1000.0), "constant") == pytest.approx(
        [m / 3000 for m in MASK.tolist()]
    )


def test_sums_and_means_take_masked_tokens_for_absent():
    assert segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1]), 3).tolist() == [2, 5, 0]
    assert masked_sum(VALUES, MASK, SAMPLE, 5).tolist() == [3, 6, 90, 0, 0]
    assert masked_mean(VALUES, MASK, SAMPLE, 5).tolist() == [1.5, 6, 30, 0, 0]
    assert n_segments(SAMPLE) == 4 and n_segments(SAMPLE[:0]) == 0


def test_a_masked_value_gets_no_gradient_through_a_mean():
    values = VALUES.clone().requires_grad_(True)
    masked_mean(values, MASK, SAMPLE, 4).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.5, 0.5, 0, 1, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_the_unmasked_tokens_become_rows_and_come_back():
    kept = Compressed(MASK, SAMPLE, 5)
    assert kept.lengths.tolist() == [2, 1, 3, 0, 0]
    matrix = kept.rows(VALUES)
    assert matrix.tolist() == [[1, 2, 0], [6, 0, 0], [10, 20, 60], [0, 0, 0], [0, 0, 0]]
    assert kept.flat(matrix).tolist() == [1, 2, 0, 6, 0, 10, 20, 60, 0, 0]
    added = kept.add_to_last(matrix, torch.tensor([0.5, 0.25, 0.125, 9.0, 9.0]))
    assert kept.flat(added).tolist() == [1, 2.5, 0, 6.25, 0, 10, 20, 60.125, 0, 0]
    assert matrix[0, 1] == 2  # the matrix itself is as it was
    nothing = Compressed(MASK[:0], SAMPLE[:0], 0)
    assert nothing.rows(VALUES[:0]).shape == (0, 0) and nothing.flat(torch.zeros(0, 0)).shape == (0,)
