"""The mini-batches of a rank's share: what one optimizer step computes.

Promises: every group of the share is in exactly one of them, in order and whole; what a step divides by is counted over the
mini-batches of all ranks that belong to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from miles_async.rl.reduce import Totals
from miles_async.rl.terms import alone
from miles_async.train.batch import Array, Sequences, TrainBatch
from miles_async.train.intake import Admitted


@dataclass(frozen=True)
class MiniBatch:
    """A rank's part of what one optimizer step trains on."""

    sequences: Sequences  # the share's; of other mini-batches' tokens none is to be computed
    samples: Array  # [s] int64: its samples among the share's
    tokens: Array  # [n] int64: its response tokens among the share's
    sample_index: Array  # [n] int64 from 0
    rollout_index: Array  # [s] int64 from 0
    totals: Totals  # of all ranks
    trained: float  # tokens to be computed, of all ranks


def whole(admitted: Admitted) -> MiniBatch:
    """The share as one mini-batch."""
    batch = admitted.batch
    return MiniBatch(
        batch.sequences,
        samples=np.arange(len(batch.rewards)),
        tokens=np.arange(len(batch.sample_index)),
        sample_index=batch.sample_index,
        rollout_index=batch.rollout_index,
        totals=admitted.totals,
        trained=admitted.metrics.get("n_tokens", admitted.totals.tokens),
    )


def split(
    admitted: Admitted, n_groups: int, count: int, all_sum: Callable[[torch.Tensor], torch.Tensor] = alone
) -> list[MiniBatch]:
    """``count`` mini-batches of the share's ``n_groups`` groups: those groups whose number times ``count / n_groups``
    begins with 0, with 1, and so on. all_sum: over the data-parallel ranks; collective if ``count`` is above 1."""
    if count == 1:
        return [whole(admitted)]
    batch = admitted.batch
    numbers = batch.group_index * count // max(n_groups, 1)
    parts = [_part(batch, np.flatnonzero(numbers == number)) for number in range(count)]
    sizes = torch.tensor([size for _, sizes in parts for size in sizes], dtype=torch.float64)
    sums = all_sum(sizes).reshape(count, -1).tolist()
    return [
        replace(part, totals=Totals(tokens, rollouts), trained=trained)
        for (part, _), (tokens, rollouts, trained) in zip(parts, sums, strict=True)
    ]


def _part(batch: TrainBatch, samples: Array) -> tuple[MiniBatch, tuple[float, float, float]]:
    """The mini-batch of these samples, and what it adds to the totals and to the tokens to be computed."""
    chosen = np.zeros(len(batch.rewards), dtype=bool)
    chosen[samples] = True
    mine = chosen[batch.sample_index]
    mask = batch.sequences.mask & mine
    rollouts, rollout_index = np.unique(batch.rollout_index[samples], return_inverse=True)
    trained = np.bincount(batch.sample_index[mask], minlength=len(chosen))[samples]
    part = MiniBatch(
        replace(batch.sequences, mask=mask),
        samples=samples,
        tokens=np.flatnonzero(mine),
        sample_index=np.searchsorted(samples, batch.sample_index[mine]),
        rollout_index=rollout_index,
        totals=Totals(0.0, 0.0),
        trained=0.0,
    )
    return part, (float(np.maximum(trained, 1).sum()), float(len(rollouts)), float(mask.sum()))
