"""The built-in corrections: what each weighs, rejects and reports, and that all of it is finite."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from by_hand import INF, NAN, f64
from rl_step import VERSION

from miles_async.config.schema import Algorithm
from miles_async.rl.builtin import corrections as built_in
from miles_async.rl.builtin.table import CORRECTIONS
from miles_async.rl.terms import Correction, LossTerms, wants_whole_batch


def terms(old: torch.Tensor, mask: torch.Tensor, index: torch.Tensor, a: torch.Tensor) -> LossTerms:
    versions = torch.full((len(old),), VERSION)
    return LossTerms(old, old, torch.zeros_like(old), a, index, versions, VERSION, mask)


LOWER, UPPER = 0.8, 1.3


def rejecting(name: str, logs: list[float], **algorithm: object) -> Correction:
    """Of one sample's tokens each; those whose ratio is not a number are masked."""
    old = f64(*logs)
    mask = torch.tensor([float(not math.isnan(x)) for x in logs])
    bounds = {"mis_lower": LOWER, "mis_upper": UPPER, "rs_lower": LOWER, "rs_upper": UPPER, "rs_veto_threshold": 0.7}
    settings = Algorithm(**{**bounds, "mis_mode": "mask", "rs_level": "token", **algorithm})
    return FUNCTIONS[name](terms(old, mask, torch.arange(len(logs)), -torch.ones_like(old)), settings)


@pytest.mark.parametrize(("name", "kept"), [("mis", [1, 0, 0, 1]), ("rs", [1, 0, 0, 1]), ("veto", [1, 1, 0, 1])])
def test_what_is_rejected_by_mask_is_not_kept_and_its_weight_is_another_matter(name: str, kept: list[float]):
    logs = [0.0, 0.4, -0.4, 0.2]
    found = rejecting(name, logs)
    assert found.keep is not None and found.keep.tolist() == kept
    assert found.weights.tolist() == pytest.approx([math.exp(x) for x in logs] if name == "mis" else [1] * 4)


@pytest.mark.parametrize("name", [name for name in CORRECTIONS if name not in ("rs", "veto")])
def test_the_other_corrections_keep_every_token_whatever_they_weigh_it(name: str):
    assert rejecting(name, [0.0, 3.0, -3.0], mis_mode="truncate").keep is None


def test_the_ratios_that_the_mask_rejects_count_in_the_mean_of_the_batchs_weights():
    found = rejecting("mis", [math.log(5), 0.0, 0.0, NAN], mis_batch_normalize=True)
    assert found.weights[:3].tolist() == pytest.approx([5 / (7 / 3), 3 / 7, 3 / 7])
    assert found.keep is not None and found.keep[:3].tolist() == [0, 1, 1]


@pytest.mark.parametrize("mode", ["truncate", "clip", "mask"])
def test_the_metrics_of_mis_are_the_ratios_before_and_after_and_who_left_the_bounds(mode: str):
    logs = [0.0, 0.4, -0.4, 0.2]
    ratios = [math.exp(x) for x in logs]
    # normalised weights are not what the bounds made of them
    metrics = rejecting("mis", logs, mis_mode=mode, mis_batch_normalize=True).metrics
    after = {
        "truncate": [min(r, UPPER) for r in ratios],
        "clip": [min(max(r, LOWER), UPPER) for r in ratios],
        "mask": ratios,
    }
    assert metrics["mis_tis_weight_before_bound"].tolist() == pytest.approx(ratios)
    assert metrics["mis_tis_weight_after_bound"].tolist() == pytest.approx(after[mode])
    if mode == "truncate":
        assert metrics["mis_tis_truncate_fraction"].tolist() == [0, 1, 0, 0]
    else:
        assert metrics[f"mis_tis_{mode}_fraction_low"].tolist() == [0, 0, 1, 0]
        assert metrics[f"mis_tis_{mode}_fraction_high"].tolist() == [0, 1, 0, 0]
    assert metrics["mis_kl"].tolist() == pytest.approx([-x for x in logs])
    assert metrics["mis_k3_kl"].tolist() == pytest.approx([r - 1 - x for r, x in zip(ratios, logs, strict=True)])
    # each token is a sample
    for name in ("mis_chi2_token", "mis_chi2_seq"):
        assert metrics[name].tolist() == pytest.approx([r * r - 1 for r in ratios])


def test_the_metrics_of_rejection_and_veto_say_who_left_which_bound():
    logs = [0.0, 0.4, -0.4, 0.2]
    metrics = rejecting("rs", logs).metrics | rejecting("veto", logs).metrics
    assert {name: value.tolist() for name, value in metrics.items()} == {
        "mis_rs_mask_fraction_low": [0, 0, 1, 0],
        "mis_rs_mask_fraction_high": [0, 1, 0, 0],
        "mis_rs_catastrophic_token_fraction": [0, 0, 1, 0],
        "mis_rs_catastrophic_seq_fraction": [0, 0, 1, 0],
    }


FUNCTIONS = {name: getattr(built_in, entry.function) for name, entry in CORRECTIONS.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_weights_and_metrics_are_finite_for_any_finite_log_probs_and_masked_numbers(name: str, dtype: torch.dtype):
    logs = [0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, NAN, INF, -INF]
    old, mask = torch.tensor(logs, dtype=dtype), torch.tensor([1.0] * 7 + [0.0] * 3)
    index = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 5, 4])
    for level, mode, normalize in itertools.product(
        ("token", "sequence", "geometric"), ("truncate", "clip", "mask"), (False, True)
    ):
        algorithm = Algorithm(mis_level=level, mis_mode=mode, mis_batch_normalize=normalize, rs_level=level)
        found = FUNCTIONS[name](terms(old, mask, index, -torch.ones_like(old)), algorithm)
        assert found.weights.isfinite().all() and found.weights.dtype == dtype and not found.weights.requires_grad
        assert found.keep is None or (found.keep.dtype == dtype and set(found.keep.tolist()) <= {0.0, 1.0})
        assert all(value[:7].isfinite().all() for value in found.metrics.values())
        if name != "mis":
            break


@pytest.mark.parametrize("name", CORRECTIONS)
def test_nothing_gives_nothing(name: str):
    none, empty = f64(), torch.zeros(0, dtype=torch.int64)
    found = FUNCTIONS[name](terms(none, none, empty, none), Algorithm(mis_batch_normalize=True))
    assert found.weights.shape == (0,) and all(value.shape == (0,) for value in found.metrics.values())


def test_what_looks_at_the_whole_batch_says_so():
    for normalize in (False, True):
        algorithm = Algorithm(mis_batch_normalize=normalize)
        wanting = {name for name in CORRECTIONS if wants_whole_batch(FUNCTIONS[name], algorithm)}
        assert wanting == ({"m2po", "mis"} if normalize else {"m2po"})
