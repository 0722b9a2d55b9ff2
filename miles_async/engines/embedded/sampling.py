"""Drawing tokens for a whole batch: temperature, top-k, top-p, min-p, and noise that depends on seed and position only.

Promises: pure functions; a row's token depends on its own logits, parameters, seed and position in the response, never on
its neighbours or its slot; log-probs are of the distribution after temperature and before top-k/top-p/min-p, as SGLang
reports them by default.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

NO_TOP_K = 1 << 30

# arrays, whose products wrap without the warning that numpy has for scalars
_GOLDEN, _ONE, _BITS = np.array([[0x9E3779B97F4A7C15], [1], [32]], np.uint64)
_SHIFTS = np.array([[30], [27], [31]], np.uint64)
_FACTORS = np.array([[0xBF58476D1CE4E5B9], [0x94D049BB133111EB]], np.uint64)


class Filters(NamedTuple):
    """Truncation of the rows that asked for it. ``rows`` int64 ``[m]``; the rest ``[m]``, same order."""

    rows: torch.Tensor
    top_k: torch.Tensor  # int64, NO_TOP_K for none
    top_p: torch.Tensor  # float32, 1 for none
    min_p: torch.Tensor  # float32, 0 for none


def uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in (0, 1) for each (seed, position of the token in its response), both ``[n]``.

    splitmix64 (Steele et al. 2014) over both; 32 bits, so that the product with a sum of probabilities never reaches it.
    """
    return uniforms_of(mixed(seeds), positions)


def mixed(seeds: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """What :func:`uniforms_of` takes: the part of the noise that is the same for every token of a response."""
    return _mix(seeds + _GOLDEN)


def uniforms_of(mixed_seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """:func:`uniforms`, from :func:`mixed` seeds."""
    x = _mix(mixed_seeds + (positions.view(np.uint64) + _ONE) * _GOLDEN)
    return ((x >> _BITS) + 0.5) * 2.0**-32


def sample(
    logits: torch.Tensor,
    temperatures: torch.Tensor | None,
    noise: torch.Tensor,
    greedy: torch.Tensor | None,
    filters: Filters | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (int64 ``[n]``) and their log-probs (float32 ``[n]``).

    logits: float32 ``[n, vocab]``. temperatures: float32 ``[n]``, above 0 (1 for a greedy row), None: 1 everywhere. noise:
    float64 ``[n]`` of :func:`uniforms`. greedy: bool ``[n]``, rows that take the most likely token, None for no such row.
    """
    logprobs = torch.log_softmax(logits if temperatures is None else logits / temperatures[:, None], -1)
    probs = logprobs.exp()
    if filters is not None:
        probs.index_copy_(0, filters.rows, truncate(probs[filters.rows], filters))
    # float64: a float32 running sum over 150k tokens is off by more than a rare token's probability
    cdf = probs.cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cdf, (noise * cdf[:, -1])[:, None], right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)  # sums that are not a number: the caller sees it from the log-prob
    if greedy is not None:
        tokens = torch.where(greedy[:, None], logprobs.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


def truncate(probs: torch.Tensor, filters: Filters) -> torch.Tensor:
    """``probs`` ``[m, vocab]`` with 0 where top-k, then top-p, then min-p leave a token out; not renormalised.

    A token stays in top-p if the mass of strictly likelier ones is at most p, as in SGLang.
    """
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.cumsum(-1)
    rank = torch.arange(probs.shape[-1], device=probs.device)
    out = (rank >= filters.top_k[:, None]) | (mass - ordered > filters.top_p[:, None])
    out |= ordered < (ordered[:, 0] * filters.min_p)[:, None]
    return torch.zeros_like(probs).scatter_(-1, order, ordered.masked_fill(out, 0.0))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """In place."""
    x ^= x >> _SHIFTS[0]
    x *= _FACTORS[0]
    x ^= x >> _SHIFTS[1]
    x *= _FACTORS[1]
    x ^= x >> _SHIFTS[2]
    return x
