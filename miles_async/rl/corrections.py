"""Off-policy corrections: how much a token counts whose sampling policy is not the one it is trained against.

Promises: plain functions without gradient; with ``old`` equal to ``behaviour`` every one of them is the identity (weight 1);
weights are finite for any finite log-probs.

``rho = exp(old - behaviour)``: the learner's probability before the step over the engine's. All arguments [N] float but
``mask`` [N] 0/1 and ``sample_index`` [N] int64 (from 0, the tokens of a sample together). Results are [N] weights; a
token of weight 0 is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from miles_async.rl.losses import bounded_exp
from miles_async.rl.segments import masked_mean, masked_sum, most_segments, n_segments

IMPOSSIBLE = 1e4  # a log-ratio that no finite log-probs of a model have

Level = Literal["token", "sequence", "geometric"]
Mode = Literal["truncate", "clip", "mask"]


def log_ratio(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """``new - old`` without gradient; infinite ones become ±1e4, so that what is impossible counts as that. [N]."""
    return torch.nan_to_num((new - old).detach(), nan=0.0, posinf=IMPOSSIBLE, neginf=-IMPOSSIBLE)


def importance_ratio(
    old: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor, sample_index: torch.Tensor, level: Level
) -> torch.Tensor:
    """``exp`` of the log-ratio of the token, of its sample's sum ("sequence"), or of its sample's mean ("geometric").

    The log-ratio is clamped to ±20 first, as in Miles. Returns [N].
    """
    difference = log_ratio(old, behaviour)
    if level == "sequence":
        difference = masked_sum(difference, mask, sample_index, most_segments(sample_index))[sample_index]
    elif level == "geometric":
        difference = masked_mean(difference, mask, sample_index, most_segments(sample_index))[sample_index]
    return bounded_exp(difference)


def truncate(ratio: torch.Tensor, *, low: float, high: float) -> torch.Tensor:
    """``clamp(ratio, low, high)``: truncated importance sampling (TIS)."""
    return ratio.clamp(low, high)


def keep_inside(ratio: torch.Tensor, *, low: float, high: float) -> torch.Tensor:
    """``ratio`` where ``low <= ratio <= high``, else 0: IcePop (Ring-1T, arXiv 2510.18855), masked importance sampling."""
    return torch.where((ratio >= low) & (ratio <= high), ratio, torch.zeros_like(ratio))


def bounds(lower: float | None, upper: float) -> tuple[float, float]:
    """(lower, upper) where no lower one means ``1 / upper``."""
    return (1.0 / upper if lower is None else lower), upper


def mis(ratio: torch.Tensor, *, mode: Mode, lower: float | None, upper: float) -> torch.Tensor:
    """Miles' masked importance sampling: "truncate" ``min(ratio, upper)``, "clip" ``clamp(ratio, lower, upper)``, "mask"
    ``ratio``, whose tokens outside the bounds are rejected (:func:`rejection`). lower: None means ``1 / upper``."""
    if mode == "truncate":
        return ratio.clamp_max(upper)
    low, high = bounds(lower, upper)
    return truncate(ratio, low=low, high=high) if mode == "clip" else ratio


def batch_normalized(
    weights: torch.Tensor,
    mask: torch.Tensor,
    sample_index: torch.Tensor,
    *,
    per_sample: bool,
    all_sum: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """``weights`` divided by their mean over the batch's unmasked tokens, or over its samples where one weight is a whole
    sample's (``per_sample``; one without an unmasked token counts as 0). A mean of 0 changes nothing. all_sum: adds a [2]
    tensor over the ranks."""
    kept = (mask != 0).double()
    values = torch.where(mask != 0, weights, torch.zeros_like(weights)).double()
    if per_sample:
        values = masked_mean(values, mask, sample_index, n_segments(sample_index))
        kept = torch.ones_like(values)
    total, count = all_sum(torch.stack([values.sum(), kept.sum()]))
    mean = total / count.clamp_min(1)
    return (weights / torch.where(mean > 1e-8, mean, torch.ones_like(mean))).to(weights.dtype)


def rejection(ratio: torch.Tensor, *, lower: float | None, upper: float) -> torch.Tensor:
    """1 where ``lower <= ratio <= upper``, else 0 (rejection sampling; with a "geometric" ratio: Geo-RS of verl)."""
    low, high = bounds(lower, upper)
    return ((ratio >= low) & (ratio <= high)).to(ratio.dtype)


def veto(
    old: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor, sample_index: torch.Tensor, *, threshold: float
) -> torch.Tensor:
    """0 for every token of a sample that has an unmasked token with ``rho < threshold``, else 1."""
    broken = (log_ratio(old, behaviour) < math.log(threshold)).to(old.dtype)
    return (masked_sum(broken, mask, sample_index, most_segments(sample_index)) == 0).to(old.dtype)[sample_index]


def opsm(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    sample_index: torch.Tensor,
    *,
    delta: float,
) -> torch.Tensor:
    """Off-policy sequence masking (Miles, slime): 0 for tokens with A < 0 in a sample whose mean of ``old - logprobs``
    exceeds ``delta``, else 1. ``old`` has to be another policy's than the current one to reject anything: the engine's."""
    kl = masked_mean(-log_ratio(logprobs, old), mask, sample_index, most_segments(sample_index))
    return (~((advantages < 0) & (kl[sample_index] > delta))).to(old.dtype)


def m2po(
    old: torch.Tensor,
    behaviour: torch.Tensor,
    mask: torch.Tensor,
    *,
    threshold: float,
    gather: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """1 for the tokens that stay, 0 for the outliers that have to go until the mean of ``(log rho)^2`` over those that stay
    is at most ``threshold`` (M2PO, arXiv 2510.01161), over the whole batch. gather: all ranks' values of a [N] tensor.

    Equal outliers go together, so that the order of samples does not matter.
    """
    second = log_ratio(old, behaviour).double().square()
    everyone = gather(torch.where(mask != 0, second, torch.full_like(second, -1.0)))
    ascending = everyone[everyone >= 0].sort().values
    if not len(ascending):
        return torch.ones_like(old)
    means = ascending.cumsum(0) / torch.arange(1, len(ascending) + 1, device=ascending.device)
    # the means ascend as the values do: the last one within the bound says how many may stay
    allowed = int((means <= threshold).sum())
    if allowed == len(ascending):
        return torch.ones_like(old)
    first_gone = ascending[allowed]
    return (second < first_gone).to(old.dtype)


def spans(versions: torch.Tensor, sample_index: torch.Tensor) -> torch.Tensor:
    """The index from 0 of each token's span: a run of tokens of one sample that one weight version sampled. [N] int64."""
    if not len(versions):
        return torch.zeros_like(sample_index)
    new = (versions[1:] != versions[:-1]) | (sample_index[1:] != sample_index[:-1])
    return torch.cat([new.new_zeros(1), new]).long().cumsum(0)


def span_ratio(
    old: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor, sample_index: torch.Tensor, versions: torch.Tensor
) -> torch.Tensor:
    """``exp`` of the mean log-ratio over the token's span: one importance ratio for each weight version that wrote a part
    of a sample which crossed weight updates, instead of one for the whole or a noisy one for each token. Ours. [N]."""
    kept = mask != 0
    # a masked token divides no span, whatever its version
    index = torch.zeros_like(sample_index)
    index[kept] = spans(versions[kept], sample_index[kept])
    return importance_ratio(old, behaviour, mask, index, "geometric")


def loglinear_old(
    logprobs: torch.Tensor, behaviour: torch.Tensor, versions: torch.Tensor, version: int
) -> torch.Tensor:
    """The proximal log-prob without a pass of its own: ``behaviour + alpha (logprobs - behaviour)``, with
    ``alpha = (lag - 1) / lag`` for lag >= 1, else 0 (A-3PO, arXiv 2512.06547; AReaL's "loglinear"). [N], no gradient."""
    lag = (version - versions).clamp_min(0).to(logprobs.dtype)
    alpha = torch.where(lag > 1, (lag - 1) / lag.clamp_min(1), torch.zeros_like(lag))
    return behaviour + alpha * (logprobs.detach() - behaviour)
