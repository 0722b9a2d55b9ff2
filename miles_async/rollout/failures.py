"""Why a rollout came to nothing: what is on record of an attempt, and what a function of the user may not return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS
from bus.messages import Sample
from miles_async.engine_client import EngineError
from miles_async.filters.apply import FilterError
from miles_async.rewards import RewardError
from miles_async.rollout.generate import AbortedError, AnswerError, NoRoomError
from miles_async.rollout.teacher import TeacherError
from miles_async.unicode_text import words_of

DETAIL_CHARS = 400


class RolloutError(RuntimeError):
    """A rollout or generate function returned what cannot be trained on; one line."""


def reason_of(error: Exception) -> tuple[str, str]:
    """The reason (a word to count by) and the words of a failure, one line."""
    words = words_of(error)
    detail = words.partition(": ")[2] or words
    match error:
        case EngineError() | AnswerError() | TeacherError():
            reason = "generate_error"
        case AbortedError():
            reason = "aborted"
        case NoRoomError():
            reason = "too_long"
        case RewardError():
            reason = error.reason
        case FilterError():
            reason = "filter_error"
        case RolloutError():
            reason = "rollout_error"
        case _:  # of a function of the user
            reason, detail = "rollout_error", words
    return reason, detail.replace("\n", " ")[:DETAIL_CHARS]


def check_samples(samples: Any) -> None:
    """Refuse what the learner could not take. Raises RolloutError."""
    if not isinstance(samples, Sequence) or not all(isinstance(sample, Sample) for sample in samples):
        raise RolloutError(f"a list of samples is expected, not {samples!r:.100}")
    if not samples:
        raise RolloutError("no sample")
    for sample in samples:
        sizes = [
            len(data) / dtype.itemsize
            for data, dtype in (
                (sample.tokens, TOKENS),
                (sample.logprobs, LOGPROBS),
                (sample.loss_mask, MASK),
                (sample.versions, VERSIONS),
            )
        ]
        if len(set(sizes)) > 1 or not sizes[0]:
            shown = ", ".join(f"{size:g}" for size in sizes)
            raise RolloutError(
                f"sample {sample.index}: {shown} tokens, logprobs, loss_mask and versions; equal, 1 or more"
            )
