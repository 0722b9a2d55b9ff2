"""The mathematics of the off-policy corrections, by hand and by brute force; what needs other ranks, over ranks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from by_hand import INF, NAN, f64
from rl_step import on_ranks

from miles_async.rl import corrections

MASK = torch.tensor([1, 0, 1, 1, 1, 0, 0])
INDEX = torch.tensor([0, 0, 0, 1, 1, 1, 2])
LOGS = [0.5, NAN, -0.2, 0.1, -0.4, INF, -INF]  # old - behaviour
BEHAVIOUR = torch.full((7,), -1.5, dtype=torch.float64)
OLD = BEHAVIOUR + torch.tensor(LOGS, dtype=torch.float64)
KEPT = [0, 2, 3, 4]


def ratio(level: corrections.Level) -> list[float]:
    found = corrections.importance_ratio(OLD, BEHAVIOUR, MASK, INDEX, level)
    assert found.isfinite().all()
    return found[KEPT].tolist()


def test_the_ratio_is_the_tokens_the_samples_sum_or_its_mean():
    assert ratio("token") == pytest.approx([math.exp(x) for x in (0.5, -0.2, 0.1, -0.4)])
    assert ratio("sequence") == pytest.approx([math.exp(0.3)] * 2 + [math.exp(-0.3)] * 2)
    assert ratio("geometric") == pytest.approx([math.exp(0.15)] * 2 + [math.exp(-0.15)] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_ratios_are_clamped_at_20_after_they_are_summed(dtype: torch.dtype):
    old = torch.tensor([30.0, -30.0, 1e4, -1e4, 100.0, -20.5], dtype=dtype)
    mask, index, none = torch.ones(6), torch.tensor([0, 0, 1, 2, 3, 4]), torch.zeros(6, dtype=dtype)
    token = corrections.importance_ratio(old, none, mask, index, "token")
    assert token.log().tolist() == pytest.approx([20, -20, 20, -20, 20, -20])
    for level in ("sequence", "geometric"):  # 30 - 30 is 0, not 20 - 20
        found = corrections.importance_ratio(old, none, mask, index, level)
        assert found.log().tolist() == pytest.approx([0, 0, 20, -20, 20, -20], abs=1e-6)


RATIOS = f64(0.1, 0.5, 0.7, 1.0, 2.0, 2.5)


@pytest.mark.parametrize(
    ("found", "weights"),
    [
        (corrections.truncate(RATIOS, low=0.0, high=2.0), [0.1, 0.5, 0.7, 1, 2, 2]),
        (corrections.truncate(RATIOS, low=0.6, high=2.0), [0.6, 0.6, 0.7, 1, 2, 2]),
        (corrections.keep_inside(RATIOS, low=0.5, high=2.0), [0, 0.5, 0.7, 1, 2, 0]),
        (corrections.keep_inside(RATIOS, low=0.0, high=1.0), [0.1, 0.5, 0.7, 1, 0, 0]),
        (corrections.mis(RATIOS, mode="truncate", lower=0.6, upper=1.5), [0.1, 0.5, 0.7, 1, 1.5, 1.5]),
        (corrections.mis(RATIOS, mode="clip", lower=0.6, upper=1.5), [0.6, 0.6, 0.7, 1, 1.5, 1.5]),
        (corrections.mis(RATIOS, mode="clip", lower=None, upper=2.0), [0.5, 0.5, 0.7, 1, 2, 2]),
        (
            corrections.mis(RATIOS, mode="mask", lower=0.6, upper=1.5),
            RATIOS.tolist(),
        ),  # what it rejects, rejection() says
        (corrections.mis(RATIOS, mode="mask", lower=None, upper=2.0), RATIOS.tolist()),
        (corrections.rejection(RATIOS, lower=0.6, upper=1.5), [0, 0, 1, 1, 0, 0]),
        (corrections.rejection(RATIOS, lower=None, upper=2.0), [0, 1, 1, 1, 1, 0]),
    ],
)
def test_bounds_by_hand(found: torch.Tensor, weights: list[float]):
    assert found.tolist() == pytest.approx(weights)


def normalized(weights: torch.Tensor, per_sample: bool, **more) -> list[float]:
    found = corrections.batch_normalized(
        weights, MASK, INDEX, per_sample=per_sample, **{"all_sum": lambda sums: sums, **more}
    )
    return found[KEPT].tolist()


def test_batch_weights_have_a_mean_of_1_over_tokens_or_samples():
    weights = f64(2.0, NAN, 1.0, 0.5, 0.5, INF, NAN)
    assert normalized(weights, False) == pytest.approx([2.0, 1.0, 0.5, 0.5])
    by_sample, mean = f64(3.0, 9.0, 3.0, 0.5, 0.5, 9.0, NAN), 3.5 / 3  # the third sample has no token: 0, as in Miles
    assert normalized(by_sample, True) == pytest.approx([3 / mean, 3 / mean, 0.5 / mean, 0.5 / mean])
    assert normalized(f64(0, 0, 0, 0, 0, 0, 0), False) == [0, 0, 0, 0]


@pytest.mark.parametrize("per_sample", [False, True])
def test_over_ranks_the_mean_is_that_of_all(per_sample: bool):
    weights = f64(3.0, NAN, 3.0, 0.5, 0.5, INF, NAN)
    cuts = [slice(0, 3), slice(3, 6), slice(6, 7)]

    def one(rank: int, all_sum: Callable[[torch.Tensor], torch.Tensor], _: object) -> torch.Tensor:
        cut = cuts[rank]
        return corrections.batch_normalized(
            weights[cut], MASK[cut], INDEX[cut] - rank, per_sample=per_sample, all_sum=all_sum
        )

    assert torch.cat(on_ranks(3, one))[KEPT].tolist() == pytest.approx(normalized(weights, per_sample))


def test_vanishing_batch_weights_are_left_alone():
    assert normalized(f64(*[math.exp(-20)] * 7), False) == pytest.approx([math.exp(-20)] * 4)


def test_one_all_but_impossible_token_vetoes_its_sample():
    old = BEHAVIOUR + f64(0, 0, math.log(1e-4) - 1e-3, math.log(1e-4) + 1e-3, 5, 0, -50)
    found = corrections.veto(old, BEHAVIOUR, MASK, INDEX, threshold=1e-4)
    assert found.tolist() == [0, 0, 0, 1, 1, 1, 1]
    masked = BEHAVIOUR + f64(0, -50, 0, 0, 0, -INF, -50)
    assert corrections.veto(masked, BEHAVIOUR, MASK, INDEX, threshold=1e-4).tolist() == [1] * 7


def test_a_token_that_the_learner_finds_impossible_is_not_trained_with_full_weight():
    old = f64(-1.5, -INF, -1.5)
    mask, index, behaviour = torch.ones(3), torch.tensor([0, 0, 1]), BEHAVIOUR[:3]
    assert corrections.veto(old, behaviour, mask, index, threshold=1e-4).tolist() == [0, 0, 1]
    assert corrections.importance_ratio(old, behaviour, mask, index, "token")[1].item() == pytest.approx(0, abs=1e-8)


def test_opsm_drops_bad_samples_that_the_policy_has_left():
    logprobs = f64(-1.0, NAN, -1.4, -0.5, -0.9, INF, -1.0)
    behaviour = f64(-0.9, INF, -1.4, -0.5, -0.95, NAN, 9.0)  # means of behaviour - logprobs: 0.05, -0.025, 0
    a = f64(-1, -1, -1, -1, -1, -1, -1)

    def kept(delta: float, advantages: torch.Tensor = a) -> list[float]:
        return corrections.opsm(logprobs, behaviour, advantages, MASK, INDEX, delta=delta).tolist()

    assert kept(0.04) == [0, 0, 0, 1, 1, 1, 1]
    assert kept(0.06) == [1] * 7
    assert kept(0.04, -a) == [1] * 7 and kept(0.04, 0 * a) == [1] * 7
    assert kept(0.04, f64(-1, -1, 1, -1, -1, -1, -1)) == [0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("threshold", [0.01, 0.04, 0.5, 100.0])
def test_m2po_keeps_the_largest_set_of_smallest_log_ratios_whose_mean_square_is_within(threshold: float):
    generator = random.Random(round(threshold * 100))
    logs = [generator.choice([0.0, 0.1, -0.3, 0.3, generator.gauss(0, 0.6)]) for _ in range(40)]
    mask = torch.tensor([generator.random() < 0.8 for _ in logs])
    found = corrections.m2po(f64(*logs), f64(*[0] * 40), mask, threshold=threshold, gather=lambda values: values)
    squares = sorted({x * x for x, m in zip(logs, mask.tolist(), strict=True) if m}, reverse=True)
    for cut in squares:
        staying = [x * x for x, m in zip(logs, mask.tolist(), strict=True) if m and x * x <= cut]
        if sum(staying) / len(staying) <= threshold:
            break
    else:
        cut = -1.0
    assert [found[i].item() for i in range(40) if mask[i]] == [
        float(x * x <= cut) for x, m in zip(logs, mask.tolist(), strict=True) if m
    ]


def test_m2po_of_equal_outliers_takes_all_and_of_nothing_takes_nothing():
    def m2po(*logs: float, mask: torch.Tensor | None = None) -> list[float]:
        ones = torch.ones(len(logs)) if mask is None else mask
        return corrections.m2po(f64(*logs), f64(*[0] * len(logs)), ones, threshold=0.04, gather=lambda v: v).tolist()

    assert m2po(0.0, 0.3, -0.3) == [1, 0, 0]  # one of them would have been within: (0 + 0.09) / 2 = 0.045 is not
    assert m2po(0.0, 0.25, -0.25) == [1, 0, 0]  # one would be, but which of them?
    assert m2po(1.0, 1.0) == [0, 0]
    assert m2po() == []
    assert m2po(NAN, INF, mask=torch.zeros(2)) == [1, 1]
    assert m2po(0.1, 1e4, mask=torch.tensor([1, 0]))[0] == 1


def test_over_ranks_m2po_sees_every_token():
    logs, mask = f64(0.0, 0.1, 2.0, 0.3, NAN, -2.5), torch.tensor([1, 1, 1, 1, 0, 1])
    whole = corrections.m2po(logs, 0 * BEHAVIOUR[:6], mask, threshold=0.04, gather=lambda values: values)
    cuts = [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 6)]
    parts = on_ranks(
        4,
        lambda rank, _, gather: corrections.m2po(
            logs[cuts[rank]], 0 * BEHAVIOUR[cuts[rank]], mask[cuts[rank]], threshold=0.04, gather=gather
        ),
    )
    assert torch.cat(parts)[mask == 1].tolist() == whole[mask == 1].tolist() == [1, 1, 0, 1, 0]


def test_a_span_is_a_run_of_tokens_of_one_sample_and_version():
    versions, index = torch.tensor([3, 3, 4, 4, 4, 3, 3]), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    assert corrections.spans(versions, index).tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert corrections.spans(versions[:0], index[:0]).tolist() == []
    old = BEHAVIOUR + f64(0.2, 0.4, 1.0, 0.3, NAN, -0.5, 0.1)
    mask = torch.tensor([1, 1, 1, 1, 0, 1, 1])
    found = corrections.span_ratio(old, BEHAVIOUR, mask, index, versions)
    assert found[mask == 1].log().tolist() == pytest.approx([0.3, 0.3, 1.0, 0.3, -0.5, 0.1])


def test_a_masked_tokens_version_does_not_split_a_span():
    old, mask, index = BEHAVIOUR[:3] + f64(0.2, NAN, 0.6), torch.tensor([1, 0, 1]), torch.zeros(3, dtype=torch.int64)
    found = corrections.span_ratio(old, BEHAVIOUR[:3], mask, index, torch.tensor([3, -1, 3]))
    assert found[mask == 1].log().tolist() == pytest.approx([0.4, 0.4])


def test_loglinear_goes_from_the_engine_to_the_learner_as_tokens_age():
    logprobs, behaviour = f64(-1, -1, -1, -1, -1).requires_grad_(True), f64(-2, -2, -2, -2, -2)
    found = corrections.loglinear_old(logprobs, behaviour, torch.tensor([6, 5, 4, 3, 1]), 5)
    assert found.tolist() == pytest.approx([-2, -2, -2, -1.5, -1.25])  # lags -1 (newer than the learner), 0, 1, 2, 4
    assert not found.requires_grad
