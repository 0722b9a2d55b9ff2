"""What a batch must pass before a step: every rank's groups are sound, and no token is too old.

Promises: all ranks come to the same verdict, so that none of them enters a step another one refuses; nothing is touched
before it. Lag is measured here, against the learner's own version: what senders claim does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import Group
from miles_async.train.batch import BatchError, TrainBatch, flatten
from miles_async.train.distributed import LearnerGroups


class LagExceeded(RuntimeError):
    """A token older than staleness.max_lag was in the batch. Nothing was changed."""


class BatchRefused(RuntimeError):
    """Another rank's groups are malformed; its own error says which. Nothing was changed."""


@dataclass(frozen=True)
class Admitted:
    """A rank's share of a batch that every rank may train on."""

    batch: TrainBatch
    total_tokens: float  # masked-in response tokens of all ranks
    total_samples: float  # samples of all ranks
    metrics: dict[str, float]  # of the whole batch, under Miles' names


def admit(groups: Sequence[Group], ranks: LearnerGroups, *, version: int, max_lag: int, vocab_size: int) -> Admitted:
    """Flatten this rank's groups and agree with the other ranks that the step from ``version`` may run. Collective.

    Raises BatchError (this rank's groups are malformed), BatchRefused (another's are), LagExceeded (any rank's token is
    more than ``max_lag`` versions old), RanksSilent.
    """
    problem: BatchError | None = None
    try:
        batch = flatten(groups, vocab_size)
    except BatchError as error:
        problem, batch = error, flatten((), vocab_size)
    lag = version - batch.versions[batch.sequences.mask]
    rows = ranks.gather(
        [
            float(problem is not None),
            float(lag.max()) if len(lag) else -math.inf,
            float(len(lag)),
            float(len(batch.rewards)),
            float(lag.sum()),
            float(batch.rewards.sum()),
            float((batch.sequences.lengths - batch.sequences.prompt_lengths).sum()),
            float(batch.truncated.sum()),
        ]
    )
    step = version + 1
    if problem is not None:
        raise problem
    if rows[:, 0].any():
        refusing = [rank for rank, bad in enumerate(rows[:, 0].tolist()) if bad]
        raise BatchRefused(f"step {step}: the groups of learner ranks {refusing} are malformed; nothing was trained")
    oldest = float(rows[:, 1].max())
    if oldest > max_lag:
        raise LagExceeded(
            f"step {step}: a token of learner rank {int(rows[:, 1].argmax())} has lag {oldest:.0f}, above "
            f"staleness.max_lag = {max_lag}; nothing was trained"
        )
    tokens, samples, lag_sum, reward, response, truncated = rows[:, 2:].sum(dim=0).tolist()
    metrics = {
        "raw_reward": reward / max(samples, 1.0),
        "response_lengths": response / max(samples, 1.0),
        "truncated": truncated / max(samples, 1.0),
        "max_token_lag": oldest if tokens else 0.0,
        "mean_token_lag": lag_sum / max(tokens, 1.0),
        "n_tokens": tokens,
        "n_samples": samples,
    }
    return Admitted(batch, tokens, samples, metrics)
