"""The built-in off-policy corrections, as ``algorithm.correction`` names them.

Each is ``(terms, algorithm) -> Correction``, like one of the user's own; the mathematics is in ``corrections.py``. Those of
several names multiply. One marked with ``whole_batch`` is called once with a rank's share of the whole step, before it,
instead of with each micro-batch; there ``terms.gather`` and ``terms.all_sum`` reach the other ranks.
"""

from __future__ import annotations

import math

import torch

from miles_async.config.schema import Algorithm
from miles_async.rl import corrections
from miles_async.rl.terms import Correction, LossTerms, whole_batch


def nothing(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """ "uncorrected", and "behaviour", whose work the denominator does."""
    return Correction(torch.ones_like(terms.behaviour), {})


def tis(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """Truncated importance sampling of each token."""
    ratio = _ratio(terms, "token")
    return _reported(ratio, corrections.truncate(ratio, low=algorithm.tis_clip_low, high=algorithm.tis_clip))


def icepop(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """Importance sampling of each token inside the bounds, rejection outside."""
    ratio = _ratio(terms, "token")
    return _reported(ratio, corrections.keep_inside(ratio, low=algorithm.tis_clip_low, high=algorithm.tis_clip))


def span_tis(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """Truncated importance sampling of each span of tokens that one weight version sampled."""
    ratio = corrections.span_ratio(terms.old, terms.behaviour, terms.mask, terms.sample_index, terms.versions)
    return _reported(ratio, corrections.truncate(ratio, low=algorithm.tis_clip_low, high=algorithm.tis_clip))


@whole_batch(lambda algorithm: algorithm.mis_batch_normalize)
def mis(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """Miles' family: level x mode, and weights with a mean of 1 over the batch if asked for."""
    ratio = _ratio(terms, algorithm.mis_level)
    lower, upper, mode = algorithm.mis_lower, algorithm.mis_upper, algorithm.mis_mode
    weights = bounded = corrections.mis(ratio, mode=mode, lower=lower, upper=upper)
    if algorithm.mis_batch_normalize:
        weights = corrections.batch_normalized(
            weights, terms.mask, terms.sample_index, per_sample=algorithm.mis_level != "token", all_sum=terms.all_sum
        )
    keep = corrections.rejection(ratio, lower=lower, upper=upper) if mode == "mask" else None
    low, high = corrections.bounds(lower, upper)
    metrics = {"mis_tis_weight_before_bound": ratio, "mis_tis_weight_after_bound": bounded}
    if mode == "truncate":
        metrics["mis_tis_truncate_fraction"] = (ratio > upper).to(ratio.dtype)
    else:
        metrics[f"mis_tis_{mode}_fraction_low"] = (ratio < low).to(ratio.dtype)
        metrics[f"mis_tis_{mode}_fraction_high"] = (ratio > high).to(ratio.dtype)
    return Correction(weights, metrics | _divergence(terms), keep)


def rs(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """Rejection of tokens or samples whose ratio leaves the bounds."""
    ratio = _ratio(terms, algorithm.rs_level)
    low, high = corrections.bounds(algorithm.rs_lower, algorithm.rs_upper)
    metrics = {
        "mis_rs_mask_fraction_low": (ratio < low).to(ratio.dtype),
        "mis_rs_mask_fraction_high": (ratio > high).to(ratio.dtype),
    }
    keep = corrections.rejection(ratio, lower=low, upper=high)
    return Correction(torch.ones_like(ratio), metrics, keep)


def veto(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """Rejection of samples with one token that the learner finds all but impossible."""
    threshold = algorithm.rs_veto_threshold
    keep = corrections.veto(terms.old, terms.behaviour, terms.mask, terms.sample_index, threshold=threshold)
    token = (corrections.log_ratio(terms.old, terms.behaviour) < math.log(threshold)).to(keep.dtype)
    metrics = {"mis_rs_catastrophic_token_fraction": token, "mis_rs_catastrophic_seq_fraction": 1 - keep}
    return Correction(torch.ones_like(keep), metrics, keep)


def opsm(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """Rejection of bad samples that the current policy would hardly write any more."""
    kept = corrections.opsm(
        terms.logprobs,
        terms.behaviour,
        terms.advantages,
        terms.mask,
        terms.sample_index,
        delta=algorithm.opsm_delta,
    )
    return Correction(kept, {"opsm_clipfrac": 1 - kept})


@whole_batch(lambda algorithm: True)
def m2po(terms: LossTerms, algorithm: Algorithm) -> Correction:
    """Rejection of the batch's outliers."""
    kept = corrections.m2po(
        terms.old, terms.behaviour, terms.mask, threshold=algorithm.m2po_threshold, gather=terms.gather
    )
    return Correction(kept, {"m2po_masked": 1 - kept})


def _ratio(terms: LossTerms, level: corrections.Level) -> torch.Tensor:
    return corrections.importance_ratio(terms.old, terms.behaviour, terms.mask, terms.sample_index, level)


def _reported(ratio: torch.Tensor, weights: torch.Tensor) -> Correction:
    """The correction with its metrics under Miles' names."""
    clipped = (weights != ratio).to(ratio.dtype)
    return Correction(weights, {"tis": ratio, "tis_clipfrac": clipped, "tis_abs": (ratio - 1).abs()})


def _divergence(terms: LossTerms) -> dict[str, torch.Tensor]:
    """Miles' mismatch metrics: KL(behaviour || old) by k1 and k3, and chi-square by token and by sample."""
    token, sequence = _ratio(terms, "token"), _ratio(terms, "sequence")
    log = token.log()
    return {
        "mis_kl": -log,
        "mis_k3_kl": token - log - 1,
        "mis_chi2_token": token.square() - 1,
        "mis_chi2_seq": sequence.square() - 1,
    }
