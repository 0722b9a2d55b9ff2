"""A batch function of the user's, and the batch that it gives.

Promises: what it gives is a batch whose arrays fit each other, in kind, length and range, or it is refused with the name of the
array; where it fails for some groups of a rank's share and not for others, those are named, so that they can be left out. No
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bus.messages import UNSAMPLED, Group
from miles_async.groups.sound import MAX_LOGPROB, MAX_RAW_REWARD, MAX_REWARD, MIN_LOGPROB
from miles_async.hooks.calls import HookFailed, called, refused
from miles_async.train.batch import BatchError, Sequences, TrainBatch, flatten
from miles_async.train.hooks import BATCH

BatchFunction = Callable[[Sequence[Group], int], TrainBatch]


class UnusableGroups(BatchError):
    """The batch function fails for some groups, each by itself: ``causes``, by group id. Others it takes."""

    def __init__(self, causes: dict[str, str]) -> None:
        group_id, cause = next(iter(causes.items()))
        super().__init__(f"group {group_id}: {cause}" + (f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""))
        self.causes = causes


def checked(function: BatchFunction) -> BatchFunction:
    """``function`` with its result looked at. It raises UnusableGroups, and BatchError: it fails for every group, or for all of
    them together only."""

    def to_batch(groups: Sequence[Group], vocab_size: int) -> TrainBatch:
        if not groups:
            return flatten((), vocab_size)
        try:
            return _called(function, groups, vocab_size)
        except HookFailed as error:
            causes = _causes(function, groups, vocab_size)
            if not causes or len(causes) == len(groups) > 1:
                raise BatchError(str(error)) from error
            raise UnusableGroups(causes) from error

    return to_batch


def _causes(function: BatchFunction, groups: Sequence[Group], vocab_size: int) -> dict[str, str]:
    causes: dict[str, str] = {}
    for group in groups:
        try:
            _called(function, [group], vocab_size)
        except HookFailed as error:
            causes[group.group_id] = str(error)
    return causes


def _called(function: BatchFunction, groups: Sequence[Group], vocab_size: int) -> TrainBatch:
    batch = called(BATCH, function, list(groups), vocab_size)
    if not isinstance(batch, TrainBatch) or not isinstance(batch.sequences, Sequences):
        raise refused(BATCH, function, batch)
    if (wrong := _misfit(batch) or _out_of_range(batch, len(groups), vocab_size)) is not None:
        name, found, wanted = wrong
        raise refused(BATCH, function, found, f"{wanted} as its {name}")
    return batch


def _misfit(batch: TrainBatch) -> tuple[str, Any, str] | None:
    """The first array that is none, or not of its kind and length: its name, what it is, what it must be."""
    sequences = batch.sequences
    n_samples = len(sequences.lengths) if isinstance(sequences.lengths, np.ndarray) else 0
    if (wrong := _other("lengths", sequences.lengths, np.int64, n_samples)) is not None:
        return wrong
    if (wrong := _other("prompt_lengths", sequences.prompt_lengths, np.int64, n_samples)) is not None:
        return wrong
    n_all, n = int(sequences.lengths.sum()), int((sequences.lengths - sequences.prompt_lengths).sum())
    taught = [("teacher", batch.teacher, np.float32, n)] if batch.teacher is not None else []
    expected: list[tuple[str, Any, type, int]] = [
        ("tokens", sequences.tokens, np.int32, n_all),
        ("mask", sequences.mask, np.bool_, n),
        ("behaviour", batch.behaviour, np.float32, n),
        ("versions", batch.versions, np.int32, n),
        ("sample_index", batch.sample_index, np.int64, n),
        ("rewards", batch.rewards, np.float64, n_samples),
        ("raw_rewards", batch.raw_rewards, np.float64, n_samples),
        ("group_index", batch.group_index, np.int64, n_samples),
        ("rollout_index", batch.rollout_index, np.int64, n_samples),
        ("truncated", batch.truncated, np.bool_, n_samples),
        *taught,
    ]
    return next((wrong for one in expected if (wrong := _other(*one)) is not None), None)


def _other(name: str, found: Any, dtype: type, length: int) -> tuple[str, Any, str] | None:
    if isinstance(found, np.ndarray) and found.dtype == dtype and found.shape == (length,):
        return None
    return name, found, f"an array of shape ({length},) and {np.dtype(dtype)}"


def _out_of_range(batch: TrainBatch, n_groups: int, vocab_size: int) -> tuple[str, Any, str] | None:
    """The first entry that cannot be trained on."""
    sequences, mask = batch.sequences, batch.sequences.mask
    responses = sequences.lengths - sequences.prompt_lengths
    n_samples = len(sequences.lengths)
    ranges: list[tuple[str, Any, float, float]] = [
        ("prompt_lengths", sequences.prompt_lengths, 1, np.inf),
        ("lengths", responses, 1, np.inf),
        ("tokens", sequences.tokens, 0, vocab_size - 1),
        ("behaviour", batch.behaviour[mask], MIN_LOGPROB, MAX_LOGPROB),
        ("versions", batch.versions[mask], 0, UNSAMPLED),
        ("rewards", batch.rewards, -MAX_REWARD, MAX_REWARD),
        ("raw_rewards", batch.raw_rewards, -MAX_RAW_REWARD, MAX_RAW_REWARD),
        ("group_index", batch.group_index, 0, n_groups - 1),
        ("rollout_index", batch.rollout_index, 0, n_samples - 1),
    ]
    if batch.teacher is not None:
        ranges.append(("teacher", batch.teacher[mask], MIN_LOGPROB, MAX_LOGPROB))
    for name, values, least, most in ranges:
        if not ((values >= least) & (values <= most)).all():
            wrong = values[~((values >= least) & (values <= most))][0].item()
            return name, wrong, f"numbers from {least:g} to {most:g}"
    if (batch.sample_index != np.repeat(np.arange(n_samples), responses)).any():
        return "sample_index", batch.sample_index, "the number of its sample for each response token, in order"
    if (np.diff(batch.group_index) < 0).any():
        return "group_index", batch.group_index, "numbers in the order of the groups"
    return None
