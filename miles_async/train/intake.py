"""What a batch must pass before a step: every rank's groups are sound, and no token is too old.

Promises: all ranks come to the same verdict, so that none of them enters a step another one refuses; nothing is touched
before it. Lag is measured here, against the learner's own version: what senders claim does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bus.messages import UNSAMPLED, Group
from miles_async.groups.ages import AGES, ages
from miles_async.rl.reduce import Totals
from miles_async.train.batch import BatchError, BatchRefused, TrainBatch, flatten
from miles_async.train.distributed import LearnerGroups


class LagExceeded(ValueError):
    """A token older than the batch's bound, or newer than the learner, was in it. Nothing was changed; nor would a restart."""


@dataclass(frozen=True)
class Admitted:
    """A rank's share of a batch that every rank may train on."""

    batch: TrainBatch
    totals: Totals  # of all ranks
    total_samples: float  # of all ranks, whether or not a token of them is trained
    taught: bool  # every rank's samples have a teacher's log-probs
    metrics: dict[str, float]  # of the whole batch, under Miles' names


def admit(
    groups: Sequence[Group],
    ranks: LearnerGroups,
    *,
    version: int,
    max_lag: int,
    aim: int | None = None,
    vocab_size: int,
    to_batch: Callable[[Sequence[Group], int], TrainBatch] = flatten,
) -> Admitted:
    """Flatten this rank's groups and agree with the other ranks that the step from ``version`` may run. Collective.

    ``aim``: where ``max_lag`` is no bound, the versions that are aimed at; metrics say how often and how far they are passed.

    Raises BatchError (this rank's groups are malformed), BatchRefused (another's are), LagExceeded (any rank's token is
    more than ``max_lag`` versions old, or of a version above ``version``), RanksSilent.
    """
    problem: BatchError | None = None
    try:
        batch = to_batch(groups, vocab_size)
    except BatchError as error:
        problem, batch = error, flatten((), vocab_size)
    mask = batch.sequences.mask
    sampled = mask & (batch.versions != UNSAMPLED)
    lag = version - batch.versions[sampled].astype(np.int64)
    beyond = lag > (max_lag if aim is None else aim)
    n_samples = len(batch.rewards)
    trained = np.bincount(batch.sample_index[mask], minlength=n_samples)
    rows = ranks.gather(
        [
            float(problem is not None),
            float(lag.max()) if len(lag) else -math.inf,
            float(batch.teacher is None and n_samples > 0),
            float(mask.sum()),
            float(lag.sum()),
            float(np.maximum(trained, 1).sum()),
            float(n_samples),
            float(len(np.unique(batch.rollout_index))),
            float(batch.raw_rewards.sum()),
            float((batch.sequences.lengths - batch.sequences.prompt_lengths).sum()),
            float(batch.truncated.sum()),
            float(_mixed(batch)),
            float(beyond.sum()),
            float(len(np.unique(batch.sample_index[sampled][beyond]))),
            *_ages(() if problem else groups, batch, version),
            float(lag.min()) if len(lag) else math.inf,
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
    if (newest := float(rows[:, -1].min())) < 0:
        raise LagExceeded(
            f"step {step}: a token of learner rank {int(rows[:, -1].argmin())} is of weight version {version - newest:.0f}, "
            f"and the learner's own is {version}; nothing was trained"
        )
    (
        untaught,
        tokens,
        lag_sum,
        normalizer,
        samples,
        rollouts,
        reward,
        response,
        truncated,
        mixed,
        beyond_aim,
        late_samples,
        *ages_of_all,
    ) = rows[:, 2:-1].sum(dim=0).tolist()
    share = 1 / max(samples, 1.0)
    metrics = {
        "raw_reward": reward * share,
        "response_lengths": response * share,
        "truncated": truncated * share,
        "max_token_lag": oldest if math.isfinite(oldest) else 0.0,
        "mean_token_lag": lag_sum / max(tokens, 1.0),
        "mixed_version_ratio": mixed * share,
        "n_tokens": tokens,
        "n_samples": samples,
    }
    for name, total, count in zip(AGES, ages_of_all[::2], ages_of_all[1::2], strict=True):
        if count:
            metrics[f"age/{name}"] = total / count
    if aim is not None:
        metrics |= {
            "overrun_tokens": beyond_aim,
            "overrun_samples": late_samples,
            "max_overrun": max(0.0, oldest - aim),
        }
    return Admitted(batch, Totals(normalizer, rollouts), samples, untaught == 0, metrics)


def _mixed(batch: TrainBatch) -> int:
    """Samples whose trained tokens were sampled by more than one weight version."""
    n = len(batch.rewards)
    mask = batch.sequences.mask
    sample, versions = batch.sample_index[mask], batch.versions[mask].astype(np.int64)
    newest, oldest = np.full(n, -1), np.full(n, np.iinfo(np.int64).max)
    np.maximum.at(newest, sample, versions)
    np.minimum.at(oldest, sample, versions)
    return int(((newest > oldest) & (newest >= 0)).sum())


def _ages(groups: Sequence[Group], batch: TrainBatch, version: int) -> list[float]:
    """For each of ``AGES``: its sum over the groups of which it is known, and how many these are."""
    sampled = batch.sequences.mask & (batch.versions != UNSAMPLED)
    oldest = np.full(len(groups), UNSAMPLED)
    np.minimum.at(oldest, batch.group_index[batch.sample_index[sampled]], batch.versions[sampled])
    found = [
        ages(group.begun, None if first == UNSAMPLED else first, version)
        for group, first in zip(groups, oldest.tolist(), strict=True)
    ]
    each = ([of_one[name] for of_one in found if name in of_one] for name in AGES)
    return [float(value) for known in each for value in (sum(known), len(known))]
