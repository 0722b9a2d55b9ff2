"""The learner's own log-probs that a batch is measured against: of the weights before it, or of those that sampled each token.

Promises: a token's log-prob is that of exactly one set of weights; all ranks refuse a batch with a token whose weights one of
them does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from bus.messages import UNSAMPLED
from miles_async.train.batch import BatchError, Sequences, TrainBatch
from miles_async.train.distributed import LearnerGroups
from miles_async.train.kept_weights import KeptWeights


def denominators(
    batch: TrainBatch,
    version: int,
    kept: KeptWeights,
    groups: LearnerGroups,
    all_logprobs: Callable[[Sequences, str], torch.Tensor],
) -> torch.Tensor:
    """[N] float32 on the CPU. Collective where earlier versions are kept (algorithm.keep_old_actor; Miles has one of them, for
    a lag of exactly 1).

    version: of the weights before the batch. all_logprobs: a pass with the weights in place, under a name. Raises BatchError.
    """
    sequences, versions = batch.sequences, batch.versions
    if not kept.keeps_old:
        return all_logprobs(sequences, "current")
    sampled = set(np.unique(versions[sequences.mask]).tolist()) - {UNSAMPLED, version}
    if groups.any(not sampled.issubset(kept.versions)):
        raise BatchError(
            f"step {version + 1}: algorithm.keep_old_actor = true needs the weights that sampled the tokens: of this rank's "
            f"versions {sorted(sampled)}, and there are those of {sorted({*kept.versions} - {version})}"
        )
    older = np.isin(versions, list(sampled))
    found = all_logprobs(replace(sequences, mask=sequences.mask & ~older), "current")
    for one in kept.versions:
        mask = sequences.mask & (versions == one) & older
        if not groups.any(bool(mask.any())):  # a pass is one of all ranks
            continue
        with kept.version_in_place(one):
            passed = all_logprobs(replace(sequences, mask=mask), "old_actor")
        found[torch.from_numpy(mask)] = passed[torch.from_numpy(mask)]
    return found
