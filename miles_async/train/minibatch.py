"""The mini-batches of a rank's share: what one optimizer step computes.

Promises: every group of the share is in exactly one of them, in order and whole; what a step divides by is counted over the
mini-batches of all ranks that belong to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    admitted: Admitted, sizes: Sequence[int], all_sum: Callable[[torch.Tensor], torch.Tensor] = alone
) -> list[MiniBatch]:
    """A mini-batch of the share's first ``sizes[0]`` groups, one of the next ``sizes[1]``, and so on.

    all_sum: over the data-parallel ranks; collective if there are several.
    """
    count = len(sizes)
    if count == 1:
        return [whole(admitted)]
    batch = admitted.batch
    numbers = np.searchsorted(np.cumsum(sizes), batch.group_index, side="right")
    parts = [_part(batch, np.flatnonzero(numbers == number)) for number in range(count)]
    counted = torch.tensor([number for _, found in parts for number in found], dtype=torch.float64)
    sums = all_sum(counted).reshape(count, -1).tolist()
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
